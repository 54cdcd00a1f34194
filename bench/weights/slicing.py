"""Heads and FFN neurons as units: the weights that each owns, and the removal of zeroed units.

A method that prunes heads or neurons leaves zeros. `slice_units` then makes the matrices smaller
and notes the remaining units in `model.config.sliced`, so that `shrink` can rebuild the shapes
(methods/README.md, "Heads and neurons"). `bench.weights.dead` calls it, once whole blocks are out.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bench.core.errors import BenchError, one_line
from bench.weights.blocks import blocks
from bench.weights.inputs import some_inputs
from bench.weights.side_branch import Branch
from bench.weights.targets import Target, prunable

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Names of modules: those that make q, k, v; the reader of the heads; those that make the neurons;
# the reader of the neurons.
_LAYOUTS = (
    (
        ("attention.self.query", "attention.self.key", "attention.self.value"),
        "attention.output.dense",
        ("intermediate.dense",),
        "output.dense",
    ),
    (("attn.c_attn",), "attn.c_proj", ("mlp.c_fc",), "mlp.c_proj"),
    (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "self_attn.out_proj",
        ("fc1",),
        "fc2",
    ),
    (
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "self_attn.o_proj",
        ("mlp.gate_proj", "mlp.up_proj"),
        "mlp.down_proj",
    ),
)

# Numbers that an attention module keeps of all its heads, query or key, or of their outputs.
_OF_ALL_HEADS = (
    "num_attention_heads",
    "num_heads",
    "n_heads",
    "num_key_value_heads",
    "num_kv_heads",
    "all_head_size",
    "split_size",
    "embed_dim",
)

TOLERANCE = 1e-4
"""Of the largest output: what rounding in float32 may move when zeros leave a sum."""


NEURON_MULTIPLE = 8
"""A slice keeps a multiple of so many neurons, since products of other widths are slow: on a CPU,
1,229 of 1,536 neurons take 0.98 of the time, 1,232 take 0.83 (tests/benchmarks/widths.py)."""

Kept = Sequence[tuple[Sequence[int], Sequence[int]]]
"""The heads and neurons of each block that remain."""


@dataclass(frozen=True)
class Units:
    """The heads of one block, or its FFN neurons. Each owns an equal share of rows and columns.

    Attributes:
        count: number of units. Query heads that share a key head are one unit.
        rows: the matrices whose outputs (and biases) the units are, with the range of rows of
            each logical matrix.
        columns: the matrix that reads those outputs.
        multiple: a slice keeps a multiple of so many units, or all.
    """

    count: int
    rows: tuple[tuple[Target, slice], ...]
    columns: Target
    multiple: int = 1

    def indices(self, chosen: Sequence[int] | Tensor, area: slice) -> Tensor:
        """Returns the indices of the rows (or columns) that the chosen units own in `area`.

        Returns:
            (chosen · share,), unit by unit, ascending within each.
        """
        share = (area.stop - area.start) // self.count
        if not isinstance(chosen, Tensor):
            chosen = torch.tensor(list(chosen), dtype=torch.long)
        first: Tensor = area.start + share * chosen
        return (first[:, None] + torch.arange(share, device=first.device)).flatten()

    @property
    def width(self) -> slice:
        """The range of all columns of `columns`."""
        return slice(0, self.columns.shape[1])

    def rounded(self, left: int) -> int:
        """Returns how many units a slice keeps for `left` of them."""
        return min(-(-left // self.multiple) * self.multiple, self.count)

    def to_keep(self) -> list[int]:
        """Returns the units that a slice keeps: the living ones, and dead ones up to `rounded`."""
        living = self.alive()
        dead = sorted(set(range(self.count)).difference(living))
        return sorted(living + dead[: self.rounded(len(living)) - len(living)])

    def alive(self) -> list[int]:
        """Returns the units that may change an output; at least one.

        A unit is dead when nothing reads it, or when all its rows and biases are zero: attention
        and the usual activations map zero to zero.
        """
        read = self.columns.weight.view(-1, self.count, self.width.stop // self.count)
        living = read.ne(0).any(dim=2).any(dim=0)
        produced = torch.zeros_like(living)
        for target, area in self.rows:
            rows = target.weight[area].ne(0).any(dim=1)
            if (bias := bias_of(target)) is not None:
                rows = rows | bias[area].ne(0)
            produced |= rows.view(self.count, -1).any(dim=1)
        kept: list[int] = (living & produced).nonzero()[:, 0].tolist()
        return kept or [0]


def units(model: PreTrainedModel) -> list[tuple[Units, Units]]:
    """Returns the heads and the neurons of each block, in order.

    Raises:
        BenchError: the layout of a block is unknown, or the model has low-rank branches. A branch
            still reads and writes where the weight is zero.
    """
    if any(isinstance(module, Branch) for module in model.modules()):
        raise BenchError("a model with low-rank branches cannot be sliced")
    names = {id(module): name for name, module in model.named_modules()}
    targets = {t.name: t for t in prunable(model)}
    return [_units(model, names[id(block)], targets) for block in blocks(model)]


def _units(model: PreTrainedModel, block: str, targets: dict[str, Target]) -> tuple[Units, Units]:
    for qkv, reader, makers, output in _LAYOUTS:
        paths = (*qkv, reader, *makers, output)
        if not all(f"{block}.{path}" in targets for path in paths):
            continue
        size = head_size(model)
        heads = tuple(part for path in qkv for part in _parts(targets[f"{block}.{path}"]))
        sizes = [area.stop - area.start for _, area in heads]
        # Multi-query attention has one matrix of unequal parts, linear attention other heads.
        if len(sizes) == 3 and all(n >= size and n % size == 0 for n in sizes):
            neurons = tuple(part for path in makers for part in _parts(targets[f"{block}.{path}"]))
            last = targets[f"{block}.{output}"]
            reads = targets[f"{block}.{reader}"]
            return (
                Units(sizes[1] // size, heads, reads),
                Units(last.shape[1], neurons, last, NEURON_MULTIPLE),
            )
    raise BenchError(f"{type(model).__name__}: cannot find heads and neurons of {block}")


def _parts(target: Target) -> list[tuple[Target, slice]]:
    rows = target.shape[0] // target.parts
    return [(target, slice(p * rows, (p + 1) * rows)) for p in range(target.parts)]


def head_size(model: PreTrainedModel) -> int:
    """Returns the number of outputs of one head."""
    config = model.config
    stated = getattr(config, "head_dim", None)
    return int(stated or config.hidden_size // config.num_attention_heads)


def slice_units(model: PreTrainedModel) -> None:
    """Removes dead heads and neurons from the matrices; logits stay the same up to rounding.

    As many dead neurons stay as make the number of neurons a multiple of `NEURON_MULTIPLE`.
    `model.config.sliced` then holds the number of heads and neurons that remain in each block.

    Raises:
        BenchError: as `units`, or the logits would not stay the same; the model is as it was.
    """
    kept = to_keep(model)
    check(model, kept)
    keep(model, kept)


def to_keep(model: PreTrainedModel) -> Kept:
    """Returns the heads and neurons of each block that a slice keeps.

    Raises:
        BenchError: as `units`.
    """
    return [(heads.to_keep(), neurons.to_keep()) for heads, neurons in units(model)]


def moved(before: Tensor, after: Tensor) -> float:
    """Returns how far an output has moved, as a fraction of the largest."""
    return float((after - before).abs().max() / before.abs().max().clamp(min=1e-30))


def check(model: PreTrainedModel, kept: Kept) -> None:
    """Tries on a copy, in float32, whether a model computes the same with the kept units alone.

    Architectures may hold sizes, or norms over all heads, that this module does not know. Their
    slice fails, or is another model.

    Raises:
        BenchError: it fails, or an output moves by more than `TOLERANCE` of the largest.
    """
    name = type(model).__name__
    twin: Any = copy.deepcopy(model).float().eval()
    inputs = some_inputs(twin)
    try:
        with torch.no_grad():
            before = twin(**inputs)[0]
            keep(twin, kept)
            after = twin(**inputs)[0]
    except Exception as error:  # whatever an architecture's code raises on sizes it does not expect
        raise BenchError(
            f"{name} cannot be sliced: its forward pass fails: {one_line(error)}"
        ) from None
    shift = moved(before, after)
    if not shift <= TOLERANCE:
        raise BenchError(
            f"{name} cannot be sliced: without its dead heads and neurons it computes something "
            f"else (outputs move by {shift:.1e} of the largest, {TOLERANCE:.0e} is allowed)"
        )


def shrink(model: PreTrainedModel) -> None:
    """Gives a newly made model the shapes that its `config.sliced` states.

    Raises:
        BenchError: it states units that the model does not have.
    """
    left = model.config.sliced
    pairs = list(zip(left["heads"], left["neurons"], strict=True))
    whole = [(heads.count, neurons.count) for heads, neurons in units(model)]
    fits = [0 < h <= hs and 0 < n <= ns for (h, n), (hs, ns) in zip(pairs, whole, strict=True)]
    if not all(fits):
        raise BenchError(
            f"config.sliced states {pairs} heads and neurons, the whole model has {whole}"
        )
    keep(model, [(range(h), range(n)) for h, n in pairs])


def keep(model: PreTrainedModel, kept: Kept) -> None:
    """Leaves only the given heads and neurons of each block, and states it in the config."""
    for (heads, neurons), (some_heads, some_neurons) in zip(units(model), kept, strict=True):
        _take(heads, some_heads)
        _take(neurons, some_neurons)
        attention = model.get_submodule(heads.rows[0][0].name.rpartition(".")[0])
        for name in _OF_ALL_HEADS:
            if isinstance(value := getattr(attention, name, None), int):
                setattr(attention, name, value * len(some_heads) // heads.count)
    model.config.sliced = {
        "heads": [len(heads) for heads, _ in kept],
        "neurons": [len(neurons) for _, neurons in kept],
    }


def _take(group: Units, kept: Sequence[int]) -> None:
    modules = {id(target.module): target for target, _ in group.rows}
    for key, target in modules.items():
        areas = [area for t, area in group.rows if id(t.module) == key]
        rows = torch.cat([group.indices(kept, area) for area in areas])
        bias = bias_of(target)
        _replace(target, target.weight[rows], None if bias is None else bias[rows])
    columns = group.indices(kept, group.width)
    _replace(group.columns, group.columns.weight[:, columns], bias_of(group.columns))


def bias_of(target: Target) -> Tensor | None:
    """Returns the bias of a target's module, detached, if it has one."""
    bias = target.module.bias
    return bias.detach() if isinstance(bias, Tensor) else None


def _replace(target: Target, weight: Tensor, bias: Tensor | None) -> None:
    """Replaces the weight of a module by one of another shape (out, in), and its bias (out,)."""
    module: Any = target.module
    stored = (weight.t() if target.transposed else weight).contiguous()
    module.weight = nn.Parameter(stored, requires_grad=module.weight.requires_grad)
    if bias is not None:
        module.bias = nn.Parameter(bias.clone(), requires_grad=module.bias.requires_grad)
    names = ("nf", "nx") if target.transposed else ("out_features", "in_features")
    for name, size in zip(names, weight.shape, strict=True):
        setattr(module, name, size)
