"""The prunable set, and every weight of it seen as (out, in), nn.Linear and Conv1D alike.

Beside it the embeddings, which no method prunes and a quantizer may round.

The prunable set is all linear weights inside the transformer blocks; never embeddings, heads,
poolers, norms or biases (methods/README.md, prunable set).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers.pytorch_utils import Conv1D

from bench.core.errors import BenchError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Target:
    """One prunable matrix, or an embedding.

    Attributes:
        name: the module's name in the model.
        module: the nn.Linear or nn.Embedding, which store (out, in), or Conv1D, which stores
            (in, out). An embedding has its hidden dimension as `in`.
        parts: how many logical matrices are stacked along `out`: 3 for GPT-2's fused q, k, v.
    """

    name: str
    module: nn.Module
    parts: int = 1

    @property
    def transposed(self) -> bool:
        """Whether the stored tensor is (in, out)."""
        return isinstance(self.module, Conv1D)

    @property
    def stored(self) -> Tensor:
        """The weight as the module has it, detached."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight.detach()

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        held: Any = self.module
        if parametrize.is_parametrized(self.module, "weight"):
            held = held.parametrizations.weight  # a shape is no reason to compute the weight
            rows, columns = held.original.shape
        else:
            rows, columns = held.weight.shape
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def weight(self) -> Tensor:
        """The weight as a contiguous, detached (out, in) tensor; a copy for Conv1D.

        Contiguous because flat indexing of a transposed view writes to a temporary.
        """
        return normal_form(self.stored, self.transposed)

    @torch.no_grad()
    def write(self, weight: Tensor) -> None:
        """Overwrites the stored weight with `weight`: (out, in)."""
        self.stored.copy_(weight.t() if self.transposed else weight)

    def parametrize(self, parametrization: nn.Module, tensor: str = "weight") -> None:
        """Registers `parametrization`, which maps the stored tensor to the effective stored one."""
        # unsafe: skip the trial call, which would run the mask selection once for nothing.
        parametrize.register_parametrization(self.module, tensor, parametrization, unsafe=True)


def normal_form(stored: Tensor, transposed: bool) -> Tensor:
    """Returns a stored weight as contiguous (out, in)."""
    return stored.t().contiguous() if transposed else stored


def blocks(model: nn.Module) -> list[nn.Module]:
    """Returns the transformer blocks: the one ModuleList as long as the config has layers.

    Raises:
        BenchError: no such list.
    """
    depth = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return list(module)
    raise BenchError(f"{type(model).__name__} has no list of num_hidden_layers={depth} blocks")


def prunable(model: nn.Module) -> list[Target]:
    """Returns all linear weights inside the blocks, in forward order of definition."""
    inside = {id(module) for block in blocks(model) for module in block.modules()}
    found = []
    for name, module in model.named_modules():
        if id(module) in inside and isinstance(module, (nn.Linear, Conv1D)):
            found.append(Target(name, module, _parts(name, module)))
    return found


def embedding_tables(model: PreTrainedModel) -> list[Target]:
    """Returns all embeddings (tokens, positions, types), and an LM head that is not tied."""
    found: dict[int, Target] = {}
    output = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) or module is output:
            # By the parameter, not by its memory: on the meta device there is none.
            found.setdefault(id(module.weight), Target(name, module))
    return list(found.values())


def _parts(name: str, module: nn.Module) -> int:
    if isinstance(module, Conv1D) and name.endswith("c_attn"):
        # By name: without some of its heads (bench.weights.slicing) its shape no longer tells.
        return 2 if "crossattention" in name else 3
    return 1


def head_parameters(model: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters of a classification head: what lies outside the base model.

    A language model's head is none: it belongs to what was pretrained, tied or not.
    """
    known = {id(p) for p in model.base_model.parameters()}
    output = model.get_output_embeddings()
    if output is not None:
        known |= {id(p) for p in output.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in known:
            yield name, parameter


def freeze(model: PreTrainedModel, head: bool = True) -> None:
    """Stops every parameter from training, but for the head's when `head` is true."""
    model.requires_grad_(False)
    if head:
        for _, parameter in head_parameters(model):
            parameter.requires_grad_(True)


def merge(model: nn.Module) -> None:
    """Replaces every parametrized weight by its present value; what is left are plain modules."""
    training = model.training
    model.eval()
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                with torch.no_grad():
                    parametrize.remove_parametrizations(module, name, leave_parametrized=True)
                    # A masked negative weight is −0.0; in a file zeros should look alike.
                    getattr(module, name).add_(0.0)
    model.train(training)


def head_modules(model: PreTrainedModel) -> set[str]:
    """Names of the modules that make a task's or a language model's outputs."""
    names = {name.rpartition(".")[0] for name, _ in head_parameters(model)}
    return names | {n for n, m in model.named_modules() if m is model.get_output_embeddings()}
