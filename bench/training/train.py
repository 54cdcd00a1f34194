"""Training: transformers' Trainer and one callback; the method owns loss and optimizer."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback

from bench.api import Method, Task
from bench.core import provenance
from bench.core.cell import Budget
from bench.core.errors import BenchError
from bench.core.record_parts import Trainable
from bench.core.run_settings import DEFAULTS, RunSettings
from bench.training import devices, tracking
from bench.training.arguments import arguments_of
from bench.training.cell_trainer import CellTrainer, Hooks, Progress
from bench.training.checkpoint import Checkpoints
from bench.weights.precision import for_training


@dataclass(frozen=True)
class Trained:
    """What training did.

    Attributes:
        trainable: elements of the tensors that the optimizer held.
        dtype: `bf16-autocast` or `float32`.
        resumed: updates that an earlier, killed process has done.
        earlier_s: seconds that it took for them.
        weights: all of them, by name, where the model is left in pieces (FSDP); in the first
            process only.
    """

    trainable: Trainable
    dtype: str
    resumed: int = 0
    earlier_s: float = 0.0
    weights: dict[str, Tensor] | None = None


def fit(
    method: Method,
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    task: Task,
    budget: Budget,
    seed: int,
    progress: Progress,
    checkpoints: Checkpoints | None = None,
    settings: RunSettings = DEFAULTS,
    name: str = "",
) -> Trained:
    """Trains `model` in place for exactly `budget.steps` updates of `budget.batch` sequences.

    Args:
        method: after `attach`.
        model: to be trained.
        tok: its tokenizer.
        task: whose training rows, collator and head.
        budget: updates and sequences.
        seed: the cell's.
        progress: called with (updates done, all).
        checkpoints: where to go on from, and where to leave some; None for neither.
        settings: batches in pieces, to save memory; several processes, which all call this;
            a tracker.
        name: of the run, for the tracker.

    Raises:
        Unfit: there is a checkpoint, but not of these objects; they are spoilt.
        BenchError: kind `nan` with the step, as soon as the loss is not finite; kind `contract`
            where the processes have come to different weights; label smoothing for a task without
            a language model.
    """
    if budget.smoothing is not None and task.head != "causal-lm":
        raise BenchError(f"budget.smoothing is for language models; {task.name} has a classifier")
    dtype = for_training(model.device)
    with tempfile.TemporaryDirectory(prefix="sparsebench-") as scratch:
        arguments = arguments_of(
            task.name,
            budget,
            seed,
            model.device,
            scratch,
            max_grad_norm=method.max_grad_norm,
            **tracking.logging_options(settings, name),
            **settings.trainer,
        )
        trainer = CellTrainer(
            method,
            budget.smoothing or 0.0,
            checkpoints,
            settings.accumulate,
            model=model,
            args=arguments,
            train_dataset=task.train(tok),
            data_collator=task.collator(tok),
            processing_class=tok,
        )
        trainer.add_callback(Hooks(trainer, model, progress))
        trainer.remove_callback(PrinterCallback)
        tracking.watch(trainer, settings, name)
        place = checkpoints.latest() if checkpoints else None
        trainer.train(resume_from_checkpoint=str(place) if place else None)
        trainer.stop_at_nan()
        weights = None
        if settings.sharded:
            weights = trainer.accelerator.get_state_dict(trainer.model_wrapped)
        else:
            # accelerate leaves its autocast around forward; what follows is float32.
            trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
            if not devices.same(lambda: provenance.weights_sha256(model.state_dict())):
                why = "the processes have come to different weights; it trains on one device only"
                raise BenchError(f"{method.name}: {why}", "contract")
        devices.part()
    if trainer.state.global_step != budget.steps:
        raise BenchError(f"trained {trainer.state.global_step} of {budget.steps} steps", "contract")
    model.eval()
    return Trained(trainer.held, dtype, trainer.resumed, trainer.loaded["seconds"], weights)
