"""Orders of methods that papers printed, beside those of the boards here."""

import itertools
import math
from pathlib import Path

import pytest
from scipy import stats

from bench.api import BenchError
from bench.cli import main
from bench.core.store import Store
from bench.core.tuning import Choices
from bench.planning import registry
from bench.review import transfer
from bench.review.transfer import Place
from tests.samples import record

ROOT = Path(__file__).resolve().parents[1]
PLACE = Place("S", "llama-7b", "wikitext-c4", "unstructured", 0.7, "perplexity", "70%")


def statement(**fields):
    base = {"text": "A is better than B at 70 %", "pairs": [("Wanda", "magnitude")]}
    return transfer.Statement(**(base | {"levels": ["unstructured 0.7"]} | fields))


def test_printed_pairs_are_counted_within_a_table_a_level_and_a_metric():
    tables = {
        PLACE: {"Wanda": 7.0, "magnitude": 9.0, "SparseGPT": 1.0},
        PLACE._replace(model="llama-13b"): {"Wanda": 9.0, "magnitude": 7.0},
        PLACE._replace(source="who prints it again"): {"Wanda": 7.0, "magnitude": 9.0},
        PLACE._replace(model="opt-13b"): {"Wanda": 9.0},
        PLACE._replace(metric="accuracy"): {"Wanda": 0.7, "magnitude": 0.6},
        PLACE._replace(sparsity=0.5): {"Wanda": 5.0, "magnitude": 6.0},
        PLACE._replace(pattern="2:4", sparsity=0.5): {"Wanda": 5.0, "magnitude": 6.0},
    }
    assert transfer.support(statement(), tables) == (1, 2)
    assert transfer.support(statement(levels=["2:4"]), tables) == (1, 1)
    assert transfer.support(statement(levels=[], least=0.5), tables) == (3, 4)
    assert transfer.support(statement(levels=[], least=0.6), tables) == (1, 2)


def test_the_printed_tables_support_what_the_field_knows():
    tables = transfer.printed_tables()
    found = {s.text: transfer.support(s, tables) for s in transfer.read_statements().statement}
    # Nine models × three masks, and five models × three bases.
    assert found["DSnoT makes any mask better at 60 %"] == (27, 27)
    assert found["DLP is better than OWL at 70 %"] == (15, 15)
    assert all(pairs > 0 for _, pairs in found.values())


def test_every_label_stands_for_a_method():
    data = transfer.read_statements()
    assert {label for s in data.statement for pair in s.pairs for label in pair} <= set(data.names)
    for name in data.names.values():
        assert name.split()[0] in registry.names("method")


def counted(made, zeros):
    sparsity = made.sparsity.model_copy(update={"overall": zeros})
    return made.model_copy(update={"sparsity": sparsity})


def board(scores, seeds=(1, 2, 3), level=0.7, **fields):
    """Records whose items give about the scores; seeds move some of the 400 items."""
    made = []
    for (method, score), seed in itertools.product(scores.items(), seeds):
        right = round(400 * score) + seed * seed * len(method) % 7
        items = "1" * right + "0" * (400 - right)
        made.append(
            record(right / 400, method=method, sparsity=level, seed=seed, items=items, **fields)
        )
    return made


@pytest.mark.parametrize(
    ("scores", "seeds", "answer"),
    [
        ({"wanda": 0.8, "magnitude": 0.6}, (1, 2, 3), "agrees"),
        ({"wanda": 0.6, "magnitude": 0.8}, (1, 2, 3), "disagrees"),
        ({"wanda": 0.7, "magnitude": 0.7}, (1, 2, 3), "cannot tell"),
        ({"wanda": 0.8, "magnitude": 0.6}, (1, 2), "not tested"),
    ],
)
def test_a_board_agrees_disagrees_or_cannot_tell(scores, seeds, answer):
    names = {"Wanda": "wanda", "magnitude": "magnitude"}
    ((line, pair, said),) = transfer.findings(statement(), names, board(scores, seeds))
    assert (pair, said) == ("wanda − magnitude", answer)
    assert line.test.effect == pytest.approx(scores["wanda"] - scores["magnitude"], abs=0.01)
    assert not list(transfer.findings(statement(levels=["2:4"]), names, board(scores, seeds)))


def test_rows_of_another_size_than_asked_for_are_not_tested():
    names = {"Wanda": "wanda", "magnitude": "magnitude"}
    rows = board({"wanda": 0.8, "magnitude": 0.6})
    made = [counted(r, 0.6) if r.cell.method == "wanda" else r for r in rows]
    ((_, _, said),) = transfer.findings(statement(), names, made)
    assert said == "not tested"


def test_of_perplexities_the_lower_one_is_better():
    names = {"Wanda": "wanda", "magnitude": "magnitude"}
    made = []
    for method, nats in (("wanda", 3.0), ("magnitude", 3.5)):
        for seed in (1, 2, 3):
            items = [nats + 0.01 * ((k + seed) % 5 - 2) for k in range(40)]
            value = math.exp(sum(items) / len(items))
            one = record(value, method=method, sparsity=0.7, seed=seed, items=items)
            update = {"metric": "perplexity", "higher_is_better": False, "n": 40}
            made.append(one.model_copy(update={"scores": one.scores.model_copy(update=update)}))
    ((line, _, said),) = transfer.findings(statement(), names, made)
    assert line.test.ratio
    assert said == "agrees"


def test_the_order_of_methods_is_spearmans():
    printed = [5.0, 4.0, 3.0, 2.0, 1.0]
    here = [[0.9, 0.8], [0.5, 0.6], [0.7, 0.7], [0.4, 0.4], [0.1, 0.1]]
    rho, low, high = transfer.spearman(printed, here, draws=400)
    assert rho == pytest.approx(stats.spearmanr(printed, [0.85, 0.55, 0.7, 0.4, 0.1]).statistic)
    assert -1 <= low <= rho <= high <= 1
    assert transfer.spearman(printed, [[x] for x in printed], draws=400) == pytest.approx((1, 1, 1))


def test_orders_are_compared_within_one_level():
    methods = ("magnitude", "wanda", "sparsegpt", "owl", "ria")
    scores = dict(zip(methods, (0.5, 0.6, 0.7, 0.75, 0.65), strict=True))
    labels = ("magnitude", "Wanda", "SparseGPT", "OWL+Wanda", "RIA")
    tables = {PLACE: dict(zip(labels, (50.0, 20.0, 10.0, 8.0, 15.0), strict=True))}
    names = transfer.read_statements().names
    ((place, where, n, told),) = transfer._orders(tables, names, board(scores), Choices())
    assert (place, n, told[0]) == (PLACE, 5, "1.00")
    assert where.endswith("unstructured 0.7")
    assert not list(transfer._orders(tables, names, board(scores, level=0.5), Choices()))
    del scores["ria"]
    assert not list(transfer._orders(tables, names, board(scores), Choices()))


def test_a_damaged_file_is_one_line(tmp_path):
    path = tmp_path / "transfer.toml"
    path.write_text("[[statement]]\ntext = 3\n")
    with pytest.raises(BenchError, match=r"transfer\.toml: not a file of statements"):
        transfer.read_statements(path)


def test_without_records_the_page_still_counts_what_was_printed(tmp_path, capsys):
    assert main.main(["transfer", "--results", str(tmp_path / "none")]) == 0
    shown = capsys.readouterr().out
    assert "27 of 27" in shown
    assert "0 of them were tested here" in shown


def test_the_committed_page_is_that_of_the_committed_records():
    page = ROOT / "reports" / "transfer.md"
    if not page.exists():
        pytest.skip("no page is committed")
    records, _ = Store(ROOT / "results").records()
    text = transfer.transfer_page(records, Choices(ROOT / "results")) + "\n"
    assert page.read_text(encoding="utf-8") == text, "make transfer"
