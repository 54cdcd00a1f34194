"""A training method inside a user's own transformers Trainer.

Everything hangs on what Trainer offers: the method's optimizer and schedule take the place that the
argument `optimizers` fills, a forward hook of the model adds the method's loss, and callbacks run
its step. So any subclass of Trainer works, and learning rates are those of the benchmark.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.optim.lr_scheduler import LambdaLR
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from bench.core import seeds
from bench.core.cell import Budget
from bench.core.errors import BenchError
from bench.core.overrides import Scalar
from bench.core.pattern import Pattern, parse_pattern
from bench.costs.parameters import count_trainable
from bench.costs.pruned import Pruned, count_pruned
from bench.planning.setups import context_of, single_setup
from bench.sources import limits
from bench.sources.calibration import default_length, sequences_of
from bench.training.trainer_checks import check_trainer, has_loss, steps_of
from bench.weights.finite import check_weights
from bench.weights.forms import check_plain, in_eval
from bench.weights.precision import autocast
from bench.weights.unstacked import restack, unstack
from bench.weights.zeros_before import ZerosBefore


class SparsityCallback(TrainerCallback):
    """Trains a model sparse with a method of the benchmark: `attach`, `Trainer.train`, `finish`.

    The method brings its optimizer, learning rates, schedule and clipping norm. Trainer's arguments
    `optim`, `learning_rate`, `weight_decay`, `lr_scheduler_type`, `warmup_*` and `max_grad_norm`
    are therefore not used. Data, batches, steps, seeds and the arithmetic (`bf16`) are Trainer's.

    Args:
        method: a method that trains, such as `pst`, `gmp` or `movement`.
        sparsity: fraction to prune; N:M and `dense` fix their own.
        pattern: by default the method's first.
        teacher: the dense model that a distilling method learns from; it is frozen.
        calibration: texts or token ids, as `prune` takes them, for methods that look at inputs.
        tokenizer: for texts.
        calib: calibration sequences.
        length: tokens of a calibration sequence.
        seed: of all that the method draws.
        parameters: of the method, as `sparsebench list methods NAME` shows them.

    Raises:
        BenchError: a name or a value is not allowed; the method does not train, or distils and has
            no teacher.
    """

    def __init__(
        self,
        method: str,
        sparsity: float | None = None,
        pattern: str | Pattern | None = None,
        *,
        teacher: PreTrainedModel | None = None,
        calibration: Any = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        calib: int = 128,
        length: int | None = None,
        seed: int = 1,
        **parameters: Scalar,
    ) -> None:
        if isinstance(pattern, str):
            pattern = parse_pattern(pattern)
        setup = single_setup(method, pattern, sparsity, parameters, seed, trains=True)
        self.method, self.cell = setup.method, setup.cell
        if self.method.needs_dense and teacher is None:
            raise BenchError(f"{method} distils: pass teacher=, a dense model of the same task")
        self.teacher = teacher
        self.calibration = (calibration, tokenizer, calib, length)
        self.trainer: Trainer | None = None
        self.calls = 0  # of the method's loss
        self._undo: list[Callable[[], None]] = []

    def attach(self, trainer: Trainer) -> None:
        """Attaches the method to the trainer's model, before `Trainer.train`.

        Raises:
            BenchError: the trainer or its model does not allow it; both are as they were.
        """
        if self.trainer is not None:
            raise BenchError("this SparsityCallback is attached already; make another one")
        check_trainer(trainer, self.method)
        model: PreTrainedModel = trainer.model  # type: ignore[assignment]
        check_plain(model)
        if any(p.dtype != torch.float32 for p in model.parameters()):
            raise BenchError("training needs float32 weights; bf16=True computes in bf16")
        self.start, self.steps = time.perf_counter(), steps_of(trainer)
        args = trainer.args
        batch = args.train_batch_size * args.gradient_accumulation_steps
        calib, tokens = self.calibration[2:]
        length = default_length(model.config, tokens)
        budget = Budget(steps=self.steps, batch=batch, length=length, calib=calib)
        self.method.check(self.cell, budget)
        flags = [(p, p.requires_grad) for p in model.parameters()]
        try:
            with in_eval(model):
                unstack(model)
                self._attach(model, budget)
        except BaseException:
            _detach(model, flags)
            raise
        groups = self.method.param_groups(model)
        self.held = count_trainable(model, groups)
        self.trainer, self.calls = trainer, 0
        self._undo = [lambda: _set_flags(flags), self._hook(model)]
        self._settings(trainer, self.method.optimizer(groups))
        if self not in trainer.callback_handler.callbacks:
            trainer.add_callback(self)

    def _attach(self, model: PreTrainedModel, budget: Budget) -> None:
        ctx = context_of(
            self.cell,
            budget,
            model,
            lambda: self._calibration(model, budget),
            lambda: self._teacher(model),
            model.device,
        )
        self.before = ZerosBefore(ctx.targets)
        check_weights(model, type(model).__name__)
        seeds.seed_all(seeds.derive("method", self.cell.seed))
        self.method.attach(model, ctx)

    def _calibration(self, model: PreTrainedModel, budget: Budget) -> Iterable[dict[str, Tensor]]:
        values, tok, n, _ = self.calibration
        if values is None:
            raise BenchError(f"{self.cell.method} needs calibration=: texts or token ids")
        drawn = seeds.derive("calibration", self.cell.seed)
        batches = sequences_of(values, tok, n, budget.length, drawn, "calibration")
        limits.check_ids(batches, model, "calibration")
        return [{name: t.to(model.device) for name, t in batch.items()} for batch in batches]

    def _teacher(self, model: PreTrainedModel) -> PreTrainedModel:
        assert self.teacher is not None
        teacher: Any = self.teacher
        return teacher.to(model.device).eval().requires_grad_(False)  # type: ignore[no-any-return]

    def _hook(self, model: PreTrainedModel) -> Callable[[], None]:
        """Adds the method's loss to what the model returns in training."""
        if not has_loss(self.method):
            return lambda: None
        assert self.trainer is not None
        bf16 = "bf16-autocast" if self.trainer.args.bf16 else "float32"

        def hook(module: nn.Module, args: Any, inputs: dict[str, Any], outputs: Any) -> Any:
            if not module.training or not torch.is_grad_enabled():
                return outputs
            if args or getattr(outputs, "loss", None) is None:
                raise BenchError(f"{self.cell.method} adds to the model's own loss; there is none")
            # accelerate's autocast ends with the model's forward; a teacher runs in the same type.
            with autocast(bf16, model.device):
                known = {k: v for k, v in inputs.items() if k != "num_items_in_batch"}
                outputs.loss = self.method.loss(model, known, outputs)
            self.calls += 1
            return outputs

        return model.register_forward_hook(hook, with_kwargs=True).remove

    def _settings(self, trainer: Trainer, optimizer: torch.optim.Optimizer) -> None:
        """Gives the trainer the method's optimizer, schedule and clipping."""
        args = trainer.args
        norm, counts = args.max_grad_norm, trainer.model_accepts_loss_kwargs
        trainer.optimizer = optimizer
        trainer.lr_scheduler = LambdaLR(
            optimizer, lambda step: self.method.lr_factor(min(step / self.steps, 1.0))
        )
        args.max_grad_norm = self.method.max_grad_norm
        # A method's own loss is a mean over a batch and knows no item counts.
        trainer.model_accepts_loss_kwargs = False

        def undo() -> None:
            trainer.optimizer = trainer.lr_scheduler = None
            args.max_grad_norm, trainer.model_accepts_loss_kwargs = norm, counts
            trainer.remove_callback(self)

        self._undo.append(undo)

    def on_train_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Checks that the method is attached to this training.

        Raises:
            BenchError: it is not, or the training has other steps, or continues another one.
        """
        if self.trainer is None:
            raise BenchError("call SparsityCallback.attach(trainer) before Trainer.train()")
        if state.global_step:
            raise BenchError("a training with SparsityCallback cannot be resumed; start it again")
        if state.max_steps != self.steps:
            raise BenchError(f"attached for {self.steps} steps, Trainer has {state.max_steps}")

    def on_step_begin(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Runs the method's step."""
        assert self.trainer is not None
        self.method.step(self.trainer.model, state.global_step / self.steps)  # type: ignore[arg-type]

    def on_step_end(self, args: TrainingArguments, state: Any, control: Any, **_: Any) -> None:
        """Checks that Trainer has used the method's loss.

        Raises:
            BenchError: the trainer computes its loss without calling the model as a whole.
        """
        if not self.calls and has_loss(self.method):
            name = self.cell.method
            raise BenchError(f"{name} adds to the model's loss; Trainer does not use it")

    def finish(self) -> Pruned:
        """Merges what was trained: the model is plain again, with zeros in its weights.

        Afterwards the trainer has no optimizer; its next training makes a new one.

        Returns:
            What was counted in the finished model.

        Raises:
            BenchError: training has not come to its end, or the method broke a promise.
        """
        trainer = self.trainer
        if trainer is None:
            raise BenchError("there is nothing to finish: attach, then train")
        if trainer.state.global_step != self.steps:
            done = trainer.state.global_step
            raise BenchError(f"trained {done} of {self.steps} steps: the schedule is not over")
        model: PreTrainedModel = trainer.model  # type: ignore[assignment]
        # accelerate leaves its autocast around forward; what follows is float32.
        trainer.accelerator.unwrap_model(trainer.model_wrapped, keep_fp32_wrapper=False)
        self.method.step(model, 1.0)
        self.method.finish(model)
        restack(model)
        for undo in self._undo:
            undo()
        self.trainer = None
        check_weights(model, self.cell.method)
        seconds = time.perf_counter() - self.start
        return count_pruned(model, self.method, self.cell, self.before, seconds, self.held)


def _set_flags(flags: list[tuple[nn.Parameter, bool]]) -> None:
    for parameter, flag in flags:
        parameter.requires_grad_(flag)


def _detach(model: nn.Module, flags: list[tuple[nn.Parameter, bool]]) -> None:
    """Takes away what a method had attached when it failed; the weights are as they were."""
    for module in list(model.modules()):
        if parametrize.is_parametrized(module):
            for name in list(module.parametrizations):  # type: ignore[arg-type]
                parametrize.remove_parametrizations(module, name, leave_parametrized=False)
    restack(model)
    _set_flags(flags)
