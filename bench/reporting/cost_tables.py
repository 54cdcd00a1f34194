"""What methods cost and save, one table a machine: times of different hardware never mix."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence

from bench.core.record import Record
from bench.core.record_parts import Speed
from bench.core.tables import gib, human, mib
from bench.reporting.rows import NAME, Clean, Key, Row, mark_of, marked, name

COST_LEGEND = """\
**MACs**: multiply-adds of one sequence. *effective* leaves out products with zero weights, which is
no speed-up by itself; *realizable* leaves out only what this hardware can skip (sliced heads and
neurons, 2:4 with a kernel); *train* is one update's forward and backward, per sequence.
**stored**: bytes in the smallest lossless format, or in the quantized one. **ms**: median latency
of one forward pass of the deployed form, batch × tokens; **faster**: dense latency / this latency,
in the same run. **train s**: seconds to the pruned model; one-shot methods include the dense
training that they start from, and a teacher's training is left out. **peak memory**: of the cell's
process.
"""

_COUNTS = ("dense", "effective", "realizable", "train")


def costs_by_machine(rows: Sequence[Row], clean: Clean, render: Callable[..., str]) -> list[str]:
    """Returns the cost tables of a leaderboard's rows, one a machine."""
    machines: dict[str, list[tuple[Key, list[Record]]]] = defaultdict(list)
    for key, records in rows:
        for machine in sorted({hardware(r) for r in records}):
            machines[machine].append((key, [r for r in records if hardware(r) == machine]))
    parts = []
    for machine, inside in sorted(machines.items()):
        settings = sorted({setting(s) for _, rs in inside for r in rs for s in r.speed})
        header = [*NAME, *(f"MACs {kind}" for kind in _COUNTS), "stored"]
        for batch, length, dtype in settings:
            header += [clean(f"ms {batch}×{length} {dtype}"), "faster"]
        header += ["train s", "peak memory"]
        table = render(header, [_row(key, rs, settings, clean) for key, rs in inside])
        parts.append(f"costs on {clean(machine)}\n\n{table}")
    return parts


def hardware(record: Record) -> str:
    """Names what a record's times were taken on.

    A published record is of another machine, even of the same kind: other work ran beside it.
    """
    env = record.env
    threads = env.get("threads", "?")
    threads = f"{threads} thread{'' if threads == 1 else 's'}"
    kind = str(env.get("gpu") or f"{env.get('cpu', '?')}, {threads}")
    mark = mark_of(record)
    return marked(kind, mark) if mark == "published" else kind


def seconds(record: Record) -> float:
    """Returns wall-clock seconds to the pruned model, with the dense training before it."""
    assert record.cost is not None
    return record.cost.train_s + record.cost.prune_s + record.cost.dense_s


def mean_seconds(records: Sequence[Record]) -> float:
    """Returns the mean of `seconds` over the seeds of a row."""
    return statistics.fmean(map(seconds, records))


def one_machine(records: Sequence[Record]) -> str | None:
    """Returns the hardware of all records; None where times are of several and never compare.

    So are those of trainings in bf16 and in float32: the hardware's name may be the same.
    """
    found = {hardware(r) for r in records}
    dtypes = {str(r.env.get("train_dtype")) for r in records if r.cost and r.cost.train_s}
    return found.pop() if len(found) == 1 and len(dtypes) < 2 else None


def relative_time(records: Sequence[Record], dense: Sequence[Record]) -> float | None:
    """Returns a row's mean seconds / the dense row's.

    None where they are not of one machine, or dense is a pretrained model that trains nothing.
    """
    base = mean_seconds(dense) if trains(dense) else 0
    return mean_seconds(records) / base if base and one_machine([*records, *dense]) else None


def absolute_time(records: Sequence[Record], dense: Sequence[Record]) -> float | None:
    """Returns a row's mean seconds, to a tenth, where dense trains nothing; else None.

    None, too, where they are not of one machine.
    """
    if trains(dense) or not one_machine([*records, *dense]):
        return None
    return round(mean_seconds(records), 1)


def trains(records: Sequence[Record]) -> bool:
    """Tells whether a row's cells trained anything."""
    return any(r.cost.train_s > 0 for r in records if r.cost)


def setting(speed: Speed) -> tuple[int, int, str]:
    """Returns what a latency was taken of: batch, length, dtype."""
    return speed.batch, speed.length, speed.dtype


def _row(
    key: Key, records: Sequence[Record], settings: Sequence[tuple[int, int, str]], clean: Clean
) -> list[str]:
    first = records[0]
    assert first.macs is not None
    assert first.bytes is not None
    cells = [*name(key, clean), *(human(getattr(first.macs, kind)) for kind in _COUNTS)]
    cells.append("–" if first.bytes.stored is None else mib(first.bytes.stored))
    for one in settings:
        taken = [s for r in records for s in r.speed if setting(s) == one]
        cells += _latency(taken, clean) if len(taken) == len(records) else ["–", "–"]
    cells.append(f"{mean_seconds(records):.1f}")
    cells.append(gib(max(r.cost.peak_bytes for r in records if r.cost)))
    return cells


def _latency(taken: Sequence[Speed], clean: Clean) -> list[str]:
    """Returns milliseconds and speed-up, medians over seeds."""
    ratio = statistics.median(s.dense_ms_p50 / s.ms_p50 for s in taken)
    forms = sorted({s.form for s in taken} - {"dense"})
    faster = f"{ratio:.2f}" + (f" ({clean(', '.join(forms))})" if forms else "")
    return [f"{statistics.median(s.ms_p50 for s in taken):.1f}", faster]
