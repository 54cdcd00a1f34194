"""Data to text: rows, labels, generation, scores; `-m real` looks at the real splits."""

import dataclasses
import itertools
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from torch.nn.functional import log_softmax

from bench.api import BenchError
from bench.planning import plan, registry
from bench.planning.job import Job
from bench.planning.suites import load_suite
from bench.reporting import leaderboard
from bench.sources import hub
from bench.training import losses, train
from methods.dense import Dense
from tasks import nlg, tiny
from tasks.metrics import meteor
from tasks.metrics.text import Bleu, Meteor
from tasks.shared import generation
from tasks.shared.base import carve
from tasks.shared.data_to_text import IGNORED, Items, group, sample
from tasks.shared.generation import Decoding, generate, pad_left
from tests import helpers, samples
from tests.helpers import fit_cell, run_cell, tune_cell

DECODERS = ("tiny-gpt2", "tiny-llama")
CPU = torch.device("cpu")
quiet = lambda *_: None  # noqa: E731


@pytest.fixture
def task():
    return registry.task("tiny/nlg")


def loaded(model, task, length=40):
    return helpers.loaded(model, task, length)


cell = partial(helpers.cell, method="dense", model="tiny-gpt2", task="tiny/nlg")


@pytest.mark.parametrize(
    ("mr", "expected"),
    [
        (
            "name[Blue Spice], eatType[coffee shop], area[city centre]",
            "name : Blue Spice | Type : coffee shop | area : city centre",
        ),
        (
            "name[Aromi], priceRange[£20-25], customer rating[5 out of 5], familyFriendly[no]",
            "name : Aromi | price : £20-25 | customer rating : 5 out of 5 | family friendly : no",
        ),
    ],
)
def test_meaning_representations_in_a_line(mr, expected):
    assert nlg.linearise_mr(mr) == expected


def test_triples_in_a_line():
    triples = ['Aarhus_Airport | cityServed | "Aarhus, Denmark"', "Aarhus | leader | Jacob_B"]
    expected = 'Aarhus_Airport : cityServed : "Aarhus, Denmark" | Aarhus : leader : Jacob_B'
    assert nlg.linearise_triples(triples) == expected


def fake(monkeypatch, rows):
    class Split(list):
        pass

    def load_split(repo, config, split, revision):
        assert split in rows
        return Split(rows[split]), "mirror"

    monkeypatch.setattr(hub, "load_split", load_split)


def test_e2e_has_every_input_once_and_selects_on_train_inputs(monkeypatch):
    def row(i, way):
        return {"meaning_representation": f"name[N{i}]", "human_reference": f" N{i}\n  {way}. "}

    train = [row(i % 400, i) for i in range(800)]
    fake(monkeypatch, {"train": train, "test": [row(1000, 1), row(1001, 1), row(1000, 2)]})
    task = nlg.E2e("nlg/e2e")
    assert task.data.test.inputs == ["name : N1000", "name : N1001"]
    assert task.data.test.texts == [["N1000 1.", "N1000 2."], ["N1001 1."]]
    inputs = [set(part.inputs) for part in (task.data.train, task.data.select)]
    assert not inputs[0] & inputs[1]
    assert 20 < len(inputs[1]) < 60
    assert len(task.data.train.pairs()) + len(task.data.select.pairs()) == 800
    assert task.source().subset == "train 800 of 42061 rows, test 3 of 4693 rows"


def test_webnlg_takes_good_texts_and_names_its_parts(monkeypatch):
    def row(name, category, where, *texts):
        return {
            "category": category,
            "test_category": where,
            "modified_triple_sets": {"mtriple_set": [[f"{name} | is | it"]]},
            "lex": {"text": list(texts), "comment": [t.split()[-1] for t in texts]},
        }

    both = "testdata_with_lex"
    test = [
        row("A", "City", "testdata_no_lex"),
        row("A", "City", both, "one good", "two good"),
        row("B", "Artist", both, "three good"),
        row("B", "Artist", "testdata_unseen_with_lex", "three good"),
    ]
    train = [row(f"T{i}", "City", "", "x good", "y toFix") for i in range(50)]
    fake(monkeypatch, {"train": train, "test": test})
    data = nlg.Webnlg("nlg/webnlg").data
    assert data.test == Items(
        ["A : is : it", "B : is : it"],
        [["one good", "two good"], ["three good"]],
        ["seen", "unseen"],
    )
    assert {text for _, text in data.train.pairs()} == {"x good"}


def test_dart_lower_cases_relations_and_joins_the_annotations_of_equal_triples(monkeypatch):
    def row(name, *texts):
        triples = [[f"{name} FC", "HOME_TOWN", "Rome, Italy"], ["Rome, Italy", "Is", "old"]]
        return {"tripleset": triples, "annotations": {"text": list(texts), "source": []}}

    train = [row(f"T{i}", "x.") for i in range(50)]
    fake(monkeypatch, {"train": train, "test": [row("A", "one.", " two. "), row("A", "three.")]})
    data = nlg.Dart("nlg/dart").data
    assert data.test.inputs == ["A FC : home_town : Rome, Italy | Rome, Italy : is : old"]
    assert data.test.texts == [["one.", "two.", "three."]]


@pytest.mark.parametrize("name", ["nlg/e2e", "nlg/webnlg", "nlg/dart"])
def test_without_a_source_the_repository_is_named(name, monkeypatch):
    monkeypatch.delenv("SPARSEBENCH_HUB", raising=False)
    task = type(registry.task(name))(name)
    with pytest.raises(BenchError, match=task.repo) as error:
        task.prepare()
    assert error.value.kind == "offline"


def test_grouping_carving_and_sampling():
    items = group((f"i{i % 300}", f"t{i}") for i in range(900))
    assert len(items) == 300
    assert items.texts[7] == ["t7", "t307", "t607"]
    train, select = carve(items, 0.2)
    assert not set(train.inputs) & set(select.inputs)
    assert len(train) + len(select) == 300
    assert 30 < len(select) < 90
    part = sample(items, 50)
    assert len(part) == 50
    assert set(part.inputs) < set(sample(items, 60).inputs)
    places = [items.inputs.index(i) for i in part.inputs]
    assert places == sorted(places)
    assert sample(items, None) is sample(items, 300) is items


@pytest.mark.parametrize("model", DECODERS)
def test_only_the_text_and_its_end_are_learnt(model, task):
    net, tok = loaded(model, task)
    rows = task.train(tok)
    pairs = task.data.train.pairs()
    assert len(rows) == len(pairs) == 1200
    for row, (input_, text) in zip(rows.select(range(20)), pairs[:20], strict=True):
        asked, said = tok(input_)["input_ids"], tok(text)["input_ids"]
        assert row["input_ids"] == [*asked, tok.eos_token_id, *said, tok.eos_token_id]
        assert row["labels"] == [IGNORED] * (len(asked) + 1) + [*said, tok.eos_token_id]
        assert row["length"] == len(row["input_ids"]) <= 40
    # The model's loss is the mean over exactly these places.
    chosen = [rows[i] for i in range(6)]
    batch = task.collator(tok)([{k: r[k] for k in ("input_ids", "labels")} for r in chosen])
    with torch.no_grad():
        found = float(net(**batch).loss)
        terms = []
        for row in chosen:
            logits = net(input_ids=torch.tensor([row["input_ids"]])).logits[0].double()
            first = len(row["labels"]) - sum(label != IGNORED for label in row["labels"])
            for place in range(first, len(row["input_ids"])):
                terms.append(-float(logits[place - 1].log_softmax(-1)[row["input_ids"][place]]))
    assert found == pytest.approx(sum(terms) / len(terms), rel=1e-5)


def test_gpt2_has_one_token_for_begin_end_and_padding(task):
    """The separator is learnt from, the end is learnt, and padding is neither."""
    _, tok = loaded("tiny-gpt2", task)
    tok.pad_token = tok.eos_token
    rows = task.train(tok).select([0, 1, 2, 3])
    batch = task.collator(tok)([{k: r[k] for k in ("input_ids", "labels")} for r in rows])
    assert (batch["labels"] == tok.eos_token_id).sum(1).tolist() == [1, 1, 1, 1]
    assert batch["attention_mask"].sum(1).tolist() == rows["length"]
    assert bool((batch["labels"][batch["attention_mask"] == 0] == IGNORED).all())


def test_a_begin_token_separates_where_there_is_one(task):
    _, tok = loaded("tiny-llama", task)
    tok.bos_token = "[CLS]"
    row = task.train(tok)[0]
    assert row["input_ids"].count(tok.bos_token_id) == 1
    assert row["labels"][row["input_ids"].index(tok.bos_token_id)] == IGNORED


def test_what_is_too_long_loses_the_start_of_its_input(task):
    _, tok = loaded("tiny-gpt2", task)
    between, end = tok.eos_token_id, tok.eos_token_id
    w = {i: tok.convert_tokens_to_ids(f"w{i}") for i in range(9)}
    (row,) = task._encode([("w1 w2 w3", "w4 w5")], tok, 5)
    assert row["input_ids"] == [w[3], between, w[4], w[5], end]
    assert row["labels"] == [IGNORED, IGNORED, w[4], w[5], end]
    (row,) = task._encode([("w1 w2 w3", "w4 w5 w6 w7 w8")], tok, 4)
    assert row["input_ids"] == [between, w[4], w[5], w[6]]
    assert row["labels"] == [IGNORED, w[4], w[5], w[6]]


def test_smoothing_is_the_mixture_and_nothing_without_it():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 5, 7, generator=generator)
    labels = torch.tensor([[IGNORED, IGNORED, 3, 1, 2], [IGNORED, 5, 6, IGNORED, IGNORED]])
    terms, plain = [], []
    for row, place in itertools.product(range(2), range(1, 5)):
        if (label := int(labels[row, place])) != IGNORED:
            logp = log_softmax(logits[row, place - 1], -1)
            plain.append(-logp[label])
            terms.append(0.9 * -logp[label] + 0.1 * -logp.mean())
    smoothed = losses.smoothed_loss(logits, labels, 0.1)
    assert float(smoothed) == pytest.approx(float(sum(terms) / len(terms)), rel=1e-6)
    exact = losses.smoothed_loss(logits, labels, 0.0)
    assert float(exact) == pytest.approx(float(sum(plain) / len(plain)), rel=1e-6)


def test_smoothing_is_for_language_models():
    with pytest.raises(BenchError, match=r"budget.smoothing is for language models"):
        fit_cell(cell(model="tiny-bert", task="tiny/reviews", budget__smoothing=0.1), quiet)
    with pytest.raises(BenchError, match=r"budget: smoothing 1.0: .* less than 1"):
        Job.resolve(cell(budget__smoothing=1.0))
    with pytest.raises(BenchError, match=r"budget: beams 0: .* greater than or equal to 1"):
        Job.resolve(cell(budget__beams=0))


def test_left_padding():
    ids, mask = pad_left([[5, 6, 7], [8]], 0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def prompts(n=12, seed=3):
    draw = torch.Generator().manual_seed(seed)
    sizes = [1 + i % 7 for i in range(n)]
    return [torch.randint(5, 250, (s,), generator=draw).tolist() for s in sizes]


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("model", DECODERS)
def test_a_batch_writes_what_each_prompt_gets_alone(model, beams, task):
    net, tok = loaded(model, task)
    how = Decoding(beams=beams, tokens=10, length_penalty=0.9)
    together = generate(net, tok, CPU, prompts(), how)
    assert together == [generate(net, tok, CPU, [p], how)[0] for p in prompts()]
    assert together == generate(net, tok, CPU, prompts(), how)
    backwards = generate(net, tok, CPU, prompts()[::-1], how)
    assert together == backwards[::-1]
    assert len(set(together)) > 6


@pytest.mark.parametrize("model", DECODERS)
def test_greedy_equals_a_loop_without_cache_or_padding(model, task):
    net, tok = loaded(model, task)
    expected = []
    for prompt in prompts():
        own: list[int] = []
        while len(own) < 10:
            with torch.no_grad():
                logits = net(input_ids=torch.tensor([prompt + own])).logits[0, -1]
            seen = {tuple(own[i : i + 4]) for i in range(len(own) - 3)}
            order = logits.argsort(descending=True).tolist()
            token = next(t for t in order if (*own[-3:], t) not in seen)
            if token == tok.eos_token_id:
                break
            own.append(token)
        expected.append(tok.decode(own, skip_special_tokens=True))
    found = generate(net, tok, CPU, prompts(), Decoding(1, 10, 1.0))
    assert found == expected


class Chain(torch.nn.Module):
    """Makes a model say `after[token]` for sure."""

    def __init__(self, after, vocabulary=261):
        super().__init__()
        self.after, self.vocabulary, self.calls = after, vocabulary, 0

    def forward(self, ids):
        self.calls += 1
        logits = torch.full((*ids.shape, self.vocabulary), -20.0)
        following = [[self.after.get(t, 9) for t in row] for row in ids.tolist()]
        return logits.scatter(2, torch.tensor(following)[..., None], 20.0)


def scripted(monkeypatch, net, after):
    chain = Chain(after)
    forward = type(net).forward

    def replaced(self, input_ids=None, **kwargs):
        out = forward(self, input_ids=input_ids, **kwargs)
        logits = chain(input_ids)
        out.logits = logits[:, -out.logits.shape[1] :]
        return out

    monkeypatch.setattr(type(net), "forward", replaced)
    return chain


@pytest.mark.parametrize("beams", [1, 2])
def test_generation_stops_when_all_have_ended(beams, task, monkeypatch):
    net, tok = loaded("tiny-gpt2", task)
    end = tok.eos_token_id
    chain = scripted(monkeypatch, net, {10: 11, 11: 12, 12: end, 20: end})
    texts = generate(net, tok, CPU, [[10], [7, 20], [12]], Decoding(beams, 30, 1.0))
    assert texts == [tok.decode([11, 12]), "", ""]
    assert chain.calls <= (3 if beams == 1 else 10)  # a beam looks on while others could win


def test_no_n_gram_twice_but_the_prompts_may_be_copied(task, monkeypatch):
    net, tok = loaded("tiny-gpt2", task)
    scripted(monkeypatch, net, {10: 11, 11: 12, 12: 13, 13: 10})  # 10 11 12 13 10 11 …
    (text,) = generate(net, tok, CPU, [[10, 11, 12, 13]], Decoding(1, 9, 1.0))
    ids = [tok.convert_tokens_to_ids(w) for w in text.split()]
    assert ids[:6] == [10, 11, 12, 13, 10, 11]  # the prompt's own 4-gram is said again
    assert ids[6] == 12
    assert ids[7] != 13  # and only once more
    assert all(ids[i : i + 4] != ids[j : j + 4] for i in range(5) for j in range(i))


def test_beams_find_what_greedy_passes_by(task, monkeypatch):
    net, tok = loaded("tiny-gpt2", task)
    end = tok.eos_token_id
    # 10 → 11 (0.6) or 12 (0.4); from 11 on all is unlikely, 12 → end for sure.
    table = {10: {11: 0.6, 12: 0.4}, 11: dict.fromkeys(range(50, 100), 1 / 50), 12: {end: 1.0}}
    forward = type(net).forward

    def replaced(self, input_ids=None, **kwargs):
        out = forward(self, input_ids=input_ids, **kwargs)
        logits = torch.full((*input_ids.shape, 261), 1e-9)
        for i, row in enumerate(input_ids.tolist()):
            for j, token in enumerate(row):
                for following, p in table.get(token, {end: 1.0}).items():
                    logits[i, j, following] = p
        out.logits = logits.log()[:, -out.logits.shape[1] :]
        return out

    monkeypatch.setattr(type(net), "forward", replaced)
    greedy, beam = (
        generate(net, tok, CPU, [[10]], Decoding(beams, 5, 1.0))[0].split()[0] for beams in (1, 4)
    )
    assert (greedy, beam) == (tok.convert_ids_to_tokens(11), tok.convert_ids_to_tokens(12))


def test_outputs_that_are_not_finite_are_an_error(task):
    net, tok = loaded("tiny-llama", task)
    torch.nn.init.constant_(net.lm_head.weight, float("nan"))
    with pytest.raises(BenchError, match="not finite") as error:
        task.evaluate(net, tok, CPU)
    assert error.value.kind == "nan"


def test_a_text_is_one_line():
    class Spelling:
        eos_token_id = 3

        def decode(self, ids, skip_special_tokens):
            assert skip_special_tokens
            return "".join(chr(i) for i in ids)

    ids = [*map(ord, "  One\nline \n\nnot this"), 3, 65]
    assert generation._text(Spelling(), ids) == "One line"


def test_an_input_leaves_room_for_its_text(task, monkeypatch):
    net, tok = loaded("tiny-gpt2", task, length=16)
    seen = {}

    def generate(model, tok, device, prompts, how):
        seen.update(prompts=prompts, how=how)
        return [""] * len(prompts)

    monkeypatch.setattr(generation, "generate", generate)
    task.write(net, tok, CPU, ["w1 " * 20, "w2"], 4)
    assert seen["how"] == Decoding(beams=4, tokens=8, length_penalty=1.0)
    assert [len(p) for p in seen["prompts"]] == [8, 2]
    assert {p[-1] for p in seen["prompts"]} == {tok.eos_token_id}
    tok.model_max_length = 512
    task.write(net, tok, CPU, ["w1"], 1)
    assert seen["how"].tokens == 64


def test_scores_are_those_of_the_texts(task, monkeypatch):
    net, tok = loaded("tiny-gpt2", task)
    budget = dataclasses.replace(task.budgets["default"], items=20, beams=1)
    found = task.evaluate(net, tok, CPU, budget=budget)
    items = sample(task.data.test, 20)
    outputs = task.write(net, tok, CPU, items.inputs, 1)
    assert found.n == len(found.items) == 20
    assert found.values["bleu"] == Bleu().corpus(outputs, items.texts)
    assert found.items == Bleu().items(outputs, items.texts)
    assert sum(found.items) / 20 == pytest.approx(found.values["bleu"])
    assert set(found.values) == {"bleu", "nist", "rouge_l", "cider", "ter", "chrf++"}
    assert found.notes == ("scored on 20 of 60 inputs",)
    assert found.written == outputs[0]
    assert task.evaluate(net, tok, CPU, budget=budget) == found
    # What the texts should be scores best.
    monkeypatch.setattr(type(task), "write", lambda *_: [texts[0] for texts in items.texts])
    best = task.evaluate(net, tok, CPU, budget=budget)
    assert best.values["bleu"] == pytest.approx(1.0)
    assert best.values["ter"] == 0.0


def test_parts_are_scored_apart_and_an_absent_score_has_a_footnote(task, monkeypatch):
    net, tok = loaded("tiny-gpt2", task)
    items = task.data.test.take(range(6))
    parts = ["seen", "unseen", "seen", "seen", "unseen", "unseen"]
    data = dataclasses.replace(task.data, test=dataclasses.replace(items, groups=parts))
    own = tiny.TinyNlg("tiny/nlg")
    monkeypatch.setitem(own.__dict__, "data", data)
    monkeypatch.setattr(tiny.TinyNlg, "metrics", lambda self: (Bleu(), Meteor()))
    monkeypatch.setattr(meteor.shutil, "which", lambda name: None)
    said = [texts[i % 2] + " w1" * i for i, texts in enumerate(items.texts)]
    monkeypatch.setattr(tiny.TinyNlg, "write", lambda *_: said)
    found = own.evaluate(net, tok, CPU)
    assert found.notes == ("meteor: no `java` on the PATH",)
    assert set(found.values) == {"bleu", "bleu_seen", "bleu_unseen"}
    seen = [i for i, part in enumerate(parts) if part == "seen"]
    expected = Bleu().corpus([said[i] for i in seen], [items.texts[i] for i in seen])
    assert found.values["bleu_seen"] == expected != found.values["bleu_unseen"]


def test_the_twins_splits_are_apart(task):
    inputs = [set(part.inputs) for part in (task.data.train, task.data.select, task.data.test)]
    assert [len(part) for part in inputs] == [600, 40, 60]
    assert not any(a & b for a, b in itertools.combinations(inputs, 2))
    assert all(len(texts) == 2 for texts in task.data.test.texts)
    first = task.source()
    assert first == tiny.TinyNlg("tiny/nlg").source()
    assert len(first.fingerprint) == 64


def test_calibration_rows_are_drawn_by_seed_and_cut(task):
    _, tok = loaded("tiny-gpt2", task)
    first, again, other = (task.calibration(tok, 20, 10, seed) for seed in (1, 1, 2))
    assert [len(batch["input_ids"]) for batch in first] == [8, 8, 4]
    assert max(batch["input_ids"].shape[1] for batch in first) == 10
    assert all(
        torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(first, again, strict=True)
    )
    assert not torch.equal(first[0]["input_ids"], other[0]["input_ids"])


@pytest.mark.parametrize("model", DECODERS)
def test_a_cell_from_start_to_record(model):
    dense = run_cell(cell(model=model), quiet)
    assert dense.scores.metric == "bleu"
    assert dense.scores.value > 0.3
    assert dense.scores.n == len(dense.scores.items) == 60
    assert dense.budget.beams == 2
    stored = dense.to_json()
    assert '"beams": 2' in stored
    assert '"items": null' not in stored
    assert '"notes"' not in stored
    pruned = run_cell(cell(method="magnitude", model=model), quiet)
    assert pruned.scores.value < dense.scores.value
    tuned = tune_cell(cell(method="pst", model=model, budget__steps=5, budget__items=10), quiet)
    assert set(tuned) == set(dense.scores.all)


def test_training_learns_the_twin(task):
    net, tok = loaded("tiny-gpt2", task)
    budget = task.budgets["default"]
    before = task.evaluate(net, tok, CPU)
    train.fit(Dense(), net, tok, task, budget, 1, quiet)
    after = task.evaluate(net, tok, CPU)
    assert before.values["bleu"] < 0.05
    assert after.values["bleu"] > 0.3
    assert after.values["ter"] < before.values["ter"]


@pytest.mark.parametrize("name", ["nlg/e2e", "nlg/webnlg", "tiny/nlg"])
def test_an_encoder_is_refused(name):
    line = rf"{name} needs a causal language model; tiny-bert is an encoder \(bert\)"
    with pytest.raises(BenchError, match=line):
        fit_cell(cell(model="tiny-bert", task=name), quiet)


def test_the_table_names_the_decoding_and_the_footnotes():
    made = samples.record(task="tiny/nlg")
    scores = made.scores.model_copy(update={"notes": ["meteor: no `java` on the PATH"]})
    for beams, words in ((1, "· greedy"), (10, "· beam 10"), (None, None)):
        budget = dataclasses.replace(made.budget, beams=beams)
        text = leaderboard.table([made.model_copy(update={"budget": budget, "scores": scores})])
        assert "meteor: no `java` on the PATH" in text
        assert (words or "tokens\n") in text


def test_the_suite_is_what_it_says():
    found = {str(job.cell) for job in plan.expand(load_suite("nlg"))}
    pruned = ("magnitude", "gmp", "movement", "pst", "dsee")
    assert found == {
        f"nlg/{task} {model} {rest} seed 1"
        for task in ("e2e", "webnlg")
        for model in ("gpt2-mini", "smollm2-135m-q4")
        for rest in ("dense dense 0", "lora dense 0", *(f"{m} unstructured 0.5" for m in pruned))
    }


real = [
    pytest.mark.real,
    pytest.mark.skipif(
        not Path(os.environ.get("SPARSEBENCH_HUB", "/nonexistent")).is_dir(),
        reason="set SPARSEBENCH_HUB to a folder laid out as the hub",
    ),
]


class TestRealSplits:
    pytestmark = real

    def test_e2e(self):
        task = registry.task("nlg/e2e")
        data = task.data
        assert len(data.test) == 630
        assert len(data.test.pairs()) == 4693
        assert len(data.train) + len(data.select) == 4862
        assert len(data.train.pairs()) + len(data.select.pairs()) == 42061
        assert 200 < len(data.select) < 400
        assert task.source().subset == ""
        inputs = [set(part.inputs) for part in (data.train, data.select, data.test)]
        assert not any(a & b for a, b in itertools.combinations(inputs, 2))
        slots = {slot.split(" : ")[0] for i in data.test.inputs for slot in i.split(" | ")}
        assert slots <= {
            "name",
            "Type",
            "food",
            "price",
            "customer rating",
            "area",
            "family friendly",
            "near",
        }

    def test_webnlg(self):
        task = registry.task("nlg/webnlg")
        data = task.data
        assert len(data.test) == 1862
        assert data.test.groups.count("seen") == 971
        assert data.test.groups.count("unseen") == 891
        assert len(data.test.pairs()) == 4928
        assert task.source().subset == ""
        assert not set(data.train.inputs) & set(data.select.inputs)
        default = sample(data.test, task.budgets["default"].items)
        # The sample has the two parts in their proportion.
        assert 0.46 < default.groups.count("seen") / len(default) < 0.58
        # WebNLG itself repeats ten sets of triples in its test set.
        assert len(set(data.test.inputs) & set(data.train.inputs + data.select.inputs)) <= 10
