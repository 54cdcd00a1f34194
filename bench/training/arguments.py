"""The settings of a cell's training, as transformers' TrainingArguments."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, TrainingArguments

from bench.core import seeds
from bench.core.cell import REFERENCE, Budget
from bench.core.errors import unknown
from bench.core.pattern import DENSE
from bench.planning import registry
from bench.planning.job import Job
from bench.planning.plan import make_cell
from bench.sources import loading
from bench.sources.architectures import config_at
from bench.weights.precision import default_device, for_training
from bench.weights.unstacked import restack


def arguments_of(
    task: str, budget: Budget, seed: int, device: torch.device, folder: str, **more: Any
) -> TrainingArguments:
    """Returns the arguments with which every method trains on a task.

    The order of the data depends on task and seed alone: every method sees the same batches.

    Args:
        task: name of the task.
        budget: updates and sequences.
        seed: the cell's.
        device: where the model trains.
        folder: for what Trainer writes.
        more: arguments that replace or complete these.
    """
    cpu = device.type == "cpu"
    chosen: dict[str, Any] = {
        "max_steps": budget.steps,
        "per_device_train_batch_size": budget.batch,
        "train_sampling_strategy": "group_by_length",
        "length_column_name": "length",
        "bf16": for_training(device) == "bf16-autocast",
        "use_cpu": cpu,
        "seed": seeds.derive("train", seed),
        "data_seed": seeds.derive("order", task, seed),
        "save_strategy": "no",
        "logging_strategy": "no",
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": not cpu,
    }
    arguments = TrainingArguments(output_dir=folder, **(chosen | more))
    # One device a cell: transformers would multiply the batch by the GPUs that it sees.
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def training_arguments(
    task: str,
    seed: int = 1,
    output_dir: str | Path = "trained",
    budget: str = "default",
    **more: Any,
) -> TrainingArguments:
    """Returns the arguments with which `sparsebench run` trains on a task, for an own Trainer.

    Args:
        task: name of the task.
        seed: the cell's seed.
        output_dir: for what Trainer writes.
        budget: name of one of the task's budgets.
        more: fields of TrainingArguments that replace or complete these.

    Raises:
        BenchError: there is no such task or budget.
    """
    budgets = registry.task(task).budgets
    if budget not in budgets:
        raise unknown("budget", budget, budgets)
    chosen = budgets[budget]
    smoothing = {"label_smoothing_factor": chosen.smoothing} if chosen.smoothing else {}
    device = default_device()
    return arguments_of(task, chosen, seed, device, str(output_dir), **(smoothing | more))


def load_model_and_tokenizer(
    model: str, task: str, seed: int = 1, budget: str = "default"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads what `sparsebench run` trains: the model with the task's head, and its tokenizer.

    Args:
        model: a slug or a hub id.
        task: name of the task.
        seed: draws the head.
        budget: name of the task's budget, which says how long the sequences are.

    Raises:
        BenchError: a name is unknown, the model cannot do the task, or cannot be fetched.
    """
    cell = make_cell(
        task=task,
        model=model,
        method=REFERENCE,
        pattern=DENSE,
        sparsity=0.0,
        seed=seed,
        budget=budget,
    )
    job = Job.resolve(cell)
    loading.check_model(config_at(job.place), job.task, job.budget.length, job.place.name)
    loaded = loading.load_for_task(job.place, job.task, seed)
    loaded.tok.model_max_length = job.budget.length
    restack(loaded.model)
    return loaded.model, loaded.tok
