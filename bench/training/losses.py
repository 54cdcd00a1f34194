"""The loss of a batch: smoothed, and in pieces."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, ones_like
from torch.nn.functional import cross_entropy


def smoothed_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Returns the mean cross-entropy of labels other than −100, mixed with the uniform one.

    (1 − smoothing)·(−log p(label)) + smoothing·mean over the vocabulary of (−log p), as in LoRA's
    GPT-2 scripts (arXiv 2106.09685).

    Args:
        logits: (sequences, tokens, vocabulary).
        labels: (sequences, tokens).
        smoothing: in 0 … 1.
    """
    following = labels[:, 1:]
    counted = following != -100
    return cross_entropy(
        logits[:, :-1][counted].float(), following[counted], label_smoothing=smoothing
    )


def micro_batches(
    inputs: dict[str, Tensor], pieces: int
) -> Iterator[tuple[dict[str, Tensor], float]]:
    """Cuts a batch, padding and all, into pieces of whole sequences.

    Args:
        inputs: tensors (sequences, ...), with `labels` among them.
        pieces: how many; fewer where there are fewer sequences.

    Yields:
        A piece and its share of what the batch's loss is a mean over: the sequences of a
        classifier, the predicted tokens of a language model. The sum of share × loss over the
        pieces is the batch's loss, penalties that do not depend on the batch included.
    """
    if pieces == 1:
        yield inputs, 1.0
        return
    labels = inputs["labels"]
    weights = (labels[:, 1:] != -100).sum(dim=1) if labels.ndim > 1 else ones_like(labels)
    cut = {name: tensor.chunk(pieces) for name, tensor in inputs.items()}
    for i, weight in enumerate(weights.chunk(pieces)):
        if share := float(weight.sum() / weights.sum()):
            yield {name: parts[i] for name, parts in cut.items()}, share
