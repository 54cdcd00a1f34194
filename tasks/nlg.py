"""`nlg/e2e`, `nlg/webnlg` and `nlg/dart`: data to text, scored as LoRA and PST report it.

Inputs are linearised as in LoRA's released converters (arXiv 2106.09685; Prefix-Tuning's,
arXiv 2101.00190, put one more ` | ` in front of WebNLG's):

    name : Blue Spice | Type : coffee shop | area : city centre
    Aarhus_Airport : cityServed : "Aarhus, Denmark" | Aarhus_Airport : elevation : 25.0

The validation sets are not used: hyper-parameters are selected on a slice of train, chosen by the
input's hash.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from bench.api import BenchError, Budget
from tasks.shared.base import HubRows, Splits, carve, load_splits
from tasks.shared.data_to_text import DataToText, Items, group

if TYPE_CHECKING:
    from tasks.metrics.text import TextMetric

# On the hub the main branches hold loading scripts, which `datasets` no longer runs.
_REVISION = "refs/convert/parquet"

# Inputs set apart for tuning: a tenth of train, but no more than tuning needs.
_SELECT, _SELECT_ITEMS = 0.1, 300

_SLOT = re.compile(r"\s*([^\[\],]+)\[([^\]]*)\]")
_SLOT_NAMES = {
    "eatType": "Type",
    "priceRange": "price",
    "familyFriendly": "family friendly",
}

SEEN_CATEGORIES = frozenset(
    (
        "Airport",
        "Astronaut",
        "Building",
        "City",
        "ComicsCharacter",
        "Food",
        "Monument",
        "SportsTeam",
        "University",
        "WrittenWork",
    )
)
"""WebNLG 2017's categories with training data."""


def linearise_mr(mr: str) -> str:
    """Linearises E2E's input: `name[Aromi], eatType[pub]` → `name : Aromi | Type : pub`."""
    slots = [(name.strip(), value.strip()) for name, value in _SLOT.findall(mr)]
    return " | ".join(f"{_SLOT_NAMES.get(name, name)} : {value}" for name, value in slots)


def linearise_triples(triples: Sequence[str]) -> str:
    """Linearises triples: `["A | born | B", "A | died | C"]` → `A : born : B | A : died : C`."""
    return " | ".join(" : ".join(part.strip() for part in t.split(" | ")) for t in triples)


class E2e(DataToText):
    """E2E restaurant descriptions (arXiv 1706.09254): 630 test inputs, 4,693 references.

    `full` is LoRA's run: five epochs and a beam of 10. The default budget suits a model of 135M
    parameters on two CPU cores.
    """

    repo, config = "tuetschek/e2e_nlg", "default"
    official = {"train": 42061, "test": 4693}
    length_penalty = 0.9
    limit = 630
    budgets = {
        "default": Budget(
            steps=200, batch=8, length=128, calib=128, timeout_s=2 * 3600, beams=1, smoothing=0.1
        ),
        "full": Budget(
            steps=26289, batch=8, length=512, timeout_s=48 * 3600, beams=10, smoothing=0.1
        ),
    }

    def metrics(self) -> Sequence[TextMetric]:
        """Returns those of the E2E challenge."""
        from tasks.metrics.ngram import Cider, Nist, RougeL  # `plan` starts without evaluate
        from tasks.metrics.text import Bleu, Meteor

        return Bleu(), Nist(), Meteor(), RougeL(), Cider()

    def _load(self) -> Splits[Items]:
        found = load_splits(self.name, self.repo, self.config, self.official, _REVISION)
        parts = {
            split: group(
                found.parsed(
                    split,
                    lambda row: (
                        linearise_mr(row["meaning_representation"]),
                        _line(row["human_reference"]),
                    ),
                )
            )
            for split in self.official
        }
        return _splits(parts, f"{self.repo}:{self.config}", found)


class Webnlg(DataToText):
    """WebNLG 2017 (Gardent et al., ACL 2017): BLEU on all 1,862 test inputs, 971 seen, 891 unseen.

    The two parts are also scored apart, as `<score>_seen` and `<score>_unseen`. A category is seen
    when it has training data. Only texts that the corpus marks as good are used, as in LoRA's
    converter.
    """

    repo, config = "webnlg-challenge/web_nlg", "webnlg_challenge_2017"
    official = {"train": 6940, "test": 4615}
    length_penalty = 0.8
    limit = 1862
    budgets = {
        "default": Budget(
            steps=200,
            batch=8,
            length=256,
            calib=128,
            timeout_s=2 * 3600,
            beams=1,
            items=600,
            smoothing=0.1,
        ),
        "full": Budget(
            steps=11266, batch=8, length=512, timeout_s=48 * 3600, beams=10, smoothing=0.1
        ),
    }

    def metrics(self) -> Sequence[TextMetric]:
        """Returns those of LoRA, and chrF++."""
        from tasks.metrics.text import Bleu, ChrF, Meteor, Ter, words_apart

        return Bleu(words_apart), Meteor(words_apart), Ter(words_apart), ChrF()

    def _load(self) -> Splits[Items]:
        found = load_splits(self.name, self.repo, self.config, self.official, _REVISION)
        # Of the other two test files, one has no texts and one repeats the unseen entries.
        parts = {
            "train": _items(found.parsed("train", _entry)),
            "test": _items(entry for entry in found.parsed("test", _test_entry) if entry),
        }
        return _splits(parts, f"{self.repo}:{self.config}", found)


class Dart(DataToText):
    """DART (arXiv 2007.02871), version 1.1.1: triples from tables, WebNLG and E2E, to a sentence.

    Relations are lower-cased, as in LoRA's converter.
    """

    repo, config = "Yale-LILY/dart", "default"
    official = {"train": 30526, "test": 6959}
    length_penalty = 0.8
    limit = 6959
    budgets = {
        "default": Webnlg.budgets["default"],
        "full": Budget(
            steps=39162, batch=8, length=512, timeout_s=48 * 3600, beams=10, smoothing=0.1
        ),
    }

    metrics = Webnlg.metrics

    def _load(self) -> Splits[Items]:
        found = load_splits(self.name, self.repo, self.config, self.official, _REVISION)
        parts = {
            split: group(pair for pairs in found.parsed(split, _dart_pairs) for pair in pairs)
            for split in self.official
        }
        return _splits(parts, f"{self.repo}:{self.config}", found)


def _lower_relations(triples: Sequence[Sequence[str]]) -> list[str]:
    return [f"{subject} | {relation.lower()} | {object_}" for subject, relation, object_ in triples]


def _dart_pairs(row: Mapping[str, Any]) -> list[tuple[str, str]]:
    input_ = linearise_triples(_lower_relations(row["tripleset"]))
    return [(input_, _line(text)) for text in row["annotations"]["text"]]


class _Entry(NamedTuple):
    """WebNLG's entry: its triples in a line, its good texts, and its category."""

    input_: str
    texts: list[str]
    category: str


def _entry(row: Mapping[str, Any]) -> _Entry:
    lex = row["lex"]
    pairs = zip(lex["text"], lex["comment"], strict=True)
    return _Entry(
        input_=linearise_triples(row["modified_triple_sets"]["mtriple_set"][0]),
        texts=[_line(text) for text, comment in pairs if comment == "good"],
        category=row["category"],
    )


def _test_entry(row: Mapping[str, Any]) -> _Entry | None:
    return _entry(row) if row["test_category"] == "testdata_with_lex" else None


def _items(entries: Iterable[_Entry]) -> Items:
    """Returns WebNLG's items; entries with equal triples become one."""
    groups: dict[str, str] = {}
    pairs = []
    for entry in entries:
        groups[entry.input_] = "seen" if entry.category in SEEN_CATEGORIES else "unseen"
        pairs += [(entry.input_, text) for text in entry.texts]
    items = group(pairs)
    return Items(items.inputs, items.texts, [groups[input_] for input_ in items.inputs])


def _splits(parts: dict[str, Items], repo: str, found: HubRows) -> Splits[Items]:
    for split, items in parts.items():
        if not len(items):
            raise BenchError(f"{found.task} {split}: no row has a text to learn or to compare with")
    fraction = min(_SELECT, _SELECT_ITEMS / len(parts["train"]))
    train, select = carve(parts["train"], fraction)
    return Splits(
        train=train,
        select=select,
        test=parts["test"],
        repo=repo,
        revision=found.revision,
        select_rule=f"train inputs whose hash is below {fraction:.4g}, with all their texts",
        subset=found.missing,
    )


def _line(text: object) -> str:
    if not isinstance(text, str):
        raise TypeError(f"{text!r} is no text")
    return " ".join(text.split())
