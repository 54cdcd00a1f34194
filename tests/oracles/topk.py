"""Top-k as a full stable sort would have it, and the straight-through gradient by autograd."""

import torch


def keep_by_sort(scores, k):
    """Keep mask of a pool: the first k of a stable ascending sort are pruned."""
    flat = scores.reshape(-1)
    keep = torch.ones(flat.numel(), dtype=torch.bool)
    keep[torch.sort(flat, stable=True).indices[:k]] = False
    return keep.reshape(scores.shape)


class StraightThrough(torch.autograd.Function):
    """scores → keep mask as floats; the gradient of the mask is the gradient of the scores."""

    @staticmethod
    def forward(ctx, scores, k):
        return keep_by_sort(scores, k).to(scores.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad, None


def pst_weight(W, U, V, A, B, R, C, k, beta, alpha1, alpha2, detach):
    """M⊙Ŵ of PST (arXiv 2205.11005), written as the equations stand there; 2-d shapes."""
    updated = W + beta * U @ V
    size = updated.detach().abs() if detach else updated.abs()
    ones_o, ones_i = torch.ones(W.shape[0], 1), torch.ones(1, W.shape[1])
    scores = size + alpha1 * A @ B + alpha2 * (R @ ones_i + ones_o @ C)
    return StraightThrough.apply(scores, k) * updated
