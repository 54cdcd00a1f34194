"""SparseGPT as arXiv 2301.00774 writes it: R from three factorisations, one column at a time."""

import torch


def inverse_factor(H, percdamp=0.01):
    """R, upper triangular with RᵀR = H⁻¹, of the damped H; and which inputs are dead."""
    H = H.clone()
    dead = H.diagonal() == 0
    H[dead, dead] = 1
    H += percdamp * H.diagonal().mean() * torch.eye(len(H), dtype=H.dtype)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(H))
    return torch.linalg.cholesky(inverse, upper=True), dead


def sparsegpt(W, H, sparsity=None, n_m=None, keep=None, k_of=None, blocksize=128, percdamp=0.01):
    """The pruned and reconstructed weight.

    Args:
        W: (out, in).
        H: (in, in), a multiple of XᵀX.
        sparsity: the mask by the published rule: up to and including order statistic int(o·B·s).
        k_of: (a, b) → how many to prune in columns a to b, instead of that rule.
        n_m: N kept of M, instead.
        keep: a mask, instead.
    """
    W = W.clone()
    R, dead = inverse_factor(H, percdamp)
    W[:, dead] = 0
    width = W.shape[1]
    for a in range(0, width, blocksize):
        b = min(a + blocksize, width)
        block, diagonal = W[:, a:b].clone(), R.diagonal()[a:b]
        errors = torch.zeros_like(block)
        if keep is not None:
            prune = ~keep[:, a:b]
        elif n_m is not None:
            prune = torch.zeros_like(block, dtype=torch.bool)
        else:
            q = block**2 / diagonal**2
            ordered = q.flatten().sort().values
            if k_of is None:
                prune = q <= ordered[int(q.numel() * sparsity)]
            else:
                k = k_of(a, b)
                prune = q <= ordered[k - 1] if k else torch.zeros_like(q, dtype=torch.bool)
        for j in range(b - a):
            if n_m is not None and keep is None and j % n_m[1] == 0:
                group = slice(j, j + n_m[1])
                q = block[:, group] ** 2 / diagonal[group] ** 2
                smallest = q.topk(n_m[1] - n_m[0], dim=1, largest=False).indices
                prune.scatter_(1, j + smallest, True)
            w = block[:, j]
            new = w.clone()
            new[prune[:, j]] = 0
            e = (w - new) / diagonal[j]
            block[:, j:] -= e[:, None] @ R[a + j, a + j : b][None]
            block[:, j] = new
            errors[:, j] = e
        W[:, a:b] = block
        W[:, b:] -= errors @ R[a:b, b:]
    return W
