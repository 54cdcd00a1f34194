"""Which parameters learn at a rate that falls with the model's width (methods/README.md).

Under Adam every number moves by about its rate. A matrix that reads the hidden features adds up as
many moves as there are features, so its rate goes with 1 / width (arXiv 2203.03466, table 3). What
does not add up over the width keeps its rate: embeddings, biases, norms, scores and gates.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BASE_WIDTH = 768
"""The hidden size that learning rates are stated for: BERT-base, GPT-2 small."""


def width_factor(model: PreTrainedModel) -> float:
    """Returns what the rate of a matrix that reads hidden features is multiplied by."""
    return BASE_WIDTH / int(model.config.hidden_size)


def wide(model: nn.Module) -> set[int]:
    """Returns the ids of the parameters whose number of inputs grows with the width.

    Of the model's own parameters these are the weights of linear modules, convolutions and
    routers, and stacks of matrices, as experts are. What a method adds says so itself: a module's
    `wide_inputs` names those of its parameters; the others do not scale.
    """
    tables = {id(p) for m in model.modules() if isinstance(m, nn.Embedding) for p in _of(m)}
    added = {id(part) for m in model.modules() for part in _parametrizations(m)}
    found = set()
    for module in model.modules():
        for name in getattr(module, "wide_inputs", ()):
            found |= {id(p) for p in _of(getattr(module, name))}
        depthwise = isinstance(module, _ConvNd) and module.groups == module.in_channels
        if id(module) not in added and not depthwise:
            # A plain matrix of another name is a table of positions, of states or of biases.
            found |= {id(p) for name, p in _own(module) if _is_matrix(name, p)}
    return found - tables


def _is_matrix(name: str, parameter: Tensor) -> bool:
    return parameter.ndim > 2 or (parameter.ndim == 2 and name == "weight")


def _of(held: nn.Module | nn.Parameter) -> Iterator[Tensor]:
    """Yields the parameters of a module with their originals, or the parameter itself."""
    if isinstance(held, nn.Module):
        yield from held.parameters()
    else:
        yield held


def _own(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yields a module's own parameters, the parametrized ones by the name that they had."""
    yield from module.named_parameters(recurse=False)
    for name, held in _parametrized(module):
        yield name, held.original


def _parametrizations(module: nn.Module) -> Iterator[nn.Module]:
    """Yields what maps a module's parameters to others, with all that it is made of."""
    for _, held in _parametrized(module):
        for part in held:
            yield from part.modules()


def _parametrized(module: nn.Module) -> Iterator[tuple[str, Any]]:
    if parametrize.is_parametrized(module):
        held: Any = module.parametrizations
        yield from held.items()
