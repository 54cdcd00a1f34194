"""AST's AdamW, one weight at a time, and its distillation loss, one row at a time."""

import math


def trajectory(p, gradients, keeps, decays, lrs, wd, beta1, beta2, eps):
    """The values of one weight after every update, as the equations stand there.

    Args:
        p: its start.
        gradients: its gradient at every update.
        keeps: its keep bit at every update; None for a parameter without a mask (plain AdamW).
        decays: λ(t).
        lrs: learning rates.
    """
    u = v = 0.0
    values = []
    for t, (g, m, decay, lr) in enumerate(zip(gradients, keeps, decays, lrs, strict=True), 1):
        p = p * (1 - lr * wd)
        u = beta1 * u + (1 - beta1) * g
        if m is None:
            z, tracked = u, g
        else:
            z = tracked = u + decay * (1 - m) * p
        v = beta2 * v + (1 - beta2) * tracked**2
        p = p - lr / (1 - beta1**t) * z / (math.sqrt(v) / math.sqrt(1 - beta2**t) + eps)
        values.append(p)
    return values


def softmax(row, temperature):
    exps = [math.exp(z / temperature) for z in row]
    return [e / sum(exps) for e in exps]


def kd(student_rows, teacher_rows, temperature):
    """T²·KL(teacher ‖ student), mean over rows."""
    total = 0.0
    for s, t in zip(student_rows, teacher_rows, strict=True):
        ps, pt = softmax(s, temperature), softmax(t, temperature)
        total += sum(b * math.log(b / a) for a, b in zip(ps, pt, strict=True))
    return temperature**2 * total / len(student_rows)
