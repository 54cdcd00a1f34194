"""What is dead in a model, blocks, heads and neurons, and the way to take it out.

A method that drops a block zeroes its matrices and their biases (`silence`). Where blocks add to a
residual stream, such a block hands on what it is given. `remove` takes silent blocks out of the
model, whose config then states a smaller depth, and dead heads and neurons out of the other blocks
(`bench.weights.slicing`).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from bench.core.errors import BenchError, one_line
from bench.weights import slicing
from bench.weights.blocks import blocks, given, put_out, stack
from bench.weights.inputs import some_inputs
from bench.weights.side_branch import Branch
from bench.weights.targets import Target, prunable, targets_of
from bench.weights.unstacked import unstack

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def lost_blocks(model: nn.Module, share: float) -> int:
    """Returns how many blocks a share of them is: ⌊L·s⌋, and one remains."""
    depth = len(blocks(model))
    return min(math.floor(depth * share + 1e-6), depth - 1)


def silence(model: PreTrainedModel, numbers: Collection[int]) -> None:
    """Zeroes the matrices of the blocks with these numbers, and the biases of these matrices."""
    for number, inside in enumerate(_matrices(model)):
        if number in numbers:
            _silence(inside)


@torch.no_grad()
def _silence(targets: Iterable[Target]) -> None:
    for target in targets:
        target.stored.zero_()
        if isinstance(bias := target.module.bias, Tensor):
            bias.zero_()


def silent(model: PreTrainedModel) -> list[int]:
    """Returns the numbers of the blocks whose matrices and biases are all zero.

    There is none in a model with low-rank branches: a branch still writes where the weight is zero.
    If all are silent, the first one counts as living.
    """
    if any(isinstance(module, Branch) for module in model.modules()):
        return []
    found = [n for n, inside in enumerate(_matrices(model)) if inside and not _alive(inside)]
    return found if len(found) < len(blocks(model)) else found[1:]


def _alive(targets: Sequence[Target]) -> bool:
    tensors = [t for target in targets for t in (target.stored, target.module.bias)]
    return any(isinstance(t, Tensor) and bool(t.detach().ne(0).any()) for t in tensors)


def _matrices(model: PreTrainedModel) -> list[list[Target]]:
    """Returns the targets of each block."""
    return targets_of(blocks(model), prunable(model))


def remove(model: PreTrainedModel) -> None:
    """Takes silent blocks, and dead heads and neurons, out; logits stay the same up to rounding.

    A model that has lost nothing but blocks is an ordinary model of a smaller depth.

    Raises:
        BenchError: the model cannot be made smaller, or its logits would not stay the same. In the
            first step, over blocks, it is as it was.
    """
    gone = silent(model)
    if not gone:
        slicing.slice_units(model)
        return
    check_drop(model, gone)
    drop(model, gone)
    if any(group.count > len(some) for group, some in _kept(model, required=False)):
        slicing.slice_units(model)


def removable(model: PreTrainedModel) -> int:
    """Counts the elements that `remove` would take out: blocks, rows with their biases, columns.

    Raises:
        BenchError: as `remove`.
    """
    gone = silent(model)
    removed = sum(p.numel() for number in gone for p in blocks(model)[number].parameters())
    if gone:
        check_drop(model, gone)
    found = _kept(model, gone, required=not gone)
    dead = [(group, group.count - len(some)) for group, some in found]
    if any(n for _, n in dead):
        slicing.check(model, slicing.to_keep(model))
    for group, n in dead:
        for target, area in group.rows:
            width = target.shape[1] + (slicing.bias_of(target) is not None)
            removed += n * (area.stop - area.start) // group.count * width
        removed += n * group.width.stop // group.count * group.columns.shape[0]
    return removed


def _kept(
    model: PreTrainedModel, gone: Collection[int] = (), required: bool = True
) -> list[tuple[slicing.Units, Sequence[int]]]:
    """Returns all heads and neurons of the blocks that are not gone, with those that a slice keeps.

    Raises:
        BenchError: as `slicing.units`, if they are required.
    """
    try:
        pairs = slicing.units(model)
    except BenchError:
        if required:
            raise
        return []  # GPT-NeoX: blocks can go, its heads are not known
    return [
        (group, group.to_keep())
        for number, pair in enumerate(pairs)
        if number not in gone
        for group in pair
    ]


def take_shares(
    model: PreTrainedModel, heads: float, neurons: float, lost: float, exactly: bool = False
) -> None:
    """Removes the given shares (0 … 1) of heads, neurons and blocks; one of each remains.

    It does not matter which ones go: the function serves to count shapes. A slice rounds the
    number of neurons that remain; `exactly` does not.
    """
    if lost:
        depth = len(blocks(model))
        drop(model, range(depth - lost_blocks(model, lost), depth))
    if heads or neurons:
        kept = [
            (_left(h, heads, exactly), _left(n, neurons, exactly)) for h, n in slicing.units(model)
        ]
        slicing.keep(model, kept)


def _left(group: slicing.Units, share: float, exactly: bool) -> range:
    left = group.count - lost_units(group, share)
    return range(left if exactly else group.rounded(left))


def lost_units(group: slicing.Units, share: float) -> int:
    """Returns how many heads or neurons a share of them is, rounded; one remains."""
    return min(round(share * group.count), group.count - 1)


def drop(model: PreTrainedModel, gone: Collection[int]) -> None:
    """Takes blocks out of the model and states the new depth in its config.

    Raises:
        BenchError: the blocks do not lie in one list, or the config states another depth.
    """
    name, whole = _depth(model)
    config: Any = model.config
    depth = len(whole)
    kept = [number for number in range(depth) if number not in gone]
    for key, value in list(vars(config).items()):
        # One entry a layer: layer_types, no_rope_layers, …
        if "layer" in key and isinstance(value, list) and len(value) == depth:
            setattr(config, key, [value[number] for number in kept])
    config.num_hidden_layers = len(kept)
    if sliced := getattr(config, "sliced", None):
        config.sliced = {key: [sizes[number] for number in kept] for key, sizes in sliced.items()}
    left = nn.ModuleList(whole[number] for number in kept)
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent), leaf, left)
    for number, block in enumerate(left):
        module: Any
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = number  # its place in a cache


def _depth(model: PreTrainedModel) -> tuple[str, nn.ModuleList]:
    """Returns the list of all blocks, whose length the config states, and its name."""
    name, whole = stack(model)
    if getattr(model.config, "num_hidden_layers", None) != len(whole):
        kind = type(model).__name__
        raise BenchError(f"{kind} cannot lose blocks: its config does not state its {len(whole)}")
    return name, whole


def check_silence(model: PreTrainedModel) -> None:
    """Tries on a copy of the first block whether it hands on what it is given, once it is silent.

    Its norms and biases are made others than they are: a norm that has learned nothing changes
    nothing the second time, so that a block whose norm follows the sum would look right.

    Raises:
        BenchError: it does not, or the model's blocks do not lie in one list, so that no block can
            be dropped.
    """
    name, whole = _depth(model)
    block: Any = whole[0]
    twin: Any = copy.deepcopy(block).eval()
    for p in twin.parameters():
        if p.ndim == 1:
            p.detach().add_(torch.linspace(0.5, 1.5, len(p), device=p.device))
    inside = (target.name.removeprefix(f"{name}.0.") for target in _matrices(model)[0])
    _silence(Target(inner, twin.get_submodule(inner)) for inner in inside)
    found = []

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = twin(*args, **kwargs)
        found.append(slicing.moved(given(args, kwargs), put_out(output)))
        return output

    kind, own = type(model).__name__, block.__dict__.get("forward")
    try:
        block.forward = forward
        with torch.no_grad():
            model(**some_inputs(model))
    except Exception as error:  # whatever an architecture's code raises
        raise BenchError(f"{kind} cannot lose blocks: {one_line(error)}") from None
    finally:
        del block.forward
        if own is not None:
            block.forward = own
    if not max(found) <= slicing.TOLERANCE:
        raise BenchError(
            f"{kind} cannot lose blocks: a block without weights is not the identity, as where "
            f"norms follow the sum"
        )


def check_drop(model: PreTrainedModel, gone: Collection[int]) -> None:
    """Tries whether a model made anew from the smaller config computes the same.

    Raises:
        BenchError: it cannot be made, or an output moves by more than `slicing.TOLERANCE` of the
            largest.
    """
    name = type(model).__name__
    twin: Any = copy.deepcopy(model).float().eval()
    inputs = some_inputs(twin)
    try:
        with torch.no_grad():
            before = twin(**inputs)[0]
            drop(twin, gone)
            after = _made_anew(twin)(**inputs)[0]
    except BenchError:
        raise
    except Exception as error:  # whatever an architecture's code raises on a depth it does not know
        raise BenchError(
            f"{name} cannot lose blocks: no model of its config: {one_line(error)}"
        ) from None
    moved = slicing.moved(before, after)
    if not moved <= slicing.TOLERANCE:
        raise BenchError(
            f"{name} cannot lose blocks: made anew without them it computes something else "
            f"(outputs move by {moved:.1e} of the largest)"
        )


def _made_anew(model: Any) -> Any:
    """Makes a model as whoever loads it will: from what its config writes."""
    from transformers.initialization import no_init_weights

    config = type(model.config).from_dict(copy.deepcopy(model.config.to_dict()))
    with no_init_weights():
        made = type(model)(config)
    unstack(made)
    if getattr(config, "sliced", None):
        slicing.shrink(made)
    made.to(model.device).load_state_dict(model.state_dict(), assign=True)
    made.tie_weights()
    return made.eval()
