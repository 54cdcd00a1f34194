"""Stacked matrices, such as a mixture's experts, as one nn.Linear each.

transformers keeps the experts' matrices of a block in one parameter, (experts, out, in) or
(experts, in, out). `unstack` replaces it by `Unstacked`, which holds an nn.Linear for each matrix
and stands in wherever the architecture multiplies by the parameter. So hooks, masks, counts and
formats see an expert's matrix as any other. `stacked` puts the parameter back for as long as
transformers writes the model.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from bench.core.errors import BenchError

_TRANSPOSED = {
    "JetMoeParallelExperts": False,
    "Llama4TextExperts": True,
    "LongcatFlashExperts": False,
    "RecurrentGemmaRglru": True,
    "Step3p7Experts": False,
}
"""Whether a class stores (matrices, in, out), where it does not say so in `is_transposed`."""


class Product(ABC):
    """Something that torch multiplies by, although it is no tensor."""

    transposed: bool

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Tensor:
        """Computes a product in the forms that transformers writes.

        Raises:
            BenchError: the architecture uses its matrices in another way.
        """
        products = [arg if isinstance(arg, Product) else None for arg in args]
        if not kwargs:
            match func.__name__, products:
                case "linear", [None, Product(transposed=False) as matrices]:
                    return matrices.multiply(args[0])
                case "matmul" | "bmm", [None, Product(transposed=True) as matrices]:
                    return matrices.multiply(args[0])
                case "bmm", [Product(transposed=False) as matrices, None]:
                    return matrices.multiply(args[1].mT).mT
                case "baddbmm", [None, None, Product(transposed=True) as matrices]:
                    return matrices.multiply(args[1]) + args[0]  # type: ignore[no-any-return]
        raise BenchError(f"experts are used in {func.__name__}; only products with them are known")

    @abstractmethod
    def multiply(self, x: Tensor) -> Tensor:
        """Multiplies the rows of `x` by the matrices: (..., in) → (..., out)."""


class Unstacked(Product, nn.Module):
    """The matrices of one stacked parameter, each an nn.Linear named by its number."""

    def __init__(self, stack: nn.Parameter, transposed: bool) -> None:
        super().__init__()
        self.transposed = transposed
        for number, matrix in enumerate(stack.detach().unbind()):
            weight = _copy(matrix, transposed)
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear.weight = nn.Parameter(weight, requires_grad=stack.requires_grad)
            self.add_module(str(number), linear)

    def __len__(self) -> int:
        return len(self._modules)

    def __getitem__(self, index: Any) -> _Chosen:
        return _Chosen(self, index)

    @property
    def linears(self) -> list[nn.Linear]:
        """The matrices in order."""
        return list(self._modules.values())  # type: ignore[arg-type]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the stacked parameter."""
        first = self.linears[0]
        sizes = (first.out_features, first.in_features)
        return (len(self), *(reversed(sizes) if self.transposed else sizes))

    def multiply(self, x: Tensor) -> Tensor:
        """Multiplies (matrices, rows, in), each part by its own matrix."""
        return torch.stack([linear(rows) for linear, rows in zip(self.linears, x, strict=True)])

    def stack(self) -> nn.Parameter:
        """Makes the parameter as the architecture stores it."""
        weights = [linear.weight.detach() for linear in self.linears]
        joined = torch.stack([w.t() if self.transposed else w for w in weights])
        return nn.Parameter(joined, requires_grad=self.linears[0].weight.requires_grad)


class _Chosen(Product):
    """What the architecture takes from a stack: one matrix, or one for each row."""

    def __init__(self, stack: Unstacked, index: Any) -> None:
        self.linears, self.transposed, self.index = stack.linears, stack.transposed, index

    def multiply(self, x: Tensor) -> Tensor:
        """Multiplies (rows, in) by one matrix, or (rows, 1, in) each by its own."""
        if isinstance(self.index, Tensor) and self.index.ndim == 1:
            return _each_its_own(x.squeeze(1), self.index, self.linears).unsqueeze(1)
        made: Tensor = self.linears[int(self.index)](x)
        return made


def _each_its_own(x: Tensor, numbers: Tensor, linears: list[nn.Linear]) -> Tensor:
    """Multiplies row r of (rows, in) by the matrix `numbers[r]`."""
    if x.device.type == "meta":  # no values say who is routed where: all get equal shares
        sizes = [len(x) // len(linears) + (i < len(x) % len(linears)) for i in range(len(linears))]
        order = numbers
    else:
        sizes = numbers.bincount(minlength=len(linears)).tolist()
        order = numbers.argsort(stable=True)
    made = []
    for linear, rows in zip(linears, order.split(sizes), strict=True):
        # In training an expert without tokens is called, too: its gradient is then 0, not missing.
        if len(rows) or torch.is_grad_enabled():
            made.append(linear(x[rows]))
    return torch.cat(made)[order.argsort()]


def unstack(model: nn.Module) -> None:
    """Replaces each stacked parameter by `Unstacked`; outputs and gradients stay the same.

    What other classes stack is left as it is, and `targets.prunable` refuses it by name.
    """
    for owner in list(model.modules()):
        transposed = getattr(owner, "is_transposed", _TRANSPOSED.get(type(owner).__name__))
        if transposed is None:
            continue
        for name, stack in list(owner._parameters.items()):
            if stack is not None and stack.ndim == 3:
                del owner._parameters[name]
                owner.add_module(name, Unstacked(stack, transposed))
        if hasattr(owner, "is_transposed"):
            # The form of the forward pass that asks for no values: it runs on the meta device, too.
            config: Any = owner.config
            config._experts_implementation = "batched_mm"


@contextmanager
def stacked(model: nn.Module) -> Iterator[None]:
    """Gives a plain model its stacked parameters back inside the context.

    One stack at a time is in memory twice.
    """
    undo: list[Callable[[], None]] = []
    try:
        for owner in list(model.modules()):
            for name, module in list(owner._modules.items()):
                if isinstance(module, Unstacked):
                    undo.append(_restack(owner, name, module))
        yield
    finally:
        for step in undo:
            step()


def _restack(owner: nn.Module, name: str, module: Unstacked) -> Callable[[], None]:
    """Puts the parameter in the place of the module, and returns what takes it back."""
    stack = module.stack()
    for linear in module.linears:
        linear.weight.data = stack.new_empty(0)
    del owner._modules[name]
    owner.register_parameter(name, stack)

    def undo() -> None:
        del owner._parameters[name]
        owner.add_module(name, module)
        for linear, matrix in zip(module.linears, stack.detach().unbind(), strict=True):
            linear.weight.data = _copy(matrix, module.transposed)

    return undo


def _copy(matrix: Tensor, transposed: bool) -> Tensor:
    """Returns a contiguous copy of a matrix as (out, in)."""
    stored = matrix.t() if transposed else matrix
    return stored.clone(memory_format=torch.contiguous_format)
