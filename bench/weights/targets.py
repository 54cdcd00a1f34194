"""The prunable set (methods/README.md, "Prunable set"), each weight seen as (out, in).

The set holds all linear weights inside the transformer blocks, of nn.Linear and Conv1D alike,
except the routers of mixtures of experts. It never holds embeddings, heads, poolers, norms or
biases. This module also lists the embeddings, which no method prunes but a quantizer may round.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from bench.core.errors import BenchError
from bench.weights.blocks import blocks

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
    def held(self) -> Tensor:
        """The parameter itself, whatever a parametrization makes of it."""
        module: Any = self.module
        if parametrize.is_parametrized(self.module, "weight"):
            module = module.parametrizations.weight
            return module.original  # type: ignore[no-any-return]
        return module.weight  # type: ignore[no-any-return]

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight, (out, in)."""
        rows, columns = self.held.shape
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


def prunable(model: nn.Module) -> list[Target]:
    """Returns all prunable weights inside the blocks, in the order of their definition.

    Raises:
        BenchError: the blocks hold a matrix that is neither prunable nor known to stay dense.
    """
    return _collect(model)[0]


def targets_of(order: Sequence[nn.Module], targets: Sequence[Target]) -> list[list[Target]]:
    """Returns the targets inside each of some blocks."""
    by_module = {target.module: target for target in targets}
    return [[by_module[m] for m in block.modules() if m in by_module] for block in order]


def block_elements(model: nn.Module) -> int:
    """Counts the elements of all matrices inside the blocks: the prunable ones and the routers.

    Raises:
        BenchError: as `prunable`.
    """
    targets, routers = _collect(model)
    return sum(math.prod(t.shape) for t in targets) + sum(p.numel() for p in routers)


def _collect(model: nn.Module) -> tuple[list[Target], list[nn.Parameter]]:
    """Returns the prunable weights and those of routers: together all matrices of the blocks."""
    from transformers.pytorch_utils import Conv1D  # here, so that `plan` starts without it

    inside = {id(module) for block in blocks(model) for module in block.modules()}
    targets: dict[int, Target] = {}
    routers: list[nn.Parameter] = []
    last = ""
    for name, module in model.named_modules():
        if id(module) not in inside or (last and name.startswith(f"{last}.")):
            continue  # what lies under a linear layer was added by a method
        linear = isinstance(module, (nn.Linear, Conv1D))
        if linear:
            last = name
        if linear and not _routes(name, module):
            target = Target(name, module, _parts(name, module))
            first = targets.setdefault(id(target.held), target)
            if first is not target:
                raise BenchError(f"{name} and {first.name} share one weight; prune no such model")
            continue
        for leaf, parameter in module.named_parameters(recurse=False):
            if leaf == "weight" and parameter.ndim == 2 and _routes(name, module):
                routers.append(parameter)
            elif not _is_no_matrix(module, leaf, parameter):
                shape = tuple(parameter.shape)
                raise BenchError(
                    f"{type(model).__name__}: {name}.{leaf} {shape} is a weight of "
                    f"{type(module).__name__} that no method can prune; the model is not supported"
                )
    return list(targets.values()), routers


def _routes(name: str, module: nn.Module) -> bool:
    """Tells whether a module belongs to a router, which everybody leaves dense.

    A router has a row for each expert. Pruning it saves next to nothing and sends tokens astray.
    """
    named = {"router", "gate", "shared_expert_gate"} & set(name.split("."))
    return bool(named) or "Router" in type(module).__name__


def _is_no_matrix(module: nn.Module, name: str, parameter: nn.Parameter) -> bool:
    """Tells whether a parameter of a block multiplies no vector of hidden states as a matrix does.

    Such are vectors, tables of positions, norms, biases, the numbers of a state-space layer, and
    convolutions that see each channel alone.
    """
    if sum(size > 1 for size in parameter.shape) < 2 or isinstance(module, nn.Embedding):
        return True
    if isinstance(module, (nn.Conv1d, nn.Conv2d)):
        return module.groups == module.in_channels
    return "Norm" in type(module).__name__ or "bias" in name or name in ("A_log", "D")


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
