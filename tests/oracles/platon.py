"""PLATON's importance from a history of (θ, gradient), as methods/README.md (platon) has it."""


def importance(history, every, last, beta1, beta2):
    """(Ĩ, Ũ) after the whole history of one tensor, one (θ, gradient) an update.

    Windows end at multiples of `every` and at update `last`; what follows the last end is left out.
    """
    smoothed = uncertain = 0.0
    window = []
    for t, (theta, grad) in enumerate(history, start=1):
        window.append((theta * grad).abs())
        if t % every == 0 or t == last:
            mean = sum(window) / len(window)
            smoothed = beta1 * smoothed + (1 - beta1) * mean
            uncertain = beta2 * uncertain + (1 - beta2) * (mean - smoothed).abs()
            window = []
    return smoothed, uncertain
