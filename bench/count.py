"""What a model theoretically costs: parameters, multiply-adds (MACs) and bytes.

Everything is counted on the exported, reloaded model; a zero is `== 0.0` (DESIGN §5, rule 5).
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from fvcore.nn import FlopCountAnalysis
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from bench import slicing
from bench.api import BenchError, Published
from bench.branch import Branch
from bench.record import Macs, Params, PublishedPart, Sparsity, Trainable
from bench.targets import Target, head_parameters, prunable

# Operators that multiply no matrices. Anything that is neither here nor known to fvcore is an
# error: an uncounted matrix product must not pass for a saving.
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


def params(
    model: PreTrainedModel, trainable: Trainable, published: Published | None = None
) -> Params:
    """Elements of a plain model; tied tensors count once.

    Args:
        model: as exported.
        trainable: what the optimizer held.
        published: the trained share that the method's paper prints.
    """
    total = sum(p.numel() for p in model.parameters())
    targets = prunable(model)
    pruned = sum(t.shape[0] * t.shape[1] for t in targets)
    nonzero = sum(int(torch.count_nonzero(t.stored)) for t in targets)
    return Params(
        total=total,
        prunable=pruned,
        nonzero=nonzero,
        stored=total - pruned + nonzero,
        trainable=trainable,
        published=None if published is None else compared(model, trainable, published),
    )


def compared(model: PreTrainedModel, trainable: Trainable, published: Published) -> PublishedPart:
    """A published share and ours of the same denominator, in which a branch is no part."""
    whole = sum(p.numel() for p in model.parameters())
    branches = [m for m in model.modules() if isinstance(m, Branch)]
    whole -= sum(p.numel() for branch in branches for p in branch.parameters())
    if published.of == "weights+scores":
        whole += sum(t.shape[0] * t.shape[1] for t in prunable(model))
    trained = trainable.body + (trainable.head if published.head else 0)
    return PublishedPart(
        share=published.share,
        ours=trained / whole,
        of=published.of,
        denominator=whole,
        head=published.head,
        setting=published.setting,
    )


def density(target: Target) -> float:
    """Fraction of a target's weights that are not exactly zero."""
    return int(torch.count_nonzero(target.stored)) / target.stored.numel()


def sparsity(model: PreTrainedModel, pattern: str) -> Sparsity:
    """Exact zeros in the target set, and whether the pattern holds in every row.

    Raises:
        BenchError: kind `contract` when something is still parametrized.
    """
    if any(parametrize.is_parametrized(m) for m in model.modules()):
        raise BenchError("the exported model still holds parametrizations", "contract")
    targets = prunable(model)
    levels = [1.0 - density(t) for t in targets]
    sizes = [t.shape[0] * t.shape[1] for t in targets]
    overall = sum(v * n for v, n in zip(levels, sizes, strict=True)) / sum(sizes)
    return Sparsity(
        overall=overall,
        min_layer=min(levels),
        max_layer=max(levels),
        pattern_ok=all(holds(t.weight, pattern) for t in targets),
    )


def holds(weight: Tensor, pattern: str) -> bool:
    """Whether `weight`: (out, in) has the pattern; patterns without a local rule always hold."""
    if match := re.fullmatch(r"(\d+):(\d+)", pattern):
        kept, group = int(match[1]), int(match[2])
        if weight.shape[1] % group:
            return False
        nonzero = weight.reshape(-1, group).count_nonzero(dim=1)
        return bool((nonzero <= kept).all())
    if match := re.fullmatch(r"(block:\d+x\d+)\+neurons", pattern):
        rows, columns = weight.shape
        units = (match[1], f"block:1x{columns}", f"block:{rows}x1")
        return any(holds(weight, unit) for unit in units)
    if pattern == "rows":
        return holds(weight, f"block:1x{weight.shape[1]}")
    if match := re.fullmatch(r"block:(\d+)x(\d+)", pattern):
        rows, columns = int(match[1]), int(match[2])
        if weight.shape[0] % rows or weight.shape[1] % columns:
            return False
        tiles = weight.unfold(0, rows, rows).unfold(1, columns, columns)
        nonzero = tiles.count_nonzero(dim=(-1, -2))
        return bool(((nonzero == 0) | (nonzero > rows * columns // 2)).all())
    return True


def macs(model: PreTrainedModel, length: int, pattern: str = "dense", kernel: bool = False) -> Macs:
    """Multiply-adds of one forward pass of one sequence of `length` tokens.

    Linear layers and attention products (q·kᵀ, p·v) are counted, embeddings are 0, the head is
    counted and stated apart. `effective` scales every target's products by its density,
    `realizable` leaves out what can be left out (METHODS.md §4.2).

    Args:
        model: as exported.
        length: tokens.
        pattern: the cell's; heads and neurons are sliced away on a copy.
        kernel: whether there is one for 2:4 matrices (`has_kernel`).

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
    if removes_units(pattern):
        sliced = copy.deepcopy(model)
        slicing.slice_units(sliced)
        realizable = _traced(sliced, length)[""]
    return Macs(
        dense=dense,
        effective=round(dense - saved),
        head=sum(by_module[f"model.{name}"] for name in heads(model)),
        realizable=realizable,
        tokens=length,
    )


def removes_units(pattern: str) -> bool:
    """Whether whole heads or neurons go, so that the matrices become smaller."""
    return "heads" in pattern or "neurons" in pattern


def halved(model: PreTrainedModel, pattern: str) -> list[Target]:
    """Targets that torch's 2:4 kernels take: two of four kept at most, in tiles of 32×64."""
    fits = re.fullmatch(r"[12]:4", pattern) is not None
    return [t for t in prunable(model) if fits and not t.shape[0] % 32 and not t.shape[1] % 64]


def has_kernel(device: torch.device) -> bool:
    """Whether torch multiplies 2:4 matrices there: in 16 bits, from compute capability 8.0 on."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (8, 0)


def heads(model: PreTrainedModel) -> set[str]:
    """Names of the modules that make a task's or a language model's outputs."""
    names = {name.rpartition(".")[0] for name, _ in head_parameters(model)}
    return names | {n for n, m in model.named_modules() if m is model.get_output_embeddings()}


def _traced(model: PreTrainedModel, length: int) -> dict[str, int]:
    """Multiply-adds by module; the whole is `""`, the model's own modules are below `model`."""
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
    return defaultdict(int, {name: int(found) for name, found in by_module.items()})


def _no_macs(inputs: Any, outputs: Any) -> int:
    return 0


class _Logits(nn.Module):
    """A model as a function of token ids alone, as a tracer wants it."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor) -> Any:
        return self.model(input_ids=ids, return_dict=True).logits


@contextmanager
def _eager(model: PreTrainedModel) -> Iterator[None]:
    """Eager attention, eval mode and no cache while tracing: fvcore has no handler for SDPA."""
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


def trainable(model: PreTrainedModel, groups: list[dict[str, Any]]) -> Trainable:
    """Elements of the tensors in the optimizer's groups, the task's head apart."""
    held = {id(p): p.numel() for group in groups for p in group["params"]}
    head = sum(held.pop(id(p), 0) for _, p in head_parameters(model))
    return Trainable(body=sum(held.values()), head=head)
