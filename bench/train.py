"""Training: transformers' Trainer and one callback; the method owns loss and optimizer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from bench import precision, seeds
from bench.api import BenchError, Budget, Method, Task
from bench.record import Trainable
from bench.targets import head_parameters

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Trained:
    """What training did.

    Attributes:
        trainable: elements of the tensors that the optimizer held.
        dtype: `bf16-autocast` or `float32`.
    """

    trainable: Trainable
    dtype: str


def fit(
    method: Method,
    model: PreTrainedModel,
    tok: PreTrainedTokenizerBase,
    task: Task,
    budget: Budget,
    seed: int,
    progress: Progress,
) -> Trained:
    """Trains `model` in place for exactly `budget.steps` updates of `budget.batch` sequences.

    The order of the data depends on task and seed alone: every method sees the same batches.

    Raises:
        BenchError: kind `nan` with the step, as soon as the loss is not finite; label smoothing
            for a task without a language model.
    """
    if budget.smoothing is not None and task.head != "causal-lm":
        raise BenchError(f"budget.smoothing is for language models; {task.name} has a classifier")
    cpu = model.device.type == "cpu"
    dtype = precision.for_training(model.device)
    with tempfile.TemporaryDirectory(prefix="sparsebench-") as scratch:
        arguments = TrainingArguments(
            output_dir=scratch,
            max_steps=budget.steps,
            per_device_train_batch_size=budget.batch,
            train_sampling_strategy="group_by_length",
            length_column_name="length",
            max_grad_norm=method.max_grad_norm,
            bf16=dtype == "bf16-autocast",
            use_cpu=cpu,
            seed=seeds.derive("train", seed),
            data_seed=seeds.derive("order", task.name, seed),
            save_strategy="no",
            logging_strategy="no",
            logging_nan_inf_filter=False,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=not cpu,
        )
        trainer = _Trainer(
            method,
            budget.smoothing or 0.0,
            model=model,
            args=arguments,
            train_dataset=task.train(tok),
            data_collator=task.collator(tok),
            processing_class=tok,
            callbacks=[_Hooks(method, model, progress)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        # accelerate leaves its autocast around forward; what follows is float32.
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
    if trainer.state.global_step != budget.steps:
        raise BenchError(f"trained {trainer.state.global_step} of {budget.steps} steps", "contract")
    model.eval()
    held = trainable(model, trainer.method_groups)
    return Trained(held, dtype)


def trainable(model: PreTrainedModel, groups: list[dict[str, Any]]) -> Trainable:
    """Elements of the tensors in the optimizer's groups, the task's head apart."""
    held = {id(p): p.numel() for group in groups for p in group["params"]}
    head = sum(held.pop(id(p), 0) for _, p in head_parameters(model))
    return Trainable(body=sum(held.values()), head=head)


def smoothed_loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean cross-entropy of the next labels that are not −100, mixed with the uniform one.

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


class _Trainer(Trainer):
    """Trainer with the method's loss, optimizer and schedule."""

    def __init__(self, method: Method, smoothing: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.method = method
        self.smoothing = smoothing
        self.method_groups: list[dict[str, Any]] = []
        self.losses: list[Tensor] = []
        # The mean over micro-batches is ours to take: a method's loss knows no item counts.
        self.model_accepts_loss_kwargs = False

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.method_groups = self.method.param_groups(self.model)  # type: ignore[arg-type]
            self.optimizer = self.method.optimizer(self.method_groups)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        if self.lr_scheduler is None:
            assert self.optimizer is not None

            def factor(step: int) -> float:
                return self.method.lr_factor(min(step / num_training_steps, 1.0))

            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        if self.smoothing:
            # Without labels the model does not compute a loss that nobody would read.
            outputs = model(**{key: value for key, value in inputs.items() if key != "labels"})
            outputs.loss = smoothed_loss(outputs.logits, inputs["labels"], self.smoothing)
        else:
            outputs = model(**inputs)
        # accelerate's autocast covers the model's forward only; a teacher runs in the same type.
        with self.accelerator.autocast():
            loss = self.method.loss(model, inputs, outputs)
        self.losses.append(loss.detach())
        self._stop_at_nan()
        return (loss, outputs) if return_outputs else loss

    def floating_point_ops(self, inputs: Any) -> int:
        return 0  # Trainer's estimate reads 6·N·tokens; bench.count knows better.

    def _stop_at_nan(self) -> None:
        # Reading a loss waits for the device, so accelerators are asked every tenth time only.
        if self.losses[0].device.type != "cpu" and len(self.losses) < 10:
            return
        finite = torch.stack(self.losses).isfinite().tolist()
        if not all(finite):
            late = len(finite) - finite.index(False) - 1
            step = self.state.global_step + 1 - late
            raise BenchError(f"the loss is not finite at step {step}", "nan")
        self.losses.clear()


class _Hooks(TrainerCallback):
    """Gives the method its step and reports progress."""

    def __init__(self, method: Method, model: PreTrainedModel, progress: Progress) -> None:
        self.method, self.model, self.progress = method, model, progress

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.method.step(self.model, state.global_step / state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.progress(state.global_step, state.max_steps)
