"""The mean over a suite's tasks is a record like others: exact scores, stratified items."""

import random

import numpy as np
import pytest

from bench.core.collapse import collapsed
from bench.planning import registry
from bench.reporting import boards, front, paired, statistics, suite_boards
from bench.reporting.cost_tables import relative_time
from bench.reporting.mean_records import mean_records
from bench.reporting.pages import write_pages
from tests.samples import OLD, record

TASKS = ("glue/sst2", "glue/qnli", "glue/rte")
SIZES = {"glue/sst2": 40, "glue/qnli": 100, "glue/rte": 25}
SEEDS = (1, 2, 3)


def made(method, task, seed, share, majority=0.5, **more):
    """A record with as many items as the task has, right on about `share` of them.

    Half of the seeds' items are decided by the method alone, so that items differ for all seeds.
    """
    common, own = random.Random(f"{method} {task}"), random.Random(f"{method} {task} {seed}")
    n = SIZES[task]
    drawn = [(common.random(), own.random(), own.random() < 0.5) for _ in range(n)]
    items = "".join("1" if (own if alone else both) < share else "0" for both, own, alone in drawn)
    found = record(items.count("1") / n, task=task, method=method, seed=seed, items=items, **more)
    scores = found.scores.model_copy(
        update={"n": n, "all": {"accuracy": found.scores.value, "majority": majority}}
    )
    data = found.data.model_copy(update={"fingerprint": task})
    return found.model_copy(update={"scores": scores, "data": data})


def rows(method, share, tasks=TASKS, seeds=SEEDS, **more):
    return [made(method, task, seed, share, **more) for task in tasks for seed in seeds]


def dense(share=0.95, **more):
    return rows("dense", share, pattern="dense", sparsity=0.0, **more)


def test_scores_are_means_and_costs_are_totals():
    parts = [made("pst", task, 1, 0.8) for task in TASKS]
    (found,) = mean_records(parts, TASKS)
    values = [part.scores.value for part in parts]
    assert found.scores.value == pytest.approx(sum(values) / 3)
    assert found.scores.all == dict(zip(TASKS, values, strict=True))
    assert np.mean(found.scores.items) == pytest.approx(found.scores.value)
    assert (found.scores.n, len(found.scores.items)) == (165, 165)
    assert found.cell.task == "glue/mean"
    assert (found.budget.steps, found.cost.train_s, found.cost.eval_s) == (900, 30, 3)
    assert found.members == tuple(parts)


def test_a_mean_has_every_task_on_one_seed():
    found = [*rows("pst", 0.8), *rows("gmp", 0.8, tasks=TASKS[:2]), made("l0", TASKS[0], 1, 0.8)]
    means = mean_records([*found, made("l0", TASKS[1], 2, 0.8)], TASKS)
    assert [(r.cell.method, r.cell.seed) for r in means] == [("pst", s) for s in SEEDS]
    assert mean_records(found, TASKS[:1]) == []
    assert mean_records(found, ()) == []


def test_levels_and_budgets_do_not_mix():
    whole = rows("pst", 0.8, seeds=(1,))
    other = rows("pst", 0.8, seeds=(1,), sparsity=0.9)
    full = rows("pst", 0.8, seeds=(1,), budget="full")
    assert len(mean_records([*whole, *other, *full], TASKS)) == 3
    assert mean_records([*whole[:2], full[2]], TASKS) == []
    assert mean_records([*whole[:2], other[2]], TASKS) == []


def test_noise_is_that_of_a_stratified_mean():
    """By hand: D = Σ D_t / T; its variance is Σ b_t / T², seeds apart."""
    a, b = rows("pst", 0.9), rows("gmp", 0.7)
    means = mean_records([*a, *b], TASKS)
    x = np.array(
        [
            [paired.items_of(r.scores) for r in means if r.cell.method == m]
            for m in ("pst", "gmp")
        ]
    )  # fmt: skip
    found = statistics.pairwise(x)
    by_item, per_seed, within = 0.0, np.zeros(len(SEEDS)), 0.0
    for task in TASKS:
        d = np.array(
            [
                paired.items_of(p.scores) - paired.items_of(q.scores)
                for p, q in zip(a, b, strict=True)
                if p.cell.task == task
            ]
        )
        n, s = d.shape[1], len(SEEDS)
        per_seed += d.mean(axis=1) / len(TASKS)
        item = d.mean(axis=0)
        rest = d - item[None, :] - d.mean(axis=1)[:, None] + d.mean()
        within += (rest**2).sum() / ((s - 1) * (n - 1)) / s / n / len(TASKS) ** 2
        by_item += item.var(ddof=1) / n / len(TASKS) ** 2
    assert found.difference[0, 1] == pytest.approx(per_seed.mean())
    assert found.by_seed[0, 1] == pytest.approx(per_seed.var(ddof=1) / len(SEEDS))
    assert by_item > within
    assert found.by_item[0, 1] == pytest.approx(by_item - within)


def test_differences_between_tasks_are_no_noise():
    """One row is ahead by a point on one task and by 20 on another, on every item and seed."""
    a, b = rows("pst", 0.9), []
    for part in a:
        lead = 0.2 if part.cell.task == "glue/rte" else 0.01
        items = [outcome - lead for outcome in map(int, part.scores.items)]
        scores = part.scores.model_copy(update={"items": items, "value": part.scores.value - lead})
        cell = part.cell.model_copy(update={"method": "gmp"})
        b.append(part.model_copy(update={"cell": cell, "key": cell.key, "scores": scores}))
    means = mean_records([*a, *b], TASKS)
    x = [[paired.items_of(r.scores) for r in means if r.cell.method == m] for m in ("pst", "gmp")]
    found = statistics.pairwise(np.array(x))
    assert found.difference[0, 1] == pytest.approx((0.01 + 0.01 + 0.2) / 3)
    assert found.by_item[0, 1] == 0.0
    assert found.by_seed[0, 1] == 0.0


def test_a_task_that_dense_does_not_learn_does_not_count():
    weak = [r for r in dense() if r.cell.task != "glue/rte"]
    weak += [made("dense", "glue/rte", s, 0.55, pattern="dense", sparsity=0.0) for s in SEEDS]
    assert any(map(collapsed, weak))
    means = mean_records([*weak, *rows("pst", 0.8)], TASKS)
    assert {tuple(r.scores.all) for r in means} == {TASKS[:2]}
    assert "no better than chance there: glue/rte" in means[0].scores.notes[1]
    sent = [r.model_copy(update={"origin": "someone"}) for r in weak]
    means = mean_records([*sent, *dense(), *rows("pst", 0.8)], TASKS)
    assert {len(r.scores.all) for r in means} == {3}


def test_a_mean_is_collapsed_or_old_if_a_member_is():
    parts = [made("pst", task, 1, 0.95) for task in TASKS]
    (fine,) = mean_records(parts, TASKS)
    assert not collapsed(fine)
    assert not registry.is_stale(fine)
    (fallen,) = mean_records([*parts[:2], made("pst", TASKS[2], 1, 0.3)], TASKS)
    assert collapsed(fallen)
    (old,) = mean_records([*parts[:2], parts[2].model_copy(update={"versions": OLD})], TASKS)
    assert registry.is_stale(old)


def test_times_compare_where_each_task_ran_on_the_same_machine():
    def on(records, *machines):
        names = dict(zip(TASKS, machines, strict=True))
        return [r.model_copy(update={"env": {"cpu": names[r.cell.task]}}) for r in records]

    def relative(*found):
        (board,) = boards.boards(mean_records([r for part in found for r in part], TASKS))
        row = next(inside for key, inside in board.rows if key[0] == "pst")
        return relative_time(row, board.dense[1])

    assert relative(on(dense(), *"AAB"), on(rows("pst", 0.8), *"AAB")) == pytest.approx(1.0)
    assert relative(on(dense(), *"AAB"), on(rows("pst", 0.8), *"ABA")) is None
    assert relative(on(dense(), *"AAA"), on(rows("pst", 0.8), *"AAB")) is None


def test_pages_show_the_mean_first_and_the_front_page_the_mean_alone(tmp_path):
    suite = suite_boards.load_suite("glue")
    SIZES.update({task: 60 for task in suite.average if task not in SIZES})
    records = [*dense(tasks=suite.average), *rows("gmp", 0.8, tasks=suite.average)]
    (found,) = suite_boards.by_suite(records)
    assert [board.group[0] for board in found.means] == ["glue/mean"]
    assert len(found.tasks) == len(suite.average)
    write_pages(records, [], tmp_path, results=tmp_path)
    page = (tmp_path / "glue.md").read_text()
    assert page.index("mean of") < page.index("glue/mean · minilm-l6") < page.index("glue/cola ·")
    assert "glue/mean" not in "".join(part for part in page.split("](")[1:] if "results" in part)
    text = front.front(records)
    assert text.count("| method") == 1
    assert "Mean of glue/cola" in text
