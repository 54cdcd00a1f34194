"""The transformer blocks of a model: all stacks, of encoders and decoders of any depth."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from typing import Any

from torch import Tensor, nn

from bench.core.errors import BenchError


def blocks(model: nn.Module) -> list[nn.Module]:
    """Returns the transformer blocks in the order of the model's definition, each once.

    They are the members of the outermost module lists whose members hold matrices and are more than
    a layer. No config is asked: it has a dozen names for the depth, and some state only one of two.

    Raises:
        BenchError: the model has no such list, or it reads more than text.
    """
    parts = getattr(getattr(model, "config", None), "sub_configs", {})
    senses = [name for name in parts if name.startswith(("vision", "audio", "image", "video"))]
    if senses or getattr(model, "main_input_name", "input_ids") != "input_ids":
        raise BenchError(f"{type(model).__name__} reads more than text; only text models work")
    found = list({id(block): block for block in _inside(model)}.values())
    if not found:
        raise BenchError(f"{type(model).__name__} has no list of transformer blocks")
    return found


def stack(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Returns the one list that holds all blocks of a model and nothing else, and its name.

    Raises:
        BenchError: the blocks lie in several lists, as in encoder-decoders, or one comes twice.
    """
    wanted = blocks(model)
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and list(module) == wanted:
            return name, module
    raise BenchError(f"{type(model).__name__} does not hold its blocks in one list, each once")


def given(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Returns the hidden states that a block is called with."""
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def put_out(output: Any) -> Tensor:
    """Returns the hidden states of what a block returns."""
    hidden: Tensor = output if isinstance(output, Tensor) else output[0]
    return hidden


def handed_on(hidden: Tensor, like: Any) -> Any:
    """Returns hidden states in the form of a block's output."""
    return hidden if isinstance(like, Tensor) else (hidden, *like[1:])


def _inside(module: nn.Module) -> Iterator[nn.Module]:
    children = list(module.children())
    stacks = [child for child in children if isinstance(child, nn.ModuleList) and _is_stack(child)]
    for child in children:
        if stacks and child is stacks[0]:
            # Lists side by side are one depth, as XLM's attentions and feed-forwards are.
            for level in zip_longest(*stacks):
                for member in level:
                    yield from _members(member)
        elif child not in stacks:
            yield from _inside(child)


def _members(member: nn.Module | None) -> Iterator[nn.Module]:
    """Yields a member of a list, or the members of the list that it is."""
    if isinstance(member, nn.ModuleList):
        for inner in member:
            yield from _members(inner)
    elif member is not None:
        yield member


def _is_stack(modules: nn.ModuleList) -> bool:
    """Tells whether a list holds modules that are made of several and hold a matrix."""
    return any(
        parameter.ndim >= 2
        for member in _members(modules)
        for part in member.modules()
        if part is not member and not isinstance(part, nn.Embedding)
        for parameter in part.parameters(recurse=False)
    )
