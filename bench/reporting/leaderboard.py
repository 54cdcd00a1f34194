"""The leaderboard: one row a method, pattern and sparsity; means over seeds, costs beside them.

Rows of one pattern, sparsity and quantizer are ranked against each other, by a paired test and with
three seeds at least; until then they are sorted by score and none is called
better. In Markdown every score links to its records.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence

from bench.core.record import Record
from bench.core.tables import duration, escape, human, markdown, percent, plain, printable
from bench.core.tuning import NO_CHOICES, Choice, Choices
from bench.reporting import cost_tables
from bench.reporting.averages import task_tables
from bench.reporting.boards import Board, boards
from bench.reporting.mean_records import mean_records
from bench.reporting.rows import (
    NAME,
    Clean,
    Key,
    Link,
    Row,
    collapse_note,
    name,
    score,
    stale_note,
    unlinked,
)

HEADER = (
    *NAME,
    "seeds",
    "score",
    "recovery %",
    "rank",
    "sparsity %",
    "trainable",
    "+ head",
    "% of model",
    "stored",
)

BOARD_LEGEND = """\
**rank**: among rows of the same pattern, sparsity and quantizer, on at least three common seeds.
`2–5` means: one row is better, and up to three more may be. The paired tests are at 5 % over all
pairs of these rows, so that all ranges hold at once. They are over seeds × items, or over seeds
alone (†) where records hold no items that give the score. A row whose counted sparsity is not what
was asked for, or that is of an earlier version, has no rank.
**unverified**: records that someone sent in; they are shown and not ranked.
**score**: the task's metric × 100 where higher is better, unscaled where lower is better
(perplexity); mean ± sample standard deviation over seeds. *collapsed 1 of 5*: that many runs are
no better than the majority class or chance, within two standard errors; the mean without them
stands beside it. **recovery**: score / dense score on the
same seeds; dense score / score where lower is better. **sparsity**: exact zeros in the target
weights of the exported, reloaded model. **quantized**: the width that the finished target weights
were rounded to / the number of inputs that share a scale; *emb*: the embeddings too. Recovery is
against the unquantized dense model. **trainable**: elements of the tensors that the optimizer held,
without the classification head; **% of model**: that / all parameters. **stored**: non-zero target
weights + everything else.
**settings**: *best of 8* was chosen by eight trials on the select slice of the training data, which
took that long; *given* and *default* were not chosen by trials.
**every score**: means of all the task's metrics, as the task returns them.
"""

PUBLISHED_LEGEND = """\
**published**: the project's own records, for comparison. They are ranked together with the rows of
this machine. Their costs and their other metrics are on the project's pages: times of two machines
never share a table.
"""


def table(
    records: Iterable[Record],
    render: Callable[..., str] = plain,
    average: Sequence[str] = (),
    choices: Choices = NO_CHOICES,
) -> str:
    """Returns one table a task and model, with a line above it that says what is in it.

    Where records hold several tasks of `average`, the last tables have their scores and the mean.
    """
    inside = list(records)
    found = [*boards(inside, choices), *boards(mean_records(inside, average), choices)]
    parts = [tables(found, render), *task_tables(inside, average, render)]
    return "\n\n".join(filter(None, parts))


def tables(
    found: Sequence[Board],
    render: Callable[..., str] = plain,
    link: Link = unlinked,
    trials: Callable[[str, Choice], str] = unlinked,
) -> str:
    """Returns boards as text: what is in each, its rows, their costs and all their scores."""
    clean = escape if render is markdown else printable
    parts = []
    for board in found:
        parts += [title(board, render is markdown), _rows(board, render, clean, link, trials)]
        parts += cost_tables.costs_by_machine(board.own, clean, render)
        header, scores = _every_score(board.own, clean)
        if len(header) > len(NAME) + 1:
            parts.append(f"every score\n\n{render(header, scores)}")
    return "\n\n".join(parts)


def _rows(
    board: Board,
    render: Callable[..., str],
    clean: Clean,
    link: Link,
    trials: Callable[[str, Choice], str],
) -> str:
    """Returns the rows; where settings were chosen, a last column tells it of each row."""
    header: tuple[str, ...] = HEADER
    rows = [_row(key, inside, board, clean, link) for key, inside in board.rows]
    if board.choices:
        header = (*HEADER, "settings")
        for row, (key, _) in zip(rows, board.rows, strict=True):
            row.append(_settings(key, board, trials))
    return render(header, rows)


def title(board: Board, is_markdown: bool) -> str:
    """Says in a few lines what was scored, on what data, and where it was measured."""
    records = board.records
    own = [record for _, inside in board.own for record in inside]
    first = records[0]
    assert first.scores is not None
    assert first.budget is not None
    budget = first.budget
    cell, scores = first.cell, first.scores
    metric = scores.metric if scores.higher_is_better else f"{scores.metric} (lower is better)"
    about = (
        f"{cell.task} · {cell.model} · {metric} on {scores.n} items · "
        f"{budget.steps} steps of {budget.batch} × ≤ {budget.length} tokens"
    )
    if budget.beams:
        about += " · greedy" if budget.beams == 1 else f" · beam {budget.beams}"
    clean = escape if is_markdown else printable
    lines = [("## " if is_markdown else "") + clean(about)]
    subsets = sorted({r.data.subset for r in records if r.data and r.data.subset})
    if subsets:
        note = f"SUBSET of the official data: {'; '.join(subsets)}"
        lines.append(f"**{clean(note)}**" if is_markdown else clean(note))
    lines += [clean(n) for n in sorted(_notes(records))]
    note = f"measured on {'; '.join(sorted({cost_tables.hardware(r) for r in own}))}"
    if dtypes := sorted(
        {str(r.env.get("train_dtype", "?")) for r in own if cost_tables.trains([r])}
    ):
        note += f", training in {' and '.join(dtypes)}"
    if (scored := {str(r.env.get("eval_dtype", "float32")) for r in own}) != {"float32"}:
        note += f", scored in {' and '.join(sorted(scored))}"
    lines.append(clean(note))
    return ("\n\n" if is_markdown else "\n").join(lines)


def _notes(records: Sequence[Record]) -> set[str]:
    notes = {note for r in records if r.scores for note in r.scores.notes or ()}
    return notes | set(stale_note(records))


def _every_score(rows: Sequence[Row], clean: Clean) -> tuple[list[str], list[list[str]]]:
    """Returns header and rows of the means of all metrics, as the task returned them."""
    found = {name for _, records in rows for r in records if r.scores for name in r.scores.all}
    metrics = sorted(found)
    table = []
    for key, records in rows:
        cells = name(key, clean)
        for metric in metrics:
            values = [r.scores.all.get(metric) for r in records if r.scores]
            known = [v for v in values if v is not None]
            cells.append(f"{statistics.fmean(known):.4f}" if len(known) == len(records) else "–")
        table.append(cells)
    return [*NAME, *map(clean, metrics)], table


def _row(
    key: Key,
    records: Sequence[Record],
    board: Board,
    clean: Clean,
    link: Link,
) -> list[str]:
    first = records[0]
    assert first.params is not None
    trainable, total = first.params.trainable, first.params.total
    return [
        *name(key, clean),
        str(len(records)),
        link(score(records, 2), records) + collapse_note(records, 2),
        percent(board.recovery[key], 1),
        board.ranks[key],
        percent(statistics.fmean(r.sparsity.overall for r in records if r.sparsity)),
        human(trainable.body),
        human(trainable.head),
        percent(trainable.body / total),
        human(first.params.stored),
    ]


def _settings(key: Key, board: Board, trials: Callable[[str, Choice], str]) -> str:
    """Returns where a row's parameters come from, with the seconds of the trials."""
    if choice := board.choices.get(key):
        return trials(f"best of {len(choice.trials)}", choice) + f", {duration(choice.seconds)}"
    return "given" if key[3].method else "default"
