"""A method: a way to make a model sparse. `methods/TEMPLATE.py` is a commented example."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

from pydantic.dataclasses import is_pydantic_dataclass

from bench.core.cell import Budget, Cell
from bench.core.errors import BenchError
from bench.core.overrides import Setting
from bench.core.parameters import parameters

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from transformers import PreTrainedModel

    from bench.weights.targets import Target


class Context(NamedTuple):
    """All that a method may know; there is no way to the evaluation data."""

    cell: Cell
    budget: Budget
    targets: list[Target]
    calibration: Callable[[], Iterable[dict[str, Tensor]]]
    """Batches of `budget.calib` sequences from the training data, on `device`."""
    teacher: Callable[[], PreTrainedModel]
    """The dense model of the same task, seed and budget, frozen, in eval mode, on `device`."""
    rng: torch.Generator
    device: torch.device


@dataclass(frozen=True, slots=True)
class Published:
    """The trained share that a method's paper prints.

    Attributes:
        share: as a fraction.
        of: what it is a fraction of: `model`, all parameters, or `weights+scores`, all parameters
            and a score for each prunable weight, which is what movement pruning trains.
        setting: model, hyper-parameters and where it is printed.
        head: whether the task's head is among what is trained.
    """

    share: float
    of: Literal["model", "weights+scores"]
    setting: str
    head: bool = True


@dataclass(frozen=True, slots=True)
class Expected:
    """What is known of a finished model before there are weights (`sparsebench count`).

    Attributes:
        zeros: elements of the target set; None: those of the removed units alone.
        heads: share of every block's heads that goes as a whole.
        neurons: the same of its FFN neurons.
        blocks: share of the transformer blocks that goes.
    """

    zeros: int | None = None
    heads: float = 0.0
    neurons: float = 0.0
    blocks: float = 0.0


class Method(ABC):
    """A way to make a model sparse. Every hook but `finish` is optional.

    A training method freezes and parametrizes in `attach`, a one-shot method prunes there.
    `finish` leaves plain modules with zeros in the weights; `bench.weights.targets.merge` does
    that for parametrizations.

    A killed training goes on in another process: `attach` and `optimizer` run again, then the
    last checkpoint's values are filled in. A checkpoint holds the model's parameters and buffers
    (also those that are None at first), the optimizer's `state_dict` and what `state` names. So
    name there what training changes, unless `step` sets it anew from `progress` before each update.

    Attributes:
        name: the name in the registry.
        summary: what it does, in one sentence, for tables and lists; by default the first line of
            the docstring.
        paper: where it comes from, as `arXiv 2205.11005, IJCAI`; empty for a baseline.
        year: of that paper; 0 for a baseline.
        version: raised when the method's numbers move; older records become stale.
        patterns: the patterns it can make, its default first; `N:M` and `block:RxC` stand for all
            of their family.
        search: the settings that `sparsebench tune` tries, the default (no override) first, at
            most `MOST_SETTINGS`; `bench.core.parameters.grid` writes them.
        trains: whether the harness trains between `attach` and `finish`.
        needs_dense: whether the dense cell must have been run: one-shot methods start from its
            weights on a task that trains, distilling methods take it as the teacher.
        promises_sparsity: whether the counted sparsity must equal the cell's (a learned threshold
            cannot promise it). This, `uniform` and `needs_dense` may be properties of the instance
            where the parameters decide.
        uniform: whether that holds for every matrix, or only for all of them together.
        shardable: whether it can train where every process holds a part of each weight (FSDP):
            outside the model's forward it then touches no weight, and it keeps nothing of training
            but its parameters.
        max_grad_norm: gradient clipping, 0 for none; may be a property, too.
        state: names of the attributes that a checkpoint must hold; `()` for none. Each may be None,
            a number, a text, a tensor, a random generator, something with `state_dict` and
            `load_state_dict`, or a list, tuple or dict of the first four. A method without this
            declaration starts over when it is killed. `tests/test_resume.py` holds every training
            method to its declaration.
        published: the trained share that its paper prints, if it prints one.
        report: numbers for the record that the finished model cannot tell, by name.
        left_dense: the targets that it could not prune, by name, with the zeros that each was to
            get. Of these it promises nothing.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    year: ClassVar[int] = 0
    version: ClassVar[int] = 1
    patterns: ClassVar[tuple[str, ...]] = ("unstructured",)
    search: ClassVar[tuple[Setting, ...]] = ({},)
    trains: ClassVar[bool] = False
    needs_dense: ClassVar[bool] = True
    promises_sparsity: ClassVar[bool] = True
    uniform: ClassVar[bool] = True
    shardable: ClassVar[bool] = False
    max_grad_norm: ClassVar[float] = 1.0
    state: ClassVar[tuple[str, ...] | None] = None
    published: ClassVar[Published | None] = None
    left_dense: Mapping[str, int] = MappingProxyType({})

    @parameters
    class Params:
        """Hyper-parameters with defaults; a cell's overrides replace some of them."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "summary" not in vars(cls) and cls.__doc__:
            cls.summary = cls.__doc__.strip().splitlines()[0]
        # Plain classes and dataclasses become checked ones, so that every parameter is.
        if "Params" in vars(cls) and not is_pydantic_dataclass(cls.Params):
            cls.Params = parameters(cls.Params)  # type: ignore[misc]

    def __init__(self, params: Any = None) -> None:
        self.params: Any = self.Params() if params is None else params
        self.report: dict[str, float] = {}

    @classmethod
    def source(cls) -> str:
        """Returns the paper with its year, or `baseline`."""
        return f"{cls.paper} {cls.year}" if cls.paper else "baseline"

    def closed_form(self, model: PreTrainedModel) -> int | None:
        """Returns the trained elements outside the task's head, from the shapes of a dense model.

        The contract test compares it with what the optimizer held. None: there is no closed form.
        """
        return None if self.trains else 0

    def attach(self, model: PreTrainedModel, ctx: Context) -> None:
        """Freezes, parametrizes or prunes `model` in place."""

    def step(self, model: PreTrainedModel, progress: float) -> None:
        """Runs before every update with `progress` = updates done / all, and once at 1."""

    def loss(self, model: PreTrainedModel, inputs: dict[str, Tensor], outputs: Any) -> Tensor:
        """Returns the scalar to minimise; by default the task's own loss."""
        loss: Tensor = outputs.loss
        return loss

    def param_groups(self, model: PreTrainedModel) -> list[dict[str, Any]]:
        """Returns what the optimizer holds, and so what counts as trained: by default all of it.

        A method with other parameters or rates calls `groups`, too.
        """
        trainable = [p for p in model.parameters() if p.requires_grad]
        decay: float = getattr(self.params, "weight_decay", 0.0)
        return self.groups(model, (trainable, self.params.lr, decay))

    @staticmethod
    def groups(
        model: PreTrainedModel, *chosen: tuple[Iterable[Tensor], float, float]
    ) -> list[dict[str, Any]]:
        """Makes the optimizer's groups; every parameter's role decides its rate and decay.

        A matrix that reads the hidden features has the rate times 768 / width; vectors (biases,
        LayerNorm), embeddings, scores and gates have it as it is (bench/weights/learning_rates.py).
        Vectors never decay.

        Args:
            model: after `attach`.
            chosen: parameters, their learning rate at hidden size 768, and their weight decay.
        """
        from bench.weights.learning_rates import wide, width_factor

        factor, scaled = width_factor(model), wide(model)
        made: dict[tuple[int, float, float], list[Tensor]] = {}
        for index, (some, lr, decay) in enumerate(chosen):
            for p in some:
                rate = lr * factor if id(p) in scaled else lr
                made.setdefault((index, rate, decay if p.ndim > 1 else 0.0), []).append(p)
        return [{"params": ps, "lr": lr, "weight_decay": wd} for (_, lr, wd), ps in made.items()]

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Makes the optimizer: AdamW (`params.eps`), fused: one pass over memory on any device."""
        from torch.optim import AdamW

        eps: float = getattr(self.params, "eps", 1e-8)
        return AdamW(groups, betas=(0.9, 0.999), eps=eps, weight_decay=0.0, fused=True)

    def lr_factor(self, progress: float) -> float:
        """Returns what every rate is multiplied by: linear warm-up (`params.warmup`) and decay."""
        warmup: float = getattr(self.params, "warmup", 0.0)
        if progress < warmup:
            return progress / warmup
        return (1.0 - progress) / (1.0 - warmup)

    def state_dict(self) -> dict[str, Any]:
        """Returns the attributes that `state` names.

        Raises:
            BenchError: the method declares none.
        """
        if self.state is None:
            raise BenchError(f"method {self.name} does not declare its `state`")

        def saved(held: Any) -> Any:
            tell = getattr(held, "state_dict", None) or getattr(held, "get_state", None)
            return tell() if tell else held

        return {name: saved(getattr(self, name)) for name in self.state}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Fills these attributes again, after `attach` and `optimizer`."""
        for name, value in saved.items():
            held = getattr(self, name, None)
            fill = getattr(held, "load_state_dict", None) or getattr(held, "set_state", None)
            if fill:
                fill(value)
            else:
                setattr(self, name, value)

    def expected(self, ctx: Context) -> Expected | None:
        """Returns what `attach` settles about the finished model; None: the run decides.

        By default what the cell promises. Called on a model without weights, after `attach` where
        the method trains.
        """
        if not self.promises_sparsity:
            return None
        pattern, s = ctx.cell.pattern, ctx.cell.sparsity
        wanted = (pattern.heads, pattern.neurons, pattern.blocks)
        units = [s if removes else 0.0 for removes in wanted]
        if pattern.removes_units and not pattern.block:
            return Expected(None, *units)
        sizes = [rows * columns for rows, columns in (t.shape for t in ctx.targets)]
        pools = sizes if self.uniform else [sum(sizes)]
        # A pool loses ⌊n·s⌋; 1e-6 forgives 0.29·100 = 28.999…96.
        return Expected(sum(math.floor(n * s + 1e-6) for n in pools), *units)

    def check(self, cell: Cell, budget: Budget) -> None:
        """Refuses what its parameters cannot do with this cell and budget, before anything runs.

        Raises:
            BenchError: naming the parameter and what would be right.
        """

    @abstractmethod
    def finish(self, model: PreTrainedModel) -> None:
        """Leaves plain modules of the original classes with exact zeros in the weights."""
