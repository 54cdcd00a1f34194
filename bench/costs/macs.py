"""Counts the multiply-adds of a forward pass by tracing it."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from transformers import PreTrainedModel

from bench.core.errors import BenchError
from bench.core.pattern import DENSE, Pattern
from bench.core.record_parts import Macs
from bench.weights import slicing
from bench.weights.patterns import density, halved
from bench.weights.targets import head_modules, prunable

# Operators that multiply no matrices. Any operator that is neither here nor known to fvcore is an
# error, because an uncounted matrix product would look like a saving.
_FREE = frozenset(
    f"aten::{name}"
    for name in """
    _softmax abs add add_ all alias and any arange argmax bitwise_and bitwise_not bitwise_or bool
    clamp clone contiguous copy_ cos cumsum detach diff div div_ dropout embedding empty eq exp
    expand expand_as eye feature_dropout fill_ flip full full_like gather ge gelu gt index
    index_put index_select is_nonzero item le lift_fresh log logical_and logical_not logical_or lt
    masked_fill masked_fill_ max maximum mean min minimum mul mul_ native_dropout ne neg new_full
    new_ones new_zeros nonzero ones ones_like pow prod relu repeat repeat_interleave rms_norm rsqrt
    rsub scalar_tensor scatter sigmoid sign silu sin softmax sqrt sub sum tanh to tril triu type_as
    where zeros zeros_like __and__ __or__
    """.split()
)
# fvcore counts these, but they multiply no matrices either.
_UNCOUNTED = """
    batch_norm group_norm layer_norm instance_norm native_batch_norm native_layer_norm
    native_group_norm linalg_vector_norm adaptive_avg_pool2d
    """.split()


def count_macs(
    model: PreTrainedModel, length: int, pattern: Pattern = DENSE, kernel: bool = False
) -> Macs:
    """Counts the multiply-adds of one forward pass of one sequence (methods/README.md, "Costs").

    Linear layers, attention products (q·kᵀ, p·v) and the head count; embeddings are 0. The head is
    also stated apart. `effective` scales the products of each target by its density. `realizable`
    leaves out the products that the device can skip.

    Args:
        model: the exported model.
        length: tokens of the sequence.
        pattern: the cell's pattern; heads and neurons are sliced away on a copy.
        kernel: whether the device has a kernel for 2:4 matrices (`has_kernel`).

    Raises:
        BenchError: the trace holds an operator that neither fvcore nor this module knows.
    """
    by_module = _traced(model, length)
    dense = by_module[""]
    products = {
        t.name: by_module[f"model.{t.name}"] - by_module[f"model.{t.name}.branch"]
        for t in prunable(model)
    }
    saved = sum(products[t.name] * (1.0 - density(t)) for t in prunable(model))
    realizable = dense
    if kernel:
        realizable -= sum(products[t.name] for t in halved(model, pattern)) // 2
    if pattern.removes_units:
        sliced = copy.deepcopy(model)
        slicing.slice_units(sliced)
        realizable = _traced(sliced, length)[""]
    return Macs(
        dense=dense,
        effective=round(dense - saved),
        head=sum(by_module[f"model.{name}"] for name in head_modules(model)),
        realizable=realizable,
        tokens=length,
    )


def _traced(model: PreTrainedModel, length: int) -> dict[str, int]:
    """Counts multiply-adds by module: `""` is the sum, the model's modules begin with `model`."""
    ids = torch.ones(1, length, dtype=torch.long, device=model.device)
    with _eager(model), torch.no_grad():
        analysis = FlopCountAnalysis(_Logits(model), (ids,))
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        analysis.tracer_warnings("none")
        analysis.set_op_handle(**{f"aten::{name}": _no_macs for name in _UNCOUNTED})
        by_module = analysis.by_module()
        unknown = set(analysis.unsupported_ops()) - _FREE
    if unknown:
        raise BenchError(f"cannot count MACs: unknown operators {', '.join(sorted(unknown))}")
    return defaultdict(int, {name: int(macs) for name, macs in by_module.items()})


def _no_macs(inputs: Any, outputs: Any) -> int:
    return 0


class _Logits(nn.Module):
    """A model as a function of token ids alone, as the tracer needs it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Any:
        return self.model(input_ids=ids, return_dict=True).logits


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """Sets eager attention, eval mode and no cache while tracing, as fvcore cannot count SDPA."""
    attention, training = model.config._attn_implementation, model.training
    cache = getattr(model.config, "use_cache", None)
    model.set_attn_implementation("eager")
    model.eval()
    model.config.use_cache = False
    try:
        yield
    finally:
        model.set_attn_implementation(attention)
        model.train(training)
        model.config.use_cache = cache
