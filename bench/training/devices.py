"""How a cell is run where that does not decide its scores: batches in pieces, several devices.

A cell on several devices is one process a device, each with the whole model, the same seed and its
share of every batch; accelerate averages their gradients. The first process is the cell's own: it
starts the others, and alone evaluates, measures and answers.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any


def start_others(
    job: Mapping[str, Any], processes: int, command: list[str], answers: IO[str]
) -> None:
    """Makes this process the first of several and starts the others, in its process group.

    They get the job, with their rank, on standard input, which stays open as long as this process
    lives, and a GPU each where there are some. One that fails ends the whole group.

    Args:
        job: of the cell.
        processes: in all.
        command: what starts one.
        answers: where they may write, as this process does.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    gpus = [gpu for gpu in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if gpu]

    def own(number: int) -> dict[str, str]:
        # Every process sees one GPU, its first; so each is the first of its kind.
        pinned = {"CUDA_VISIBLE_DEVICES": gpus[number % len(gpus)]} if gpus else {}
        return {"RANK": str(number), "LOCAL_RANK": "0", **shared, **pinned}

    for number in range(1, processes):
        other = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=answers,
            text=True,
            env={**os.environ, **own(number)},
        )
        assert other.stdin is not None
        other.stdin.write(json.dumps({**job, "rank": number}) + "\n")
        other.stdin.flush()
        threading.Thread(target=_end_with, args=(other,), daemon=True).start()
    os.environ.update(own(0))


def _end_with(other: subprocess.Popen[str]) -> None:
    if other.wait() != 0:
        os.killpg(os.getpgrp(), 9)


def agree(value: bool) -> bool:
    """Returns what the first process says; every process must ask."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return value
    told = [value]
    dist.broadcast_object_list(told)
    return told[0]


def same(text: Callable[[], str]) -> bool:
    """Whether all processes say the same; every process must ask."""
    import torch.distributed as dist

    if not dist.is_initialized():
        return True
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, text())
    return len(set(told)) == 1


def part() -> None:
    """Ends the common work; from here on, every process is alone."""
    import torch.distributed as dist
    from accelerate.state import AcceleratorState

    if dist.is_initialized():
        dist.destroy_process_group()
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ["WORLD_SIZE"] = "1"
