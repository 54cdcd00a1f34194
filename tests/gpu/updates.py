"""A few updates of a method on any device, the same on each up to rounding."""

import copy
from contextlib import nullcontext

import torch

from bench.pipeline import training_step
from bench.pipeline.context import make_context
from bench.planning.job import Job
from bench.sources import loading
from bench.weights.targets import prunable
from tests import helpers

STEPS = 4


def run(name, device, bf16, watch=nullcontext, steps=STEPS, **parameters):
    """Trains without dropout and noise, and returns (losses, moved, weights), all on the CPU.

    Args:
        name: of a training method.
        device: where.
        bf16: whether products run in bf16, as the trainer has it.
        watch: a context around each update but the first; a method's `step` is outside.
        steps: how many updates.
        parameters: of the method.

    `moved` is what all parameters moved by, flat, in order; `weights` are the targets' effective
    weights at the end.
    """
    job = Job.resolve(helpers.cell(name, budget__steps=steps, **parameters))
    loaded = loading.load_for_task(job.place, job.task, job.cell.seed)
    loaded.tok.model_max_length = job.budget.length
    # Another model: one that teaches itself has no gradient but rounding.
    teacher = copy.deepcopy(loaded.model).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for p in teacher.parameters():
        p.add_(0.1 * torch.randn(p.shape, generator=generator))
    model = loaded.model.to(device)
    teacher.to(device)
    method = job.make_method()
    ctx = make_context(job, loaded, device)
    method.attach(model, ctx._replace(teacher=lambda: teacher))
    optimizer = method.optimizer(method.param_groups(model))
    held = [p for group in optimizer.param_groups for p in group["params"]]
    rates = [group["lr"] for group in optimizer.param_groups]
    before = [p.detach().clone() for p in held]
    model.eval()
    losses = []
    for t in range(steps):
        inputs = {key: value.to(device) for key, value in helpers.batch(t).items()}
        method.step(model, t / steps)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * method.lr_factor((t + 1) / (steps + 1))
        with watch() if t else nullcontext():
            loss = training_step.run_update(method, model, optimizer, inputs, bf16)
        losses.append(loss)
    method.step(model, 1.0)
    moved = torch.cat([(p.detach() - q).flatten() for p, q in zip(held, before, strict=True)])
    weights = torch.cat([t.weight.flatten() for t in prunable(model)])
    return torch.stack(losses).cpu(), moved.float().cpu(), weights.float().cpu()
