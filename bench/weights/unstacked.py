"""Stacked matrices, such as a mixture's experts, as one nn.Linear each.

transformers keeps the experts' matrices of a block in one parameter, (experts, out, in) or
(experts, in, out). `unstack` replaces it by `Unstacked`, which holds an nn.Linear for each matrix
and stands in wherever the architecture multiplies by the parameter. So hooks, masks, counts and
formats see an expert's matrix as any other. `restack` puts the parameter back; `unstacked` and
`stacked` change a model's form for as long as a context lasts.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from bench.core.errors import BenchError
from bench.weights.side_branch import Branch

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


class Home(NamedTuple):
    """What the owner of a stack had, to be put back.

    Attributes:
        stack: the parameter itself, without values: whoever holds it will find them in it again.
        order: names of the owner's parameters.
        implementation: how the config had the experts computed, where it says so.
    """

    stack: nn.Parameter
    order: tuple[str, ...]
    implementation: str | None


class Unstacked(Product, nn.Module):
    """The matrices of one stacked parameter, each an nn.Linear named by its number."""

    def __init__(self, home: Home, transposed: bool) -> None:
        super().__init__()
        self.transposed, self.home = transposed, home
        stack = home.stack
        for number, matrix in enumerate(stack.detach().unbind()):
            weight = _copy(matrix, transposed)
            linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            linear.weight = nn.Parameter(weight, requires_grad=stack.requires_grad)
            self.add_module(str(number), linear)
        stack.data = stack.new_empty(0)

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


def stacks(model: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Parameter, bool]]:
    """Yields each stacked parameter's owner, its name there, itself, and whether it is transposed.

    What other classes stack is not known, and `targets.prunable` refuses it by name.
    """
    for owner in list(model.modules()):
        transposed = getattr(owner, "is_transposed", _TRANSPOSED.get(type(owner).__name__))
        if transposed is None:
            continue
        for name, stack in list(owner._parameters.items()):
            if stack is not None and stack.ndim == 3:
                yield owner, name, stack, transposed


def unstack(model: nn.Module) -> None:
    """Replaces each stacked parameter by `Unstacked`; outputs and gradients stay the same."""
    orders: dict[nn.Module, tuple[str, ...]] = {}
    made: dict[nn.Parameter, Unstacked] = {}  # two owners may share a stack
    for owner, name, stack, transposed in list(stacks(model)):
        order = orders.setdefault(owner, tuple(owner._parameters))
        config: Any = owner.config if hasattr(owner, "is_transposed") else None
        if stack not in made:
            home = Home(stack, order, config and config._experts_implementation)
            made[stack] = Unstacked(home, transposed)
        del owner._parameters[name]
        owner.add_module(name, made[stack])
    for owner in orders:
        if hasattr(owner, "is_transposed"):
            # The form of the forward pass that asks for no values: it runs on the meta device, too.
            config = owner.config
            config._experts_implementation = "batched_mm"


def restack(model: nn.Module) -> None:
    """Puts each stacked parameter back: the same object, with the values of its matrices.

    Raises:
        BenchError: an expert has a side branch, for which the architecture has no place.
    """
    check_plain_experts(model)
    for owner in list(model.modules()):
        for name, module in list(owner._modules.items()):
            if isinstance(module, Unstacked):
                stack, order, implementation = module.home
                stack.data = module.stack().data
                del owner._modules[name]
                owner.register_parameter(name, stack)
                here = dict(owner._parameters)
                owner._parameters.clear()
                owner._parameters.update({n: here[n] for n in order if n in here})
                if hasattr(owner, "is_transposed"):
                    config: Any = owner.config
                    config._experts_implementation = implementation


def check_plain_experts(model: nn.Module) -> None:
    """Refuses experts that cannot be stacked.

    Raises:
        BenchError: an expert has a side branch, for which the architecture has no place.
    """
    for name, module in model.named_modules():
        if isinstance(module, Unstacked) and any(isinstance(m, Branch) for m in module.modules()):
            raise BenchError(f"{name}: a low-rank branch beside an expert cannot be saved")


@contextmanager
def unstacked(model: nn.Module) -> Iterator[None]:
    """Takes a model's stacks apart inside the context; one that has none stays as it is."""
    ours = next(stacks(model), None) is not None
    if ours:
        unstack(model)
    try:
        yield
    finally:
        if ours:
            restack(model)


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
