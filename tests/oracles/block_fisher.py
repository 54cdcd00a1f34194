"""oBERT's Fisher as methods/README.md (obert) has it, in float64, one weight at a time."""

import numpy as np


def inverse(grads, damp, size):
    """Dense F⁻¹ (d, d) of gradients (m, d), whose blocks alone are kept."""
    m, d = grads.shape
    fisher = grads.T @ grads / m + damp * np.eye(d)
    block = np.arange(d) // size
    return np.linalg.inv(np.where(block[:, None] == block[None, :], fisher, 0.0))


def woodbury(grads, damp):
    """F⁻¹ of one block, by the recursion of the paper: a rank-one update a gradient."""
    m, d = grads.shape
    found = np.eye(d) / damp
    for g in grads:
        moved = found @ g
        found = found - np.outer(moved, moved) / (m + g @ moved)
    return found


def pruned(weight, found, gone):
    """(saliency of each weight, the weights after those of `gone` went), given F⁻¹."""
    saliency = np.array([w**2 / (2 * found[q, q]) for q, w in enumerate(weight)])
    left = weight.copy()
    for q in gone:
        left = left - weight[q] / found[q, q] * found[:, q]
    left[gone] = 0.0
    return saliency, left
