"""The prunable set (methods/README.md, "Prunable set"), each weight seen as (out, in).

The set holds all linear weights inside the transformer blocks, of nn.Linear and Conv1D alike. It
never holds embeddings, heads, poolers, norms or biases. This module also lists the embeddings,
which no method prunes but a quantizer may round.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

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
        parts: number of logical matrices stacked along `out`: 3 for GPT-2's fused q, k, v.
    """

    name: str
    module: nn.Module
    parts: int = 1

    @property
    def transposed(self) -> bool:
        """Whether the stored tensor is (in, out)."""
        return not isinstance(self.module, (nn.Linear, nn.Embedding))

    @property
    def stored(self) -> Tensor:
        """The weight as the module has it, detached."""
        weight: Tensor = self.module.weight  # type: ignore[assignment]
        return weight.detach()

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight, (out, in)."""
        held: Any = self.module
        if parametrize.is_parametrized(self.module, "weight"):
            held = held.parametrizations.weight  # read the shape without computing the weight
            rows, columns = held.original.shape
        else:
            rows, columns = held.weight.shape
        return (columns, rows) if self.transposed else (rows, columns)

    @property
    def weight(self) -> Tensor:
        """The weight as a contiguous, detached (out, in) tensor; a copy for Conv1D.

        It is contiguous because flat indexing of a transposed view writes to a temporary.
        """
        return normal_form(self.stored, self.transposed)

    @torch.no_grad()
    def write(self, weight: Tensor) -> None:
        """Overwrites the stored weight with `weight`: (out, in)."""
        self.stored.copy_(weight.t() if self.transposed else weight)

    def parametrize(self, parametrization: nn.Module, tensor: str = "weight") -> None:
        """Registers `parametrization`, which maps the stored tensor to the effective stored one."""
        # unsafe: skips the trial call, which would select the mask once in vain.
        parametrize.register_parametrization(self.module, tensor, parametrization, unsafe=True)


def normal_form(stored: Tensor, transposed: bool) -> Tensor:
    """Returns a stored weight as a contiguous (out, in) tensor."""
    return stored.t().contiguous() if transposed else stored


def blocks(model: nn.Module) -> list[nn.Module]:
    """Returns the transformer blocks in order: the first ModuleList of `num_hidden_layers` modules.

    Raises:
        BenchError: the model has no such list.
    """
    depth = getattr(getattr(model, "config", None), "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return list(module)
    raise BenchError(f"{type(model).__name__} has no list of num_hidden_layers={depth} blocks")


def prunable(model: nn.Module) -> list[Target]:
    """Returns all linear weights inside the blocks, in the order of their definition."""
    from transformers.pytorch_utils import Conv1D  # here, so that `plan` starts without it

    inside = {id(module) for block in blocks(model) for module in block.modules()}
    targets = []
    for name, module in model.named_modules():
        if id(module) in inside and isinstance(module, (nn.Linear, Conv1D)):
            targets.append(Target(name, module, _parts(name, module)))
    return targets


def embedding_tables(model: PreTrainedModel) -> list[Target]:
    """Returns all embeddings (tokens, positions, types), and an LM head not tied to one."""
    tables: dict[int, Target] = {}
    output = model.get_output_embeddings()
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding) or module is output:
            # By the parameter, not by its memory: on the meta device there is none.
            tables.setdefault(id(module.weight), Target(name, module))
    return list(tables.values())


def _parts(name: str, module: nn.Module) -> int:
    if not isinstance(module, nn.Linear) and name.endswith("c_attn"):
        # By name: once heads are sliced away (bench.weights.slicing), the shape does not show it.
        return 2 if "crossattention" in name else 3
    return 1


def head_parameters(model: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter]]:
    """Yields the parameters of a classification head: those outside the base model.

    A language model's head is not included: it was pretrained, tied or not.
    """
    known = {id(p) for p in model.base_model.parameters()}
    output = model.get_output_embeddings()
    if output is not None:
        known |= {id(p) for p in output.parameters()}
    for name, parameter in model.named_parameters():
        if id(parameter) not in known:
            yield name, parameter


def freeze(model: PreTrainedModel, head: bool = True) -> None:
    """Stops all parameters from training, except those of the head if `head` is true."""
    model.requires_grad_(False)
    if head:
        for _, parameter in head_parameters(model):
            parameter.requires_grad_(True)


def merge(model: nn.Module) -> None:
    """Replaces each parametrized weight by its present value, so that all modules are plain."""
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
    """Returns the names of the modules that compute a task's or a language model's outputs."""
    names = {name.rpartition(".")[0] for name, _ in head_parameters(model)}
    return names | {n for n, m in model.named_modules() if m is model.get_output_embeddings()}
