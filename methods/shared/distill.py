"""Knowledge distillation from a dense teacher (methods/README.md, distillation)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def kd_loss(
    student: Tensor, teacher: Tensor, mask: Tensor | None = None, temperature: float = 2.0
) -> Tensor:
    """Returns T²·KL(softmax(teacher / T) ‖ softmax(student / T)), a mean over predictions.

    A single output has no distribution: for regression it is the mean squared difference.

    Args:
        student: (..., V) logits.
        teacher: (..., V) logits; carry no gradient.
        mask: (...), true where a row is a prediction; all of them without.
        temperature: T.
    """
    student, teacher = student.float(), teacher.detach().float()
    if student.shape[-1] == 1:
        rows = (student - teacher).square().squeeze(-1)
    else:
        theirs = F.log_softmax(teacher / temperature, dim=-1)
        ours = F.log_softmax(student / temperature, dim=-1)
        rows = F.kl_div(ours, theirs, log_target=True, reduction="none").sum(-1)
        rows = temperature**2 * rows
    if mask is None:
        return rows.mean()
    # where, not indexing: the number of selected rows would have to be read from the device.
    return torch.where(mask, rows, 0.0).sum() / mask.sum().clamp(min=1)


def distilled(
    teacher: PreTrainedModel, inputs: dict[str, Tensor], logits: Tensor, temperature: float = 2.0
) -> Tensor:
    """Returns `kd_loss` of a batch: of a classifier's examples, of a causal LM's predicted tokens.

    Args:
        teacher: a frozen model in eval mode that takes the student's inputs.
        inputs: the batch; of `labels` only the ignored positions (−100) are looked at.
        logits: the student's, (B, V), or (B, S, V) of a causal LM.
        temperature: T.
    """
    with torch.no_grad():
        taught = teacher(**{k: v for k, v in inputs.items() if k != "labels"}).logits
    if logits.ndim == 2:
        return kd_loss(logits, taught, temperature=temperature)
    # Position t predicts token t + 1; the last one predicts nothing.
    mask = inputs["labels"][:, 1:] != -100
    if "attention_mask" in inputs:
        mask = mask & (inputs["attention_mask"][:, 1:] != 0)
    return kd_loss(logits[:, :-1], taught[:, :-1], mask, temperature)


def mixed(
    teacher: PreTrainedModel | None,
    inputs: dict[str, Tensor],
    outputs: Any,
    alpha: float,
    temperature: float,
) -> Tensor:
    """Returns α·KD + (1 − α)·task, and the task's loss alone without a teacher.

    Args:
        teacher: as for `distilled`.
        inputs: the batch.
        outputs: the student's, with `loss` and `logits`.
        alpha: α.
        temperature: T.
    """
    task: Tensor = outputs.loss
    if teacher is None:
        return task
    return alpha * distilled(teacher, inputs, outputs.logits, temperature) + (1.0 - alpha) * task
