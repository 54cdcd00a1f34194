"""The four nouns of the benchmark: Method, Task, Cell and Record. The page to read first.

A **cell** (`bench.core.cell`) is one point of the benchmark. Running it (`bench.pipeline.run`)
loads the model,
lets the **method** make it sparse, asks the **task** for a score and leaves a **record**
(`bench.core.record`). A method or a task needs no other names than those of this page. Nothing here
imports torch at run time, so the command line stays fast.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol

from pydantic import Field
from pydantic.dataclasses import is_pydantic_dataclass

from bench.core.cell import Budget, Cell
from bench.core.errors import BenchError, Outcome
from bench.core.parameters import parameters
from bench.core.pattern import Pattern

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from torch import Tensor
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from bench.weights.targets import Target

__all__ = [
    "BenchError",
    "Budget",
    "Cell",
    "Context",
    "Expected",
    "Field",
    "Method",
    "Outcome",
    "Pattern",
    "Published",
    "Scores",
    "Source",
    "Split",
    "Task",
    "parameters",
]


@dataclass(frozen=True, slots=True)
class Scores:
    """What a task measured on its reported split.

    Attributes:
        values: every metric by name; the task's `metric` is one of them. Fractions, not percent.
        n: items scored.
        items: one outcome an item for paired tests: a string of 0/1, or a list of numbers.
        notes: footnotes, as why a score is absent.
    """

    values: Mapping[str, float]
    n: int
    items: str | list[float] = ""
    notes: tuple[str, ...] = ()


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
        zeros: elements of the target set; None: those of the removed heads and neurons alone.
        heads: share of every block's heads that goes as a whole.
        neurons: the same of its FFN neurons.
    """

    zeros: int | None = None
    heads: float = 0.0
    neurons: float = 0.0


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
        summary: what it does, in one sentence; tables and lists show it.
        paper: where it comes from, as `arXiv 2205.11005, IJCAI`; empty for a baseline.
        year: of that paper; 0 for a baseline.
        version: raised when the method's numbers move; older records become stale.
        patterns: the patterns it can make, its default first; `N:M` and `block:RxC` stand for all
            of their family.
        trains: whether the harness trains between `attach` and `finish`.
        needs_dense: whether the dense cell must have been run: one-shot methods start from its
            weights on a task that trains, distilling methods take it as the teacher.
        promises_sparsity: whether the counted sparsity must equal the cell's (a learned threshold
            cannot promise it). This and `needs_dense` may be properties of the instance where the
            parameters decide.
        uniform: whether that holds for every matrix, or only for all of them together.
        shardable: whether it can train where every process holds a part of each weight (FSDP):
            outside the model's forward it then touches no weight, and it keeps nothing of training
            but its parameters.
        max_grad_norm: gradient clipping, 0 for none.
        state: names of the attributes that a checkpoint must hold; `()` for none. Each may be None,
            a number, a text, a tensor, a random generator, something with `state_dict` and
            `load_state_dict`, or a list, tuple or dict of the first four. A method without this
            declaration starts over when it is killed. `tests/test_resume.py` holds every training
            method to its declaration.
        published: the trained share that its paper prints, if it prints one.
        report: numbers for the record that the finished model cannot tell, by name.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    paper: ClassVar[str] = ""
    year: ClassVar[int] = 0
    version: ClassVar[int] = 1
    patterns: ClassVar[tuple[str, ...]] = ("unstructured",)
    trains: ClassVar[bool] = False
    needs_dense: ClassVar[bool] = True
    promises_sparsity: ClassVar[bool] = True
    uniform: ClassVar[bool] = True
    shardable: ClassVar[bool] = False
    max_grad_norm: ClassVar[float] = 1.0
    state: ClassVar[tuple[str, ...] | None] = None
    published: ClassVar[Published | None] = None

    @parameters
    class Params:
        """Hyper-parameters with defaults; a cell's overrides replace some of them."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
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
        """The scalar to minimise; by default the task's own loss."""
        loss: Tensor = outputs.loss
        return loss

    def param_groups(self, model: PreTrainedModel) -> list[dict[str, Any]]:
        """What the optimizer holds, and so what counts as trainable; by default all that trains.

        Matrices decay by `params.weight_decay`, vectors (biases, LayerNorm) do not.
        """
        trainable = [p for p in model.parameters() if p.requires_grad]
        groups = [
            {
                "params": [p for p in trainable if p.ndim > 1],
                "weight_decay": getattr(self.params, "weight_decay", 0.0),
            },
            {"params": [p for p in trainable if p.ndim <= 1], "weight_decay": 0.0},
        ]
        lr = self.scaled(self.params.lr, model)
        return [{**g, "lr": lr} for g in groups if g["params"]]

    @staticmethod
    def scaled(lr: float, model: PreTrainedModel) -> float:
        """A learning rate for this model's width.

        Parameters state it for hidden size 768 (BERT-base, GPT-2 small); under Adam it goes with
        1 / width (arXiv 2203.03466), so one default serves models of all sizes.
        """
        return lr * 768 / int(model.config.hidden_size)

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """AdamW, fused: one pass over memory on every device."""
        from torch.optim import AdamW

        return AdamW(groups, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, fused=True)

    def lr_factor(self, progress: float) -> float:
        """Multiplier of every learning rate: linear warm-up over `params.warmup`, linear decay."""
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
        """Fills them again, after `attach` and `optimizer`."""
        for name, value in saved.items():
            held = getattr(self, name, None)
            fill = getattr(held, "load_state_dict", None) or getattr(held, "set_state", None)
            if fill:
                fill(value)
            else:
                setattr(self, name, value)

    def expected(self, ctx: Context) -> Expected | None:
        """What `attach` already settles about the finished model; None: training decides.

        By default what the cell promises. Called on a model without weights, after `attach` where
        the method trains.
        """
        if not self.promises_sparsity:
            return None
        pattern, s = ctx.cell.pattern, ctx.cell.sparsity
        units = (s if pattern.heads else 0.0, s if pattern.neurons else 0.0)
        if pattern.removes_units and not pattern.block:
            return Expected(None, *units)
        sizes = [rows * columns for rows, columns in (t.shape for t in ctx.targets)]
        pools = sizes if self.uniform else [sum(sizes)]
        # A pool loses ⌊n·s⌋; 1e-6 forgives 0.29·100 = 28.999…96 (exact counts).
        return Expected(sum(math.floor(n * s + 1e-6) for n in pools), *units)

    def check(self, cell: Cell, budget: Budget) -> None:
        """Refuses what its parameters cannot do with this cell and budget, before anything runs.

        Raises:
            BenchError: naming the parameter and what would be right.
        """

    @abstractmethod
    def finish(self, model: PreTrainedModel) -> None:
        """Leaves plain modules of the original classes with exact zeros in the weights."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where rows or weights came from, as it stands in the record.

    Attributes:
        repo: repository id on the hub, or what was generated.
        revision: its pinned revision, or the pinned archive.
        fingerprint: sha256 over the rows (or the weights) as used.
        select: how the select slice was cut from train.
        subset: what is missing against the official data, empty when complete.
    """

    repo: str
    revision: str
    fingerprint: str
    select: str = ""
    subset: str = ""


Split = Literal["train", "select", "test"]


class Task(Protocol):
    """Data, a head and a metric.

    Attributes:
        version: raised when the task's numbers move; tasks are superseded, never edited.
        head: which model class it needs.
        labels: number of classes (1: regression); 0 without a classification head.
        trains: whether it comes with training data; without, models are scored as they are.
        finetunes: whether dense means fine-tuned on that data. Otherwise the pretrained model is
            dense as it is, one-shot methods start from it, and training methods retrain it.
        limit: items that `budget.items` may ask for at most; 0 for a task that scores all always.
        metric: name of the primary metric in `Scores.values`.
    """

    name: str
    version: int
    metric: str
    higher_is_better: bool
    head: Literal["classification", "causal-lm"]
    labels: int
    trains: bool
    finetunes: bool
    limit: int
    budgets: Mapping[str, Budget]

    def prepare(self) -> None:
        """Fetches what is missing; raises BenchError(kind="offline") when it cannot."""

    def source(self) -> Source:
        """Where the rows came from."""

    def train(self, tok: PreTrainedTokenizerBase) -> Dataset:
        """Tokenized training rows, cut to `tok.model_max_length`, with a `length` column."""

    def collator(self, tok: PreTrainedTokenizerBase) -> Callable[[list[Any]], dict[str, Tensor]]:
        """Rows → a batch, padded to its longest row."""

    def calibration(
        self, tok: PreTrainedTokenizerBase, n: int, length: int, seed: int
    ) -> list[dict[str, Tensor]]:
        """`n` training sequences of at most `length` tokens, in batches."""

    def evaluate(
        self,
        model: PreTrainedModel,
        tok: PreTrainedTokenizerBase,
        device: torch.device,
        split: Split = "test",
        budget: Budget | None = None,
    ) -> Scores:
        """Scores the reported split, once a cell; `select` (a slice of train) is for tuning.

        `budget` says what scoring may spend (beams, items); None stands for the default one.
        """
