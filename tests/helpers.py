"""Small models and contexts that several test files share."""

import hashlib
import os
import re
import textwrap

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from bench.api import Cell
from bench.core.pattern import default_of
from bench.pipeline import cache, fit, run
from bench.pipeline.context import make_context
from bench.planning import registry
from bench.planning.job import Job
from bench.sources import loading
from bench.sources.catalog import place_of
from bench.weights import targets
from methods.shared.one_shot import OneShot

ARCHITECTURES = ("tiny-bert", "tiny-gpt2", "tiny-llama")
KINDS = {name: registry.method(name) for name in registry.builtin("method")}
TRAINING_FREE = {name: kind for name, kind in KINDS.items() if not kind.trains}
CALIBRATED = {name: kind for name, kind in KINDS.items() if issubclass(kind, OneShot)}
TASK = "tiny/reviews"


def cell(method, model="tiny-bert", sparsity=0.5, pattern=None, seed=1, task=TASK, **overrides):
    pattern = str(pattern or default_of(registry.method(method).patterns[0]))
    return Cell(
        task=task,
        model=model,
        method=method,
        pattern=pattern,
        sparsity=0.0 if pattern == "dense" else sparsity,
        seed=seed,
        overrides=tuple((k.replace("__", "."), v) for k, v in overrides.items()),
    )


def quiet(*_):
    """Takes the progress that nobody watches."""


def models_for(method):
    """The tiny models that a method can prune: BERT's blocks add to no residual stream."""
    return ARCHITECTURES[1:] if "blocks" in method.patterns else ARCHITECTURES


def run_cell(cell, emit=quiet, **more):
    """Runs a cell in this process."""
    return run.run_cell(Job.resolve(cell), emit, **more)


def fit_cell(cell, emit=quiet, *more, **options):
    """Fits a cell in this process."""
    return fit.fit_cell(Job.resolve(cell), emit, *more, **options)


def tune_cell(cell, emit=quiet):
    """A cell's scores on the select slice, run in this process."""
    return run.run_cell(Job.resolve(cell, "select"), emit).scores.all


def trained_dir(cell):
    """Where a dense cell's weights are cached."""
    return cache.trained_dir(Job.resolve(cell))


def load(model, task, seed=1, weights=None):
    """A model by its slug."""
    return loading.load_for_task(place_of(model), task, seed, weights)


def loaded(model, task, length):
    """(model in eval mode, tokenizer that cuts to `length`)."""
    found = load(model, task)
    found.tok.model_max_length = length
    return found.model.eval(), found.tok


def matrices(weights, transposed):
    """Targets that hold `weights`: (out, in) in nn.Linear modules, or in Conv1D if `transposed`."""
    found = []
    for i, weight in enumerate(weights):
        out, width = weight.shape
        module = Conv1D(out, width) if transposed else nn.Linear(width, out)
        found.append(targets.Target(str(i), module))
        found[-1].write(weight)
    return found


def attached(cell, **changes):
    """(model, method, context) after `attach`, before any training; the weights are random.

    `changes` replace fields of the context.
    """
    job = Job.resolve(cell)
    loaded = loading.load_for_task(job.place, job.task, cell.seed)
    loaded.tok.model_max_length = job.budget.length
    ctx = make_context(job, loaded, torch.device("cpu"))._replace(**changes)
    method = job.make_method()
    method.attach(loaded.model, ctx)
    return loaded.model, method, ctx


def logits(model, seed=0, batch=3, length=12):
    ids = torch.randint(5, 200, (batch, length), generator=torch.Generator().manual_seed(seed))
    model.eval()
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits


def learn(model, method, steps, before=None, after=None, micro=1):
    """Updates on a task's loss with the hooks that the harness calls, without dropout.

    `before(t)` sees the gradients of an update, `after(t)` what it left; each update's batch goes
    through in `micro` pieces.
    """
    model.eval()
    optimizer = method.optimizer(method.param_groups(model))
    start = [group["lr"] for group in optimizer.param_groups]
    for t in range(steps):
        method.step(model, t / steps)
        for group, lr in zip(optimizer.param_groups, start, strict=True):
            group["lr"] = lr * method.lr_factor(t / steps)
        optimizer.zero_grad()
        inputs = batch(t)
        for pieces in zip(*(x.chunk(micro) for x in inputs.values()), strict=True):
            part = dict(zip(inputs, pieces, strict=True))
            (method.loss(model, part, model(**part)) / micro).backward()
        if before:
            before(t)
        optimizer.step()
        if after:
            after(t)
    return optimizer


def batch(t, size=8, length=12):
    """The inputs of update t."""
    ids = torch.randint(5, 200, (size, length), generator=torch.Generator().manual_seed(100 + t))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids[:, 0] % 2}


def zeros(model):
    return {t.name: int((t.weight == 0).sum()) for t in targets.prunable(model)}


def installed(site, source):
    """Installs a package with methods, as pip would leave it: module and metadata.

    Every class of the source with a docstring is a method, named as the class is, in lower case.
    Returns a PYTHONPATH on which it and the project are found.
    """
    # Another name for another source: a process keeps what it has imported.
    module = f"other{hashlib.sha256(source.encode()).hexdigest()[:8]}"
    info = site / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (site / f"{module}.py").write_text(textwrap.dedent(source))
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
    classes = re.findall(r"class (\w+)\(.*\n\s+'''", source)
    lines = [f"{name.lower()} = {module}:{name}" for name in classes]
    (info / "entry_points.txt").write_text("[sparsebench.methods]\n" + "\n".join(lines) + "\n")
    return os.pathsep.join(filter(None, [str(site), os.getcwd(), os.environ.get("PYTHONPATH")]))
