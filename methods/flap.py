"""FLAP: heads and FFN neurons by how much their outputs fluctuate (arXiv 2312.11983).

f_j = Var(X_j)·‖W_:j‖²,   z = (f − mean f)/std f within a layer,   z_u = mean of z over u's columns
The lowest z_u of the whole model go; b ← b + Σ W_:j·mean(X_j) over the columns j that go.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from bench.api import Context, Expected, Field, Setting, grid, parameters
from bench.weights.added_biases import add_biases
from bench.weights.slicing import Units
from methods.shared.input_statistics import Moments, wanda_scores
from methods.shared.update_parts import erase
from methods.shared.whole_units import PrunesUnits, by_unit, elements

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)


class FLAP(PrunesUnits):
    """One threshold for all units; the mean of what goes stays as a bias."""

    name: ClassVar[str] = "flap"
    summary: ClassVar[str] = (
        "Removes heads and neurons that fluctuate little; biases keep their mean."
    )
    paper: ClassVar[str] = "arXiv 2312.11983, AAAI"
    year: ClassVar[int] = 2024
    search: ClassVar[tuple[Setting, ...]] = grid(metric=("wifv", "ifv", "wifn"))

    @parameters
    class Params:
        """The paper's."""

        metric: Literal["wifv", "ifv", "wifn"] = Field(
            default="wifv",
            description="what is compared: variance × squared weight norm (wifv), variance alone "
            "(ifv), or the mean Wanda score (wifn)",
        )
        bias: Literal["added", "present", "none"] = Field(
            default="added",
            description="where the mean of what goes is kept: in all biases that the config can "
            "switch on, in those that are there, or nowhere",
        )

    params: Params

    def prune(self, model: PreTrainedModel, ctx: Context, groups: list[Units]) -> None:
        """Removes the lowest units of all blocks; statistics are those of the dense model."""
        found: dict[str, Moments] = {}

        def visit(group: Units, statistic: Moments) -> None:
            found[group.columns.name] = statistic

        self.read(model, ctx, groups, Moments, visit, prunes=False)
        groups = [group for group in groups if group.columns.name in found]
        scores = [unit_scores(g, found[g.columns.name], self.params.metric) for g in groups]
        gone = lowest(scores, [elements(group) for group in groups], ctx.cell.sparsity)
        if self.params.bias == "added":
            add_biases(model, [group.columns for group in groups])
        without = 0
        for group, units in zip(groups, gone, strict=True):
            without += bool(len(units)) and not self._keep_mean(group, units, found)
            erase(group, units, [])
        self.report["without_bias"] = without
        if without and self.params.bias != "none":
            log.warning("%d matrices have no bias that could keep the mean of what goes", without)

    @torch.no_grad()
    def _keep_mean(self, group: Units, units: Tensor, found: dict[str, Moments]) -> bool:
        """Adds what the units put out on average to the bias; tells whether there is one."""
        target: Any = group.columns
        if self.params.bias == "none" or target.module.bias is None:
            return False
        columns = group.indices(units, group.width)
        mean = found[target.name].mean[columns]
        bias: Tensor = target.module.bias
        bias.add_((target.weight[:, columns].float() @ mean).to(bias.dtype))
        return True

    def expected(self, ctx: Context) -> Expected | None:
        """Returns None: which kind of unit goes, and where, is known when all are compared."""
        return None


def unit_scores(group: Units, statistic: Moments, metric: str) -> Tensor:
    """Returns z_u of each unit, (units,)."""
    weight = group.columns.weight.float()
    if metric == "wifn":
        raw = wanda_scores(weight, statistic.norms).mean(0)
    else:
        raw = statistic.variance
        raw = raw * weight.square().sum(0) if metric == "wifv" else raw
    spread = raw.std().clamp(min=torch.finfo(raw.dtype).tiny)
    return by_unit(group, (raw - raw.mean()) / spread).mean(1)


def lowest(scores: list[Tensor], sizes: list[int], sparsity: float) -> list[Tensor]:
    """Returns the units of each group that go: the lowest of all, but never the best of a group.

    As many go as bring their weights closest to the share of all weights of all units.

    Args:
        scores: of the units of each group.
        sizes: weights of a unit of each group.
        sparsity: the share.
    """
    flat = torch.cat(scores)
    group = torch.cat([torch.full_like(s, i).long() for i, s in enumerate(scores)])
    unit = torch.cat([torch.arange(len(s), device=s.device) for s in scores])
    best = torch.tensor([int(s.argmax()) for s in scores], device=flat.device)
    order = flat.argsort(stable=True)
    order = order[unit[order] != best[group[order]]]
    weights = torch.tensor(sizes, dtype=torch.float64, device=flat.device)[group[order]]
    total = sum(size * len(s) for size, s in zip(sizes, scores, strict=True))
    removed = torch.cat([weights.new_zeros(1), weights.cumsum(0)])
    chosen = order[: int((removed - sparsity * total).abs().argmin())]
    return [unit[chosen[group[chosen] == i]] for i in range(len(scores))]
