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

from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from bench.api import (
    BenchError,
    Context,
    Expected,
    Field,
    Method,
    Published,
    Setting,
    grid,
    parameters,
)
from bench.weights import slicing
from bench.weights.targets import Target, freeze, merge
from methods.shared.low_rank_sparse import Update
from methods.shared.roles import roles
from methods.shared.sparse_support import places
from methods.shared.unit_coefficients import Coefficients
from methods.shared.update_parts import Part, base, drop, mask_pool, summed, updates_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class DSEE(Method):
    """Low-rank plus sparse update of q and v; the weights masked once, after the first phase.

    Patterns: `unstructured` masks two global pools, {k and all others} by |W| and {q, v} by |ΔW| or
    what else `score` says. `heads` removes the heads with the smallest ‖ΔW_q‖₁ + ‖ΔW_v‖₁ (with
    WABS also ‖W_q‖₁ + ‖W_v‖₁), equally many in every layer.
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
    version: ClassVar[int] = 2
    patterns: ClassVar[tuple[str, ...]] = ("unstructured", "heads", "heads+neurons")
    trains: ClassVar[bool] = True
    needs_dense: ClassVar[bool] = False
    promises_sparsity: ClassVar[bool] = False
    search: ClassVar[tuple[Setting, ...]] = grid(
        lr=(5e-4, 2.5e-4, 1e-3, 2e-3), phase1=(1 / 3, 1 / 2)
    )
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
        score: Literal["ABS", "AB", "WABS", "WAB", "W"] = Field(
            default="ABS",
            description="what decides on q, v and heads: the size of a sum of W (the weight), AB "
            "(the low-rank update) and S (the sparse one)",
        )
        others_sparsity: float | None = Field(
            default=None,
            ge=0,
            lt=1,
            description="fraction of the first pool (all but q and v) to mask; None: the cell's "
            "sparsity",
        )
        qv_sparsity: float | None = Field(
            default=None, ge=0, lt=1, description="the same of the second pool, q and v"
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
                    omega = places(base(target)[rows], p.support, p.omega, ctx.rng)
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
        p, s = self.params, self.cell.sparsity
        first, second = p.others_sparsity, p.qv_sparsity
        others = [part for part in self.parts if part.update is None]
        mask_pool(others, "W", s if first is None else first)
        updated = [part for part in self.parts if part.update is not None]
        mask_pool(updated, p.score, s if second is None else second)

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
                    drop(units, size, fraction, self.parts)
            else:
                parts = updates_of(heads, self.parts)
                sums = [part.head_scores(self.params.score, heads.count) for part in parts]
                drop(heads, summed(sums), fractions[0], self.parts)

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
        share = self.params.others_sparsity
        share = ctx.cell.sparsity if share is None else share
        n = sum(part.weight.numel() for part in self.parts if part.update is None)
        return Expected(round(share * n))

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
