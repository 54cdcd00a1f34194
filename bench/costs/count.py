"""`sparsebench.count`: what one method costs on a model that is in memory or only named."""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel

from bench.core.cell import Budget
from bench.core.overrides import Scalar
from bench.core.pattern import Pattern, parse_pattern
from bench.costs.by_method import STEPS, Account, account
from bench.planning.setups import setups
from bench.sources import limits
from bench.sources.architectures import class_of, config_of


def count(
    model: PreTrainedModel | PreTrainedConfig | str | Path,
    method: str,
    pattern: str | Pattern | None = None,
    sparsity: float = 0.5,
    *,
    length: int = 128,
    batch: int = 32,
    kernel: bool = False,
    **parameters: Scalar,
) -> Account:
    """Counts what a method trains, stores and multiplies, from a model's config alone.

    Args:
        model: a model, a config, or the name of one: a slug, a hub id, a folder or a config file.
        method: name of the method.
        pattern: by default the method's first.
        sparsity: fraction of pruned weights, for patterns that do not fix one.
        length: tokens a sequence.
        batch: sequences an update.
        kernel: whether the device has kernels for 2:4 matrices.
        parameters: of the method.

    Raises:
        BenchError: an argument is not allowed, or the method cannot be counted on this model.
    """
    if isinstance(pattern, str):
        pattern = parse_pattern(pattern)
    (setup,) = setups([method], pattern, sparsity, parameters)
    if isinstance(model, PreTrainedModel):
        kind, config, name = type(model), model.config, type(model).__name__
    elif isinstance(model, PreTrainedConfig):
        kind, config, name = class_of(model), model, model.model_type
    else:
        config, name = config_of(str(model)), str(model)
        kind = class_of(config)
    limits.check_length(config, length, name)
    return account(setup, Budget(steps=STEPS, batch=batch, length=length), kind, config, kernel)
