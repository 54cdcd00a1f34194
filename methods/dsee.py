"""DSEE, dually sparse efficient tuning (arXiv 2111.00160, ACL'23).

    q, v:    y = x (S1⊙W)ᵀ + (α/r)·x (BA + S2)ᵀ + b      S2 is N numbers at fixed places Ω
    others:  y = x (S1⊙W)ᵀ + b

Only A, B, the N numbers Θ (and the task's head) are trained. One budget holds all phases: Ω is
found in W, the update is trained, S1 is derived from it once, and training goes on from there
with a fresh optimizer and schedule. Phase 1 ends as it is; no best checkpoint is selected.

S1 masks W, never the update. So "sparsity" means sparsity in the pretrained weights: the merged
q and v are dense, and fewer zeros are counted after export than the cell's sparsity says.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from bench.api import BenchError, Context, Expected, Field, Method, Published, parameters
from bench.weights import slicing
from bench.weights.targets import Target, freeze, merge
from methods.shared.low_rank_sparse import Update
from methods.shared.masks import keep_largest_global
from methods.shared.roles import roles
from methods.shared.sparse_support import support
from methods.shared.unit_coefficients import Coefficients

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DSEE(Method):
    """Low-rank plus sparse update of q and v; the weights masked once, after the first phase.

    Patterns: `unstructured` masks two global pools, {k and all others} by |W| and {q, v} by |ΔW|.
    `heads` removes the heads with the smallest ‖ΔW_q‖₁ + ‖ΔW_v‖₁, equally many in every layer.
    `heads+neurons` learns a coefficient for each head and FFN neuron under an L1 penalty, removes
    the smallest and folds the others into the weights. At least one head or neuron is kept, and
    query heads that share a key head go together. What is removed loses its biases, too.
    """

    name: ClassVar[str] = "dsee"
    summary: ClassVar[str] = (
        "Trains a low-rank and sparse update of query and value; masks the weights mid-way."
    )
    paper: ClassVar[str] = "arXiv 2111.00160, ACL"
    year: ClassVar[int] = 2023
    patterns: ClassVar[tuple[str, ...]] = ("unstructured", "heads", "heads+neurons")
    trains: ClassVar[bool] = True
    needs_dense: ClassVar[bool] = False
    promises_sparsity: ClassVar[bool] = False
    state: ClassVar[tuple[str, ...]] = ("derived",)
    published: ClassVar[Published | None] = Published(
        0.005, "model", "BERT-base, r = 16, N = 64, abstract"
    )

    @parameters
    class Params:
        """The paper's; the learning rate is that of RTE."""

        lr: float = Field(default=5e-4, gt=0, description="learning rate of all that trains")
        rank: int = Field(default=16, ge=1, description="rank of the update")
        alpha: float = Field(default=32.0, gt=0, description="the update is scaled by alpha / rank")
        support: int = Field(
            default=64, ge=0, description="places of the sparse update in each matrix"
        )
        omega: Literal["bilateral", "svd", "magnitude", "random"] = Field(
            default="bilateral",
            description="how the places are found; svd: the limit of bilateral, ten times as fast",
        )
        phase1: float = Field(
            default=1 / 3,
            gt=0,
            lt=1,
            description="fraction of the steps before the weights are masked",
        )
        head_sparsity: float | None = Field(
            default=None,
            ge=0,
            le=1,
            description="fraction of the heads to remove; None: the cell's sparsity",
        )
        neuron_sparsity: float | None = Field(
            default=None, ge=0, le=1, description="the same of neurons, for heads+neurons"
        )
        l1: float = Field(
            default=1e-4,
            ge=0,
            description="weight of the sum of the coefficients' sizes, for heads+neurons",
        )
        prune_pooler: bool = Field(
            default=False, description="whether BERT's pooler is pruned with the first pool"
        )

    params: Params

    def closed_form(self, model: PreTrainedModel) -> int:
        """Returns r(o + i) + N for q and v of every block (pattern `unstructured`)."""
        p, c = self.params, model.config
        heads, width = c.num_attention_heads, c.hidden_size
        values = width // heads * (getattr(c, "num_key_value_heads", None) or heads)
        block: int = sum(p.rank * (o + width) + p.support for o in (width, values))
        return int(c.num_hidden_layers) * block

    def attach(self, model: PreTrainedModel, ctx: Context) -> None:
        """Freezes everything but the head, finds Ω and parametrizes q and v."""
        p = self.params
        freeze(model)
        self.cell = ctx.cell
        self.fresh: torch.optim.Optimizer | None = None
        self.derived = False
        self.targets = ctx.targets
        self.blocks = slicing.units(model) if ctx.cell.pattern.removes_units else []
        self.parts: list[Part] = []
        for target in ctx.targets:
            for role, rows in (roles(target) or {"": slice(0, target.shape[0])}).items():
                update = None
                if role in ("q", "v"):
                    omega = support(base(target)[rows], p.support, p.omega, ctx.rng)
                    update = Update(target, rows, omega, p, ctx.rng).to(ctx.device)
                    target.parametrize(update)
                self.parts.append(Part(target, rows, update))
        if not any(part.update for part in self.parts):
            raise BenchError(f"dsee: {type(model).__name__} has no query and value to update")
        if p.prune_pooler:
            pooler = [(n, m) for n, m in model.named_modules() if n.endswith("pooler.dense")]
            for target in (Target(name, module) for name, module in pooler):
                self.parts.append(Part(target, slice(0, target.shape[0]), None))
        self.coefficients: list[Coefficients] = []
        if ctx.cell.pattern.neurons:
            for units in (units for block in self.blocks for units in block):
                scale = Coefficients(units).to(ctx.device)
                units.columns.parametrize(scale)
                self.coefficients.append(scale)

    def loss(self, model: PreTrainedModel, inputs: dict[str, Tensor], outputs: Any) -> Tensor:
        """Returns the task's loss, and while there are coefficients λ·Σ|c|."""
        penalty = [scale.c.abs().sum() for scale in self.coefficients if scale.folded is None]
        loss: Tensor = outputs.loss
        return loss + self.params.l1 * sum(penalty) if penalty else loss

    def optimizer(self, groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
        """Makes AdamW without decay and remembers it, to start it afresh."""
        self.fresh = super().optimizer(groups)
        return self.fresh

    def lr_factor(self, progress: float) -> float:
        """Decays linearly, without warm-up, once in each phase."""
        first = self.params.phase1
        if progress < first:
            return 1.0 - progress / first
        return (1.0 - progress) / (1.0 - first)

    @torch.no_grad()
    def step(self, model: PreTrainedModel, progress: float) -> None:
        """Derives S1 when the first phase is over, once."""
        if self.derived or progress < self.params.phase1:
            return
        self.derived = True
        if not self.cell.pattern.removes_units:
            self._mask()
        else:
            self._remove()
        if self.fresh is not None:
            self.fresh.state.clear()

    def _mask(self) -> None:
        for pool in (
            [part for part in self.parts if part.update is None],
            [part for part in self.parts if part.update is not None],
        ):
            weights = [base(part.target)[part.rows] for part in pool]
            deltas = [part.update.delta() if part.update else None for part in pool]
            scores = [
                (w if d is None else d).float().abs() for w, d in zip(weights, deltas, strict=True)
            ]
            n = sum(score.numel() for score in scores)
            # The paper's count is round(p·n), the suite's floor.
            exact = round(self.cell.sparsity * n) / n
            for weight, keep in zip(weights, keep_largest_global(scores, exact), strict=True):
                weight.masked_fill_(~keep, 0.0)

    def _remove(self) -> None:
        fractions = self._fractions()
        scales = iter(self.coefficients)
        for heads, neurons in self.blocks:
            if self.coefficients:
                for units, fraction in zip((heads, neurons), fractions, strict=True):
                    scale = next(scales)
                    size = scale.c.abs()
                    # Folds the coefficients into the columns; what was scaled stays as it is.
                    scale.fold(base(units.columns))
                    self._drop(units, size, fraction)
            else:
                modules = {id(target.module) for target, _ in heads.rows}
                updates = [
                    q.update for q in self.parts if q.update and id(q.target.module) in modules
                ]
                sums = [u.delta().abs().view(heads.count, -1).sum(dim=1) for u in updates]
                self._drop(heads, torch.stack(sums).sum(dim=0), fractions[0])

    def _fractions(self) -> tuple[float, float]:
        """Returns the shares of the heads and of the neurons to remove."""
        p, s = self.params, self.cell.sparsity
        heads, neurons = p.head_sparsity, p.neuron_sparsity
        return s if heads is None else heads, s if neurons is None else neurons

    def expected(self, ctx: Context) -> Expected | None:
        """Returns the parameters' units, or the first pool's zeros: q and v come out dense."""
        heads, neurons = self._fractions()
        if ctx.cell.pattern.removes_units:
            return Expected(heads=heads, neurons=neurons if ctx.cell.pattern.neurons else 0.0)
        if self.params.prune_pooler:
            return None  # the pool's zeros may lie in the pooler
        pool = (base(part.target)[part.rows] for part in self.parts if part.update is None)
        return Expected(round(ctx.cell.sparsity * sum(weight.numel() for weight in pool)))

    def _drop(self, units: slicing.Units, scores: Tensor, fraction: float) -> None:
        """Zeroes the units with the smallest scores: rows, biases, the update's rows, columns."""
        n = min(round(fraction * units.count), units.count - 1)
        gone = scores.argsort(stable=True)[:n]
        for target, area in units.rows:
            rows = units.indices(gone, area)
            base(target).index_fill_(0, rows, 0.0)
            if isinstance(bias := target.module.bias, Tensor):
                bias.detach().index_fill_(0, rows, 0.0)
            for part in self.parts:
                if part.update and part.target.module is target.module and part.rows == area:
                    part.update.forget(rows - area.start)
        columns = units.indices(gone, units.width)
        base(units.columns).index_fill_(1, columns, 0.0)

    @torch.no_grad()
    def finish(self, model: PreTrainedModel) -> None:
        """Sets W ← S1⊙W + (α/r)(BA + S2).

        `report` keeps what the merged model cannot tell: the sparsity in the pretrained
        weights, and the numbers to store when the update is kept apart.
        """
        held = sum(int(base(t).count_nonzero()) for t in self.targets)
        total = sum(base(t).numel() for t in self.targets)
        update = sum(part.update.stored() for part in self.parts if part.update)
        self.report = {"base_sparsity": 1.0 - held / total, "stored_unmerged": held + update}
        merge(model)


class Part(NamedTuple):
    """One logical matrix: the rows of a target, with its update if it is q or v."""

    target: Target
    rows: slice
    update: Update | None


def base(target: Target) -> Tensor:
    """Returns the weight under any parametrization, as a detached (out, in) view to write to."""
    under = parametrize.is_parametrized(target.module, "weight")
    stored = target.module.get_parameter("parametrizations.weight.original" if under else "weight")
    return stored.detach().t() if target.transposed else stored.detach()
