"""`nlg/e2e`, `nlg/webnlg` and `nlg/dart`: data to text, scored as LoRA and PST report them.

Inputs are linearised as in LoRA's released converters (arXiv 2106.09685; Prefix-Tuning's,
arXiv 2101.00190, put one more ` | ` in front of WebNLG's):

    name : Blue Spice | Type : coffee shop | area : city centre
    Aarhus_Airport : cityServed : "Aarhus, Denmark" | Aarhus_Airport : elevation : 25.0

The validation sets stay unused: what is selected on is a slice of train, by hash of the input.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from bench.api import Budget
from bench.sources import hub
from tasks.metrics.ngram import Cider, Nist, RougeL
from tasks.metrics.text import Bleu, ChrF, Meteor, Ter, TextMetric, words_apart
from tasks.shared.data_to_text import DataToText, Items, Splits, carve, group

# All are loading scripts on the hub, which datasets no longer runs; this branch has the rows.
REVISION = "refs/convert/parquet"

# Inputs set apart for tuning: a tenth of train, but no more than tuning needs.
SELECT, SELECT_ITEMS = 0.1, 300

_SLOT = re.compile(r"\s*([^\[\],]+)\[([^\]]*)\]")
_SLOT_NAMES = {
    "eatType": "Type",
    "priceRange": "price",
    "familyFriendly": "family friendly",
}

SEEN = frozenset(
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
    """`name[Blue Spice], eatType[pub]` → `name : Blue Spice | Type : pub`."""
    slots = [(name.strip(), value.strip()) for name, value in _SLOT.findall(mr)]
    return " | ".join(f"{_SLOT_NAMES.get(name, name)} : {value}" for name, value in slots)


def linearise_triples(triples: Sequence[str]) -> str:
    """`["A | born | B", "A | died | C"]` → `A : born : B | A : died : C`."""
    return " | ".join(" : ".join(part.strip() for part in t.split(" | ")) for t in triples)


class E2e(DataToText):
    """E2E restaurant descriptions (arXiv 1706.09254): 630 test inputs, 4,693 references.

    `full` is LoRA's run: five epochs and a beam of 10. The default suits a model of 135M
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
        """Those of the challenge."""
        return Bleu(), Nist(), Meteor(), RougeL(), Cider()

    def _load(self) -> Splits:
        rows, revision, missing = _parts(self.repo, self.config, self.official)
        parts = {
            split: group(
                (linearise_mr(row["meaning_representation"]), _line(row["human_reference"]))
                for row in found
            )
            for split, found in rows.items()
        }
        return _splits(parts, f"{self.repo}:{self.config}", revision, missing)


class Webnlg(DataToText):
    """WebNLG 2017 (Gardent et al., ACL 2017): BLEU on all 1,862 test inputs, 971 seen, 891 unseen.

    The parts are scored apart too, as `<score>_seen` and `<score>_unseen`; a category is seen when
    there is training data for it. Texts that the corpus marks as in need of a fix are left out of
    train, as in LoRA's converter.
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
        """LoRA's, and chrF++."""
        return Bleu(words_apart), Meteor(words_apart), Ter(words_apart), ChrF()

    def _load(self) -> Splits:
        rows, revision, missing = _parts(self.repo, self.config, self.official)
        parts = {
            # One file of test entries has no texts, another repeats the unseen ones.
            "test": _entries(r for r in rows["test"] if r["test_category"] == "testdata_with_lex"),
            "train": _entries(rows["train"]),
        }
        return _splits(parts, f"{self.repo}:{self.config}", revision, missing)


class Dart(DataToText):
    """DART (arXiv 2007.02871), version 1.1.1: triples from tables, WebNLG and E2E, to one sentence.

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

    def _load(self) -> Splits:
        rows, revision, missing = _parts(self.repo, self.config, self.official)
        parts = {
            split: group(
                (linearise_triples(_lower_relations(row["tripleset"])), _line(text))
                for row in found
                for text in row["annotations"]["text"]
            )
            for split, found in rows.items()
        }
        return _splits(parts, f"{self.repo}:{self.config}", revision, missing)


def _lower_relations(triples: Sequence[Sequence[str]]) -> list[str]:
    return [f"{subject} | {relation.lower()} | {object_}" for subject, relation, object_ in triples]


def _entries(rows) -> Items:
    """WebNLG's entries; entries with the same triples are one."""
    groups: dict[str, str] = {}
    pairs = []
    for row in rows:
        input_ = linearise_triples(row["modified_triple_sets"]["mtriple_set"][0])
        groups[input_] = "seen" if row["category"] in SEEN else "unseen"
        lex = row["lex"]
        for text, comment in zip(lex["text"], lex["comment"], strict=True):
            if comment == "good":
                pairs.append((input_, _line(text)))
    items = group(pairs)
    return Items(items.inputs, items.texts, [groups[input_] for input_ in items.inputs])


def _parts(repo: str, config: str, official: Mapping[str, int]):
    """(rows by split, revision, what is missing against the official numbers)."""
    rows, missing, revision = {}, [], ""
    for split, expected in official.items():
        rows[split], revision = hub.load_split(repo, config, split, REVISION)
        if len(rows[split]) < expected:
            missing.append(f"{split} {len(rows[split])} of {expected} rows")
    return rows, revision, ", ".join(missing)


def _splits(parts: dict[str, Items], repo: str, revision: str, missing: str) -> Splits:
    fraction = min(SELECT, SELECT_ITEMS / len(parts["train"]))
    train, select = carve(parts["train"], fraction)
    return Splits(
        train=train,
        select=select,
        test=parts["test"],
        repo=repo,
        revision=revision,
        select_rule=f"train inputs whose hash is below {fraction:.4g}, with all their texts",
        subset=missing,
    )


def _line(text: str) -> str:
    return " ".join(text.split())
