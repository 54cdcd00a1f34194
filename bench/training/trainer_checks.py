"""What a user's Trainer must be like, so that a method can train in it."""

from __future__ import annotations

import math
from typing import Any

from torch.utils.data import DataLoader
from transformers import Trainer

from bench.api import Method
from bench.core.errors import BenchError


def has_loss(method: Method) -> bool:
    """Tells whether a method changes the task's loss."""
    return type(method).loss is not Method.loss


def steps_of(trainer: Trainer) -> int:
    """Returns how many updates the trainer will make, as it counts them itself.

    Raises:
        BenchError: its data have no length and its arguments name no steps.
    """
    args = trainer.args
    if args.max_steps > 0:
        return int(args.max_steps)
    loader: DataLoader[Any] = trainer.get_train_dataloader()
    try:
        batches = len(loader)
    except TypeError:
        raise BenchError("the training data have no length; set max_steps") from None
    updates = max(math.ceil(batches / args.gradient_accumulation_steps), 1)
    return math.ceil(args.num_train_epochs * updates)


def check_trainer(trainer: Trainer, method: Method) -> None:
    """Refuses a trainer that would not train as the method needs it.

    Raises:
        BenchError: naming the argument that stands in the way.
    """
    args = trainer.args
    own_loss = has_loss(method)
    reasons = {
        "optimizers": trainer.optimizer is not None or trainer.lr_scheduler is not None,
        "fp16 (use bf16)": args.fp16,
        "load_best_model_at_end": args.load_best_model_at_end,
        "fsdp": bool(args.fsdp),
        "deepspeed": bool(args.deepspeed),
        "torch_compile": args.torch_compile,
        "more than one device": args.world_size > 1 or args.n_gpu > 1,
        "compute_loss_func": own_loss and trainer.compute_loss_func is not None,
        "label_smoothing_factor": own_loss and bool(args.label_smoothing_factor),
    }
    if wrong := [name for name, found in reasons.items() if found]:
        raise BenchError(f"SparsityCallback: {method.name} does not train with {wrong[0]}")
