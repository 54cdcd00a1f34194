"""Greedy bilateral decomposition as methods/README.md (dsee) tells it, with all of QR(E)."""

import torch


def residual(W, start, rounds, last):
    """W − UV after the last round; the rank grows evenly from 1 to `last`."""
    V = start
    for k in range(rounds):
        S = torch.zeros_like(W)
        for _ in range(2):
            U, _ = torch.linalg.qr((W - S) @ V.T)
            V = U.T @ (W - S)
            left = W - U @ V
            S = torch.where(left.abs() < 0.01, torch.zeros_like(left), left)
        E = W - U @ V - S
        _, R = torch.linalg.qr(E)
        rank_now, rank_next = (1 + j * (last - 1) // (rounds - 1) for j in (k, k + 1))
        if k + 1 < rounds:
            V = torch.cat([V, R[: rank_next - rank_now]])
    return left
