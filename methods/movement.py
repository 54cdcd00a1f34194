"""Movement pruning (arXiv 2005.07683) and block movement (arXiv 2109.04838).

    W̃ = M⊙W,  M = H(S);   ∂W = G⊙M,  ∂S = G⊙W     (G = ∂L/∂W̃; straight through H)

A weight that moves away from zero gains score. One score stands for one weight, for a block, or
for a whole FFN neuron: a row of every matrix into the layer and a column of the one out of it.

    hard   H keeps all but the ⌊n·s(t)⌋ lowest of a matrix
    soft   H = 1[σ(S) > τ(t)], loss + λ(t)·mean σ(S): how much is pruned comes out, λ decides
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from bench.api import BenchError, Method
from bench.weights.targets import merge
from methods.shared.distill import distilled
from methods.shared.masks import keep_largest, pruned_count
from methods.shared.roles import feed_forward
from methods.shared.schedules import between_holds, cubic


class Movement(Method):
    """Movement pruning: weights and their scores train together; hard top-v or soft threshold."""

    name: ClassVar[str] = "movement"
    patterns: ClassVar[tuple[str, ...]] = ("unstructured", "block:RxC", "block:RxC+neurons")
    trains: ClassVar[bool] = True
    state: ClassVar[tuple[str, ...]] = ()

    @dataclass(frozen=True)
    class Params:
        """The SQuAD recipe of the first paper; the learning rate of the scores is for short runs.

        The pattern says what a score stands for. `block:32x32+neurons` with `mode=soft` is the
        second paper's hybrid; its λ is 10 to 30. GPT-2's fused q, k, v are one matrix.

        Attributes:
            mode: `hard` keeps exactly the cell's fraction; `soft` has a threshold, and the cell's
                sparsity is a label only.
            score_lr: of the scores. The paper's 1e-2 has 50,000 updates to take a score across
                the threshold. Hard masks do not depend on it: all scores scale alike.
            warmup: of the learning rates, as a fraction of the steps.
            initial_warmup: warm-ups for which nothing is pruned.
            final_warmup: warm-ups at the end for which the sparsity is final.
            threshold: τ at the end, soft only.
            penalty: λ at the end, soft only.
            min_kept: soft only: as many of the best scores of a matrix survive any threshold.
            bias_mask: zero the bias of an output all of whose weights are pruned.
            freeze_embeddings: as the first paper's code has it; the second's trains them.
            distill: weight α of distillation from the dense model, the task's loss has 1 − α;
                0 needs no dense cell.
            temperature: of the distillation.
        """

        mode: str = "hard"
        lr: float = 5e-5
        score_lr: float = 5e-2
        weight_decay: float = 0.01
        warmup: float = 0.1
        initial_warmup: float = 1.0
        final_warmup: float = 2.0
        threshold: float = 0.1
        penalty: float = 400.0
        min_kept: float = 0.005
        bias_mask: bool = True
        freeze_embeddings: bool = False
        distill: float = 0.0
        temperature: float = 2.0

    @property
    def promises_sparsity(self) -> bool:
        """A threshold on learned scores cannot promise what it will prune."""
        return self.params.mode == "hard"

    @property
    def needs_dense(self) -> bool:
        """The dense cell is the teacher, where there is one."""
        return self.params.distill > 0

    def attach(self, model, ctx) -> None:
        """Gives every target its scores, one gate a pool."""
        p = self.params
        if p.mode not in ("hard", "soft"):
            raise BenchError(f"movement: mode is 'hard' or 'soft', not {p.mode!r}")
        self.ramp = between_holds("movement", p)
        self.sparsity, self.strength = ctx.cell.sparsity, 0.0
        self.prepare(model, ctx)
        pattern = ctx.cell.pattern
        block = pattern.block or (1, 1)
        neurons, blocks, paired = [], [], set()
        for ffn in feed_forward(ctx.targets) if pattern.neurons else []:
            gate = self.gate(ffn.out.shape[1], ctx)
            neurons.append(gate)
            for target in ffn.ins:
                self.mask(target, gate, (1, target.shape[1]))
            self.mask(ffn.out, gate, (ffn.out.shape[0], 1))
            paired |= {target.name for target in (*ffn.ins, ffn.out)}
        for target in ctx.targets:
            if target.name not in paired:
                units = units_of(target, block)
                blocks.append(self.gate(math.prod(units), ctx))
                self.mask(target, blocks[-1], block)
        # The penalty is a mean over kinds of layers, and over the layers of each.
        self.kinds = [kind for kind in (blocks, neurons) if kind]

    def prepare(self, model, ctx) -> None:
        """What L0 has too: frozen embeddings and a teacher where they are asked for."""
        if self.params.freeze_embeddings:
            for parameter in embedding_parameters(model):
                parameter.requires_grad_(False)
        self.teacher = ctx.teacher() if self.needs_dense else None

    def gate(self, units: int, ctx) -> Gate:
        """A pool of `units` scores."""
        soft = self.params.mode == "soft"
        floor = int(self.params.min_kept * units) + 1 if self.params.min_kept else 0
        return Gate(units, soft, floor).to(ctx.device)

    def mask(self, target, gate, unit) -> None:
        """Parametrizes the target's weight, and its bias where that is masked."""
        layer = Masked(gate, unit, target.transposed)
        bias = getattr(target.module, "bias", None)
        target.parametrize(layer)
        if self.params.bias_mask and bias is not None:
            target.parametrize(BiasMask(layer), "bias")

    def step(self, model, progress: float) -> None:
        """Sets s(t) or τ(t), and λ(t), which goes with τ; masks are chosen anew."""
        ramp = cubic(progress, *self.ramp, 0.0, 1.0)
        soft = self.params.mode == "soft"
        self.strength = ramp * self.params.penalty if soft else 0.0
        for kind in self.kinds:
            for gate in kind:
                gate.set(ramp * (self.params.threshold if soft else self.sparsity))

    def loss(self, model, inputs, outputs) -> Tensor:
        """(1 − α)·task + α·KD + penalty."""
        loss = outputs.loss
        if self.teacher is not None:
            taught = distilled(self.teacher, inputs, outputs.logits, self.params.temperature)
            loss = (1.0 - self.params.distill) * loss + self.params.distill * taught
        return loss + self.strength * self.penalty() if self.strength else loss

    def penalty(self) -> Tensor:
        """Mean over kinds of layers of the mean over layers of mean σ(S)."""
        means = [torch.stack([g.scores.sigmoid().mean() for g in kind]) for kind in self.kinds]
        return torch.stack([mean.mean() for mean in means]).mean()

    def param_groups(self, model) -> list[dict]:
        """The scores in a group of their own, which never decays."""
        scores = [p for name, p in model.named_parameters() if name.endswith(".scores")]
        ids = {id(p) for p in scores}
        groups = super().param_groups(model)
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in ids]
        lr = self.scaled(self.params.score_lr, model)
        return [*groups, {"params": scores, "lr": lr, "weight_decay": 0.0}]

    def finish(self, model) -> None:
        """W ← M⊙W, the biases likewise; the scores are dropped."""
        merge(model)


def units_of(target, block: tuple[int, int]) -> tuple[int, int]:
    """How many blocks there are along out and in.

    Raises:
        BenchError: they do not tile the matrix.
    """
    (rows, columns), (r, c) = target.shape, block
    if not r or not c or rows % r or columns % c:
        raise BenchError(f"blocks of {r}×{c} do not tile {target.name}, which is {rows}×{columns}")
    return rows // r, columns // c


def embedding_parameters(model) -> list[nn.Parameter]:
    """What lies before the blocks: embeddings, and BERT's LayerNorm over them."""
    found = []
    for name, module in model.base_model.named_modules():
        if isinstance(module, nn.Embedding) or name == "embeddings":
            found += module.parameters()
    return found


class Gate(nn.Module):
    """A pool of scores and the keep mask that they make, which stands for one update."""

    def __init__(self, units: int, soft: bool, floor: int) -> None:
        super().__init__()
        self.scores = nn.Parameter(torch.zeros(units))
        self.soft, self.floor = soft, floor
        self.set(0.0)

    def set(self, level: float) -> None:
        """The sparsity (hard) or τ (soft) that the next forward uses."""
        self.level, self._keep = level, None

    def keep(self) -> Tensor:
        """The mask, (units,), in floats: on CPUs a product with bools is five times slower."""
        if self._keep is None:
            scores = self.scores.detach()
            n = scores.numel()
            if self.soft:
                cut = math.log(self.level / (1.0 - self.level)) if self.level else -math.inf
                keep = torch.gt(scores, cut, out=torch.empty_like(scores))
                # The best few either survive anyway, or they are all that does. On GPUs they are
                # always looked for: counting first would stall the stream.
                if self.floor and (scores.device.type != "cpu" or keep.sum() < self.floor):
                    keep = torch.maximum(keep, keep_largest(scores, n - self.floor, scores.dtype))
            else:
                keep = keep_largest(scores, pruned_count(n, self.level), scores.dtype)
            self._keep = keep
        return self._keep


class Masked(nn.Module):
    """Maps a stored weight to M⊙W; `unit` is the (out, in) extent that one score stands for.

    The scores of a matrix lie as its units do in the stored tensor, row by row.
    """

    def __init__(self, gate: Gate, unit: tuple[int, int], transposed: bool) -> None:
        super().__init__()
        self.gate, self.transposed = gate, transposed
        self.unit = unit[::-1] if transposed else unit

    def forward(self, stored: Tensor) -> Tensor:
        """The stored weight → its masked value in the same layout."""
        return _Mask.apply(stored, self.gate.scores, self.gate.keep(), self.unit)

    def outputs(self, length: int) -> Tensor:
        """1 for an output of which any weight is kept: (out,)."""
        out = 1 if self.transposed else 0
        keep, unit = self.gate.keep(), self.unit[out]
        grid = (-1, length // unit) if self.transposed else (length // unit, -1)
        return keep.view(grid).amax(dim=1 - out).repeat_interleave(unit)


class BiasMask(nn.Module):
    """Maps a bias to its masked value."""

    def __init__(self, layer: Masked) -> None:
        super().__init__()
        self.outputs = layer.outputs  # a method: the layer is registered at its weight already

    def forward(self, bias: Tensor) -> Tensor:
        """The bias, zero where the whole row of the weight is pruned."""
        return bias * self.outputs(bias.numel())


class _Mask(torch.autograd.Function):
    """(W, S) → M⊙W with ∂W = G⊙M and ∂S = the sum of G⊙W over each unit.

    All in one 4-d view, (units, extent, units, extent), over which the mask broadcasts.
    """

    @staticmethod
    def forward(ctx, weight, scores, keep, unit):
        a, b = unit
        grid = (weight.shape[0] // a, a, weight.shape[1] // b, b)
        keep = keep.view(grid[0], 1, grid[2], 1)
        ctx.save_for_backward(weight, keep)
        ctx.grid, ctx.score_shape = grid, scores.shape
        return (weight.view(grid) * keep).view(weight.shape)

    @staticmethod
    def backward(ctx, grad):
        weight, keep = ctx.saved_tensors
        d_scores = (grad * weight).view(ctx.grid)
        if d_scores.shape != keep.shape:
            d_scores = d_scores.sum(dim=(1, 3))
        d_weight = (grad.reshape(ctx.grid) * keep).view(weight.shape)
        return d_weight, d_scores.reshape(ctx.score_shape), None, None
