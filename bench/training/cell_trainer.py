"""transformers' Trainer as a cell needs it: the method's loss and optimizer, our checkpoints."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME

from bench.api import Method
from bench.core import seeds
from bench.core.errors import BenchError
from bench.core.record_parts import Trainable
from bench.costs.parameters import count_trainable
from bench.training import devices, state
from bench.training.checkpoint import Checkpoints
from bench.training.losses import micro_batches, smoothed_loss

Progress = Callable[[int, int], None]


class CellTrainer(Trainer):
    """Trainer with the method's loss, optimizer and schedule, and our checkpoints."""

    def __init__(
        self,
        method: Method,
        smoothing: float,
        checkpoints: Checkpoints | None,
        accumulate: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.method = method
        self.smoothing = smoothing
        self.checkpoints = checkpoints
        self.accumulate, self.share = accumulate, 1.0
        self.start = time.perf_counter()
        self.resumed = 0
        self.loaded: dict[str, Any] = {"seconds": 0.0}
        self.epoch_rng: Any = None
        self.held = Trainable(body=0, head=0)
        self.losses: list[Tensor] = []
        self.newest = 0  # the step of the last of them
        self.read_every = 1 if self.args.device.type == "cpu" else 10
        # The mean over micro-batches is ours to take: a method's loss knows no item counts.
        self.model_accepts_loss_kwargs = False

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """Makes the method's optimizer; what it holds is counted before anything is wrapped."""
        if self.optimizer is None:
            groups = self.method.param_groups(self.model)  # type: ignore[arg-type]
            self.held = count_trainable(self.model, groups)  # type: ignore[arg-type]
            self.optimizer = self.method.optimizer(groups)
        return self.optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        """Makes the method's schedule, a function of progress."""
        if self.lr_scheduler is None:
            assert self.optimizer is not None

            def factor(step: int) -> float:
                return self.method.lr_factor(min(step / num_training_steps, 1.0))

            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
        return self.lr_scheduler

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Returns the method's loss of one piece of the batch, times its share."""
        if self.smoothing:
            # Without labels the model does not compute a loss that nobody would read.
            outputs = model(**{key: value for key, value in inputs.items() if key != "labels"})
            outputs.loss = smoothed_loss(outputs.logits, inputs["labels"], self.smoothing)
        else:
            outputs = model(**inputs)
        # accelerate's autocast covers the model's forward only; a teacher runs in the same type.
        with self.accelerator.autocast():
            loss = self.method.loss(model, inputs, outputs) * self.share
        return (loss, outputs) if return_outputs else loss

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Returns whole batches, in the same order in every process; each takes its pieces."""
        loader = super().get_train_dataloader()
        if self.args.world_size == 1:
            return loader
        # accelerate would give every process a batch, and fill an epoch's last one up.
        whole: Any = loader.batch_sampler
        return DataLoader(
            loader.dataset,
            batch_sampler=whole.batch_sampler,
            collate_fn=loader.collate_fn,
            pin_memory=loader.pin_memory,
        )

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Runs forward and backward of this process's pieces and returns the batch's loss."""
        loss = torch.zeros((), device=self.args.device)
        world, rank = self.args.world_size, self.args.process_index
        parts = list(micro_batches(inputs, world * self.accumulate))
        for i in range(0, len(parts), world):
            # Gradients are averaged over the processes. One without a piece joins in with nothing.
            part, share = parts[i + rank] if i + rank < len(parts) else (parts[0][0], 0.0)
            self.share = share * world
            loss = loss + super().training_step(model, part)
        if world > 1:
            dist.all_reduce(loss)
        self.losses.append(loss)
        self.newest = self.state.global_step + 1
        self.stop_at_nan(at_once=False)
        return loss

    def floating_point_ops(self, inputs: Any) -> int:
        """Returns 0: Trainer's estimate is 6·N·tokens, and `bench.costs` counts better."""
        return 0

    def begin_epoch(self) -> None:
        """Notes the random state that the epoch's order of rows is drawn from.

        In a process that takes over inside an epoch this is the state at the epoch's start, so that
        the same order is drawn and its first rows can be skipped.
        """
        if "rng" in self.loaded:
            at_start = float(self.state.epoch or 0).is_integer()
            seeds.set_states(self.loaded["rng" if at_start else "epoch_rng"])
        self.epoch_rng = seeds.states()

    def _parts(self) -> dict[str, Any]:
        """Returns what training has changed."""
        assert self.model is not None
        assert self.lr_scheduler is not None
        return {
            "model": state.of_model(self.model),
            "trains": [name for name, p in self.model.named_parameters() if p.requires_grad],
            "optimizer": self._optimizer().state_dict(),
            "scheduler": self.lr_scheduler.state_dict(),
            "method": self.method.state_dict(),
            "rng": seeds.states(),
            "epoch_rng": self.epoch_rng,
            "seconds": self.loaded["seconds"] + time.perf_counter() - self.start,
        }

    def _fill(self, saved: state.Saved) -> None:
        """Puts all of it back."""
        assert self.model is not None
        assert self.lr_scheduler is not None
        state.load_model(self.model, saved.items("model"))
        trains = set(saved["trains"])
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in trains)
        self._optimizer().load_state_dict(saved["optimizer"])
        self.lr_scheduler.load_state_dict(saved["scheduler"])
        self.method.load_state_dict(saved["method"])
        self.loaded = {part: saved[part] for part in ("rng", "epoch_rng", "seconds")}

    def _optimizer(self) -> Any:
        """Returns the method's own optimizer, without accelerate's wrapper."""
        return getattr(self.optimizer, "optimizer", self.optimizer)

    # The four places where Trainer writes and reads what its checkpoints hold.

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        assert self.checkpoints is not None
        self.stop_at_nan()
        if self.args.process_index:  # all processes hold the same
            return
        self.checkpoints.save(
            self.state.global_step,
            self._parts,
            lambda folder: self.state.save_to_json(str(folder / TRAINER_STATE_NAME)),
        )

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        pass  # with the optimizer, all at once

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        assert self.checkpoints is not None
        self.checkpoints.restore(Path(checkpoint), self._fill)
        self.resumed = self.state.global_step

    def _load_rng_state(self, checkpoint: str | None) -> None:
        seeds.set_states(self.loaded.pop("rng"))

    def stop_at_nan(self, at_once: bool = True) -> None:
        """Reads the losses that were not read yet.

        Reading a loss waits for the device, so accelerators are asked every tenth time only, and
        once at the end.

        Raises:
            BenchError: kind `nan` with the step.
        """
        if not self.losses or (not at_once and len(self.losses) < self.read_every):
            return
        finite = torch.stack(self.losses).isfinite().tolist()
        if not all(finite):
            late = len(finite) - finite.index(False) - 1
            raise BenchError(f"the loss is not finite at step {self.newest - late}", "nan")
        self.losses.clear()


class Hooks(TrainerCallback):
    """Gives the method its step, reports progress, and says when a checkpoint is due."""

    def __init__(self, trainer: CellTrainer, model: PreTrainedModel, progress: Progress) -> None:
        self.trainer, self.model, self.progress = trainer, model, progress

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Notes that the order of rows is about to be drawn."""
        self.trainer.begin_epoch()

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Runs the method's step."""
        self.trainer.method.step(self.model, state.global_step / state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Progress, and perhaps a checkpoint."""
        self.progress(state.global_step, state.max_steps)
        checkpoints = self.trainer.checkpoints
        # After the last update there would be nothing to go on with.
        if checkpoints and state.global_step < state.max_steps:
            control.should_save = self._agreed(checkpoints.due)

    def _agreed(self, due: Callable[[], bool]) -> bool:
        """Whether a checkpoint is due; several processes ask the first one, every tenth update."""
        if self.trainer.args.world_size == 1:
            return due()
        return self.trainer.state.global_step % 10 == 0 and devices.agree(due())
