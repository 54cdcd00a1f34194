"""Training weights and their scores together: movement pruning and L0 gates."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from bench.api import Context, Method
from bench.weights.targets import merge, prunable
from methods.shared.counts import all_weights
from methods.shared.distill import distilled
from methods.shared.lagrangian import Lagrangian, rising

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LearnedScores(Method):
    """A method whose weights train beside scores; parameters named `scores` are found by name.

    A subclass makes the scores in `attach`, after `prepare`, and says what their `penalty` and the
    `expected_sparsity` are. Its `Params` are `TargetParams`, and have `lr`, `score_lr`,
    `weight_decay`, `freeze_embeddings`, `distill` and `temperature`.

    Attributes:
        strength: λ, what the penalty is multiplied by at present; 0 leaves it out.
        sparsity: the cell's.
        lagrangian: what steers to it with `target=lagrangian`.
    """

    trains: ClassVar[bool] = True
    state: ClassVar[tuple[str, ...]] = ("lagrangian",)
    strength: float

    @property
    def needs_dense(self) -> bool:  # type: ignore[override]  # the base allows a property
        """Whether the dense cell is the teacher."""
        return bool(self.params.distill > 0)

    def closed_form(self, model: PreTrainedModel) -> int:
        """Returns all weights, and a score for every prunable one (pattern `unstructured`)."""
        frozen = embedding_parameters(model) if self.params.freeze_embeddings else []
        scores = sum(rows * columns for rows, columns in (t.shape for t in prunable(model)))
        return all_weights(model) - sum(p.numel() for p in frozen) + scores

    def prepare(self, model: PreTrainedModel, ctx: Context) -> None:
        """Freezes embeddings, fetches a teacher and makes the Lagrangian, where asked for."""
        p = self.params
        self.strength, self.sparsity = 0.0, ctx.cell.sparsity
        self.lagrangian: Lagrangian | None = None
        if p.target == "lagrangian":
            self.lagrangian = Lagrangian(p.multiplier_lr, p.square, ctx.device)
        if p.freeze_embeddings:
            for parameter in embedding_parameters(model):
                parameter.requires_grad_(False)
        self.teacher = ctx.teacher() if self.needs_dense else None

    def loss(self, model: PreTrainedModel, inputs: dict[str, Tensor], outputs: Any) -> Tensor:
        """Returns (1 − α)·task + α·KD, and λ·penalty or the Lagrangian."""
        loss: Tensor = outputs.loss
        if self.teacher is not None:
            taught = distilled(self.teacher, inputs, outputs.logits, self.params.temperature)
            loss = (1.0 - self.params.distill) * loss + self.params.distill * taught
        if self.lagrangian is not None:
            return loss + self.lagrangian.term(self.expected_sparsity())
        return loss + self.strength * self.penalty() if self.strength else loss

    def step(self, model: PreTrainedModel, progress: float) -> None:
        """Moves the multiplier, and raises the target."""
        if self.lagrangian is not None:
            self.lagrangian.ascend(rising(progress, self.params.target_ramp, self.sparsity))

    @abstractmethod
    def penalty(self) -> Tensor:
        """Returns what λ weighs: a scalar function of the scores."""

    @abstractmethod
    def expected_sparsity(self) -> Tensor:
        """Returns ŝ, what the Lagrangian steers: a scalar function of the scores."""

    def param_groups(self, model: PreTrainedModel) -> list[dict[str, Any]]:
        """Returns the default groups, and the scores in one of their own, which never decays."""
        p = self.params
        held = [(n, q) for n, q in model.named_parameters() if q.requires_grad]
        scores = [q for name, q in held if name.endswith(".scores")]
        weights = [q for name, q in held if not name.endswith(".scores")]
        return self.groups(model, (weights, p.lr, p.weight_decay), (scores, p.score_lr, 0.0))

    def finish(self, model: PreTrainedModel) -> None:
        """Sets W ← M⊙W, the biases likewise; the scores are dropped."""
        merge(model)


def embedding_parameters(model: PreTrainedModel) -> list[nn.Parameter]:
    """Returns what lies before the blocks: embeddings, and BERT's LayerNorm over them."""
    found: list[nn.Parameter] = []
    for name, module in model.base_model.named_modules():
        if isinstance(module, nn.Embedding) or name == "embeddings":
            found += module.parameters()
    return list(dict.fromkeys(found))
