"""Trackers (trackio, wandb, tensorboard) watch a training, and cannot change it.

They are transformers' own callbacks. A training that is watched draws the same random numbers as
one that is not, and goes on if its tracker fails.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback
from transformers.integrations.integration_utils import (
    TensorBoardCallback,
    get_reporting_integration_callbacks,
)

from bench.core import seeds
from bench.core.run_settings import RunSettings

log = logging.getLogger(__name__)

PROJECT = "sparsebench"
TENSORBOARD = Path(".sparsebench/tensorboard")
EVERY = 10
"""Updates between two values that are reported."""


def logging_options(settings: RunSettings, name: str) -> dict[str, Any]:
    """Returns the options of TrainingArguments that say what is reported, and under which name."""
    if settings.report_to == "none":
        return {"logging_strategy": "no"}
    return {
        "logging_strategy": "steps",
        "logging_steps": EVERY,
        "logging_first_step": True,
        "run_name": name,
        "project": PROJECT,
    }


def watch(trainer: Trainer, settings: RunSettings, name: str) -> None:
    """Lets the tracker of the settings watch, if there is one.

    wandb and trackio keep runs where their environment variables say; the project is
    `sparsebench`. Tensorboard's files lie in `.sparsebench/tensorboard/`, a folder for each name,
    or in `TENSORBOARD_LOGGING_DIR`.
    """
    if settings.report_to == "none":
        return
    os.environ.setdefault("WANDB_PROJECT", PROJECT)
    for kind in get_reporting_integration_callbacks([settings.report_to]):
        trainer.add_callback(Bystander(kind, name))


class Bystander(TrainerCallback):
    """Passes events on to a tracker, and keeps what the tracker does away from the training."""

    def __init__(self, kind: Callable[[], TrainerCallback], name: str) -> None:
        self.tracker: TrainerCallback | None = None
        self._guarded(lambda: self._make(kind, name))

    def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Opens the tracker's run."""
        self._tell("on_train_begin", args, state, control, more)

    def on_log(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Reports loss, learning rate and gradient norm."""
        self._tell("on_log", args, state, control, more)

    def on_train_end(self, args: Any, state: Any, control: Any, **more: Any) -> None:
        """Closes the tracker's run."""
        self._tell("on_train_end", args, state, control, more)

    def _make(self, kind: Callable[[], TrainerCallback], name: str) -> None:
        tracker = kind()
        if isinstance(tracker, TensorBoardCallback) and tracker.logging_dir is None:
            tracker.logging_dir = str(TENSORBOARD / name)
        self.tracker = tracker

    def _tell(self, event: str, args: Any, state: Any, control: Any, more: dict[str, Any]) -> None:
        if self.tracker is not None:
            self._guarded(lambda: getattr(self.tracker, event)(args, state, control, **more))

    def _guarded(self, work: Callable[[], Any]) -> None:
        before = seeds.states()
        try:
            work()
        except Exception as error:  # of a package or a network that is none of the training's
            log.warning("the tracker failed and is left out from here on: %s", error)
            self.tracker = None
        finally:
            seeds.set_states(before)
