"""The papers' presets: they parse, are counted without a download, and run on their twins."""

import math
import tomllib

import pytest
from transformers import BertConfig, GPT2Config, LlamaConfig

from bench.api import BenchError
from bench.cli import main
from bench.cli.plan_text import Device
from bench.core.cell import Budget
from bench.core.overrides import Overrides
from bench.core.pattern import Pattern
from bench.costs import without_weights
from bench.engine.estimate import Estimator
from bench.planning import registry, suites
from bench.planning.job import Job
from bench.planning.plan import expand, levels_of, make_cell
from bench.planning.suites import load_suite, suite_names
from bench.planning.twins import STEPS, twins
from bench.reporting import suite_boards
from bench.review import paper_claims
from bench.sources.architectures import class_of, config_of, empty
from bench.sources.catalog import PLACES
from tests.samples import record

PRESETS = [name for name in suite_names() if name.startswith("paper-")]
GLUE_ROWS = {
    "cola": 8551, "sst2": 67349, "mrpc": 3668, "stsb": 5749,
    "qqp": 363846, "mnli": 392702, "qnli": 104743, "rte": 2490,
}  # fmt: skip


@pytest.fixture(scope="module")
def jobs():
    return {name: expand(load_suite(name)) for name in suite_names()}


def find(jobs, **wanted):
    """The jobs whose cells have these fields; overrides as a table."""
    flat = wanted.pop("overrides", {})
    return [
        job
        for job in jobs
        if all(getattr(job.cell, field) == value for field, value in wanted.items())
        and flat.items() <= dict(job.cell.overrides.flat).items()
    ]


def test_every_paper_has_a_preset():
    assert PRESETS == ["paper-ast", "paper-dsee", "paper-oneshot", "paper-pst"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_says_where_its_numbers_are_from(name):
    text = (suites.SUITES / f"{name}.toml").read_text(encoding="utf-8")
    assert "arXiv 2" in text
    for table in tomllib.loads(text)["grid"]:
        assert {"tasks", "models"} <= set(table)


@pytest.mark.parametrize("name", PRESETS)
def test_models_and_tasks_are_known_and_configs_are_shipped(jobs, name):
    for model in {job.place.name for job in jobs[name]}:
        assert model in PLACES
        assert len(PLACES[model].revision) == 40
        config = config_of(model)  # offline
        longest = max(job.budget.length for job in jobs[name] if job.place.name == model)
        assert longest <= config.max_position_embeddings


@pytest.mark.parametrize(
    ("name", "total"),
    [
        # OPT (arXiv 2205.01068) and LLaMA (arXiv 2302.13971, 2307.09288) as their files have them.
        ("gpt2-large", 774_030_080),
        ("gpt2-xl", 1_557_611_200),
        ("opt-125m", 125_239_296),
        ("opt-350m", 331_196_416),
        ("opt-1.3b", 1_315_758_080),
        ("opt-2.7b", 2_651_596_800),
        ("opt-6.7b", 6_658_473_984),
        ("opt-13b", 12_853_473_280),
        ("llama-7b", 6_738_415_616),
        ("llama-13b", 13_015_864_320),
        ("llama-2-13b", 13_015_864_320),
    ],
)
def test_shipped_configs_have_the_models_sizes(name, total):
    config = config_of(name)
    assert sum(p.numel() for p in empty(class_of(config), config).parameters()) == total


def test_pst_has_its_scripts_settings(jobs):
    for model, batch, lr in (("bert-base", 32, 3e-5), ("roberta-base", 16, 5e-5)):
        for task, rows in GLUE_ROWS.items():
            found = find(jobs["paper-pst"], task=f"glue/{task}", model=model, method="pst")
            assert {j.cell.sparsity for j in found} == {0.5, 0.9}
            assert {j.params.lr for j in found} == {lr}
            assert {(j.budget.batch, j.budget.length) for j in found} == {(batch, 128)}
            assert {j.budget.steps for j in found} == {20 * math.ceil(rows / batch)}
    (lr,) = {j.params.lr for j in find(jobs["paper-pst"], model="gpt2-medium", method="pst")}
    assert lr == 1e-4
    for task, pairs in (("e2e", 42061), ("webnlg", 18025), ("dart", 62659)):
        for job in find(jobs["paper-pst"], task=f"nlg/{task}", model="gpt2-medium"):
            b = job.budget
            assert (b.batch, b.length, b.beams, b.smoothing) == (8, 512, 10, 0.1)
            assert b.steps == math.ceil(5 * pairs / 8)


def test_dsee_has_its_scripts_settings(jobs):
    base = {"model": "bert-base", "method": "dsee"}
    (rte,) = {
        (j.budget.steps, j.budget.batch, j.params.lr, j.params.phase1, j.params.support)
        for j in find(jobs["paper-dsee"], task="glue/rte", sparsity=0.2, **base)
    }
    assert rte == (15 * math.ceil(2490 / 32), 32, 5e-4, 1 / 3, 16)
    (sst2,) = {
        (j.budget.steps, j.params.lr, j.params.phase1, j.params.support)
        for j in find(jobs["paper-dsee"], task="glue/sst2", sparsity=0.5, **base)
    }
    assert sst2 == (6 * math.ceil(67349 / 32), 2e-4, 0.5, 64)
    heads = find(jobs["paper-dsee"], pattern=Pattern("heads"), **base)
    assert {(j.cell.sparsity, j.cell.seed) for j in heads} == {(0.25, k) for k in range(1, 6)}
    assert round(heads[0].params.phase1 * 13) == 5


def test_ast_has_its_readmes_settings(jobs):
    found = find(jobs["paper-ast"], method="ast")
    assert {str(j.cell.pattern) for j in found} == {"2:4"}
    # The method's defaults are GPT-2's settings; a change of theirs would change the preset.
    p = find(found, model="gpt2", overrides={"slorb": "mean"})[0].params
    assert (p.kd, p.temperature, p.every, p.decay, p.weight_decay) == (0.67, 2.0, 10, 1e-4, 0.1)
    assert (p.beta1, p.beta2, p.lr_min, p.slorb_k, p.train_projection) == (0.9, 0.95, 0.1, 16, True)
    assert (40_000 * p.warmup, 40_000 * p.ramp, 40_000 * (1 - p.tail)) == (2000, 10_000, 38_000)
    p = find(found, model="llama-2-7b")[0].params
    assert (p.lr, p.weight_decay, p.decay, p.tail) == (2e-5, 0.0, 6e-5, 0.0)
    assert (round(15_000 * p.warmup, -1), 15_000 * p.ramp) == (500, 3000)
    assert p.kd / (1 - p.kd) == pytest.approx(0.5, abs=1e-3)
    windows = {"gpt2-xl": (40_000, 128, 1024), "opt-1.3b": (40_000, 64, 2048),
               "llama-2-7b": (15_000, 128, 4096)}  # fmt: skip
    for model, wanted in windows.items():
        budgets = {j.budget for j in find(jobs["paper-ast"], model=model)}
        assert {(b.steps, b.batch, b.length) for b in budgets} == {wanted}


def test_one_shot_methods_have_wandas_protocol(jobs):
    trained = {job.cell.method for job in jobs["paper-oneshot"] if job.trains}
    assert trained == set()
    for job in jobs["paper-oneshot"]:
        assert job.budget.calib == 128
        assert job.budget.length == (4096 if "llama-2" in job.place.name else 2048)


def bert_update(hidden, inner, layers, length, labels):
    """Multiply-adds of forward and backward of a BERT classifier, a sequence.

    A product whose input needs no gradient costs once more than its forward, others twice.
    """
    weights = layers * (4 * hidden**2 + 2 * hidden * inner) * length
    attention = layers * 2 * length**2 * hidden
    return 3 * (weights + attention + hidden**2 + hidden * labels)


def gpt_update(hidden, layers, length, vocabulary):
    block = 12 * hidden**2 * length + 2 * length**2 * hidden
    return 3 * (layers * block + hidden * vocabulary * length)


def llama_forward(c, length):
    block = 4 * c.hidden_size**2 + 3 * c.hidden_size * c.intermediate_size
    attention = 2 * length**2 * c.hidden_size
    layers = c.num_hidden_layers
    return layers * (block * length + attention) + c.hidden_size * c.vocab_size * length


def test_training_is_counted_as_in_closed_forms(jobs):
    counted = Estimator([]).training_macs

    def one(name, **fields):
        job = find(jobs[name], **fields)[0]
        return job, counted(job)

    bert = BertConfig()
    for name in ("paper-pst", "paper-dsee"):
        job, macs = one(name, task="glue/mnli", model="bert-base", method="dense")
        update = bert_update(bert.hidden_size, bert.intermediate_size, 12, 128, labels=3)
        steps = job.budget.steps
        assert macs == update * 32 * steps
        assert steps >= 6 * math.ceil(392702 / 32)
    gpt2 = GPT2Config()
    job, macs = one("paper-ast", model="gpt2", method="gmp")
    assert macs == gpt_update(gpt2.n_embd, 12, 1024, gpt2.vocab_size) * 128 * 40_000
    llama = LlamaConfig(num_key_value_heads=32)  # the 7B
    job, macs = one("paper-ast", model="llama-2-7b", method="ast", task="wikitext-c4")
    # Student forward and backward, and the teacher's forward.
    assert macs == 4 * llama_forward(llama, 4096) * 128 * 15_000
    assert one("paper-oneshot", model="llama-7b", method="sparsegpt")[1] == 0


TRAINING = [
    kind.name for kind in registry.training_methods() if kind.name in registry.builtin("method")
]
TINY = {"num_hidden_layers": 5, "hidden_size": 16, "num_attention_heads": 2, "vocab_size": 40}
CONFIGS = {
    "bert": BertConfig(**TINY, intermediate_size=32),
    "llama": LlamaConfig(**TINY, intermediate_size=32, num_key_value_heads=1),
}


@pytest.mark.parametrize("architecture", CONFIGS)
@pytest.mark.parametrize("name", TRAINING)
def test_parts_tell_the_count_of_the_whole_at_any_level(name, architecture, monkeypatch):
    method, config, budget = registry.method(name), CONFIGS[architecture], Budget(10, 5, 8)
    kind = class_of(config)
    counts: set[int | None] = set()
    for pattern, sparsity in levels_of(method, (), (0.25, 0.5)):
        cell = make_cell(task="t", model="m", method=name, pattern=pattern, sparsity=sparsity)
        # The batch as it is; and, as a level changes nothing, once two small ones.
        for largest in (10**9,) if counts else (10**9, 1):
            monkeypatch.setattr(without_weights, "LARGEST_MASK", largest)
            counts.add(without_weights.update_macs_by_parts(method, cell, budget, kind, config))
        whole = without_weights.attach(method(), cell, budget, kind, config)
        counts.add(without_weights.update_macs(whole))
    assert len(counts) == 1


def test_blocks_that_differ_are_all_counted():
    config = LlamaConfig(**TINY, intermediate_size=32)
    model = empty(class_of(config), config)
    assert without_weights._alike(model, 5)
    model.model.layers[3].mlp.up_proj.weight = model.model.layers[3].mlp.down_proj.weight
    assert not without_weights._alike(model, 5)
    assert not without_weights._alike(model, 4)


def test_hours_are_those_of_the_stated_device(capsys, tmp_path):
    # 1 MAC is 2 operations: 10^15 MACs take 2·10^15 / (10^14 · 0.5) s.
    assert Device(100, 0.5).seconds(10**15) == 40
    arguments = (
        "plan --suite paper-pst --task glue/rte --method magnitude --model bert-base".split()
    )
    arguments += "--seeds 43 --tflops 100 --utilization 0.5".split()
    assert main.main([*arguments, "--results", str(tmp_path)]) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("3 of 3 cells to run; about ")
    assert line.endswith("on one device of 100 TFLOP/s, 50 % of it used: training alone")
    macs = bert_update(768, 3072, 12, 128, 2) * 32 * 20 * math.ceil(2490 / 32)
    assert f"about {2 * macs / 100e12 / 0.5:.0f} s, {macs / 1e15:.4g}P training MACs" in line


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf", "fast"])
def test_a_device_has_a_throughput(capsys, value):
    with pytest.raises(SystemExit):
        main.main(["plan", "--tflops", value])
    assert "--tflops" in capsys.readouterr().err


@pytest.mark.parametrize("name", suite_names())
def test_every_cell_has_a_twin(jobs, name):
    tried = twins(jobs[name])

    def kinds(found):
        cells = [job.cell for job in found]
        return {(c.method, c.pattern, c.sparsity, c.overrides.method) for c in cells}

    assert kinds(tried) == kinds(jobs[name])
    for job in tried:
        assert job.cell.task.startswith("tiny/")
        assert job.place.tiny is not None
        assert job.budget.steps == STEPS
    assert len({j.cell for j in tried}) == len(tried) <= len(jobs[name])
    assert [j.cell for j in twins(tried)] == [j.cell for j in tried]  # twins are their own twins


def test_a_twin_is_of_its_cells_kind(jobs):
    def of(name, **fields):
        (made,) = twins(find(jobs[name], **fields)[:1])
        return made.cell.task, made.cell.model

    assert of("paper-pst", task="glue/stsb", model="roberta-base") == ("tiny/reviews", "tiny-bert")
    assert of("paper-pst", task="nlg/dart") == ("tiny/nlg", "tiny-gpt2")
    assert of("paper-ast", model="opt-125m") == ("tiny/wikitext", "tiny-llama")
    assert of("paper-ast", task="zero-shot") == ("tiny/zero-shot", "tiny-llama")


def test_the_smoke_runs_twins_and_keeps_no_record(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["run", "--suite", "paper-pst", "--task", "glue/rte", "--model", "bert-base"]
    arguments += ["--method", "pst", "--sparsity", "0.9", "--smoke"]
    assert main.main(arguments) == 0
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[:4] for line in out[:-1]] == [
        ["passed", "tiny/reviews", "tiny-bert", method] for method in ("dense", "magnitude", "pst")
    ]
    assert out[-1] == "3 of 3 cells passed; no record is kept"
    assert {path.name for path in tmp_path.iterdir()} <= {".sparsebench"}
    wrong = ["run", "--suite", "paper-ast", "--model", "gpt2", "--method", "ast", "--smoke"]
    assert main.main([*wrong, "--set", "lr=1e30"]) == 1
    out = capsys.readouterr().out
    assert "failed  tiny/wikitext tiny-gpt2 ast 2:4" in out
    assert "1 of 3 cells passed" in out


def suite(tmp_path, text):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    return load_suite(str(path))


GRIDS = """
seeds = [1, 2]
[[grid]]
tasks = ["glue/rte", "glue/cola"]
models = ["bert-base"]
methods = ["pst"]
epochs = 3
overrides = { "budget.batch" = 8 }
[grid.params]
pst = { lr = 1e-5 }
[[grid]]
tasks = ["nlg/e2e"]
models = ["gpt2", "gpt2-medium"]
methods = ["pst", "movement"]
seeds = [7]
"""


def cells(found):
    return [j.cell for j in expand(found)]


def test_grids_share_what_stands_at_the_top(tmp_path):
    found = suite(tmp_path, GRIDS)
    assert [grid.seeds for grid in found.grids] == [(1, 2), (7,)]
    made = cells(found)
    assert len(made) == 2 * 2 * 2 + 2 * 3  # dense and pst; dense, pst and movement
    steps = {c.task: dict(c.overrides.flat).get("budget.steps") for c in made}
    assert steps == {
        "glue/rte": 3 * math.ceil(2490 / 8),
        "glue/cola": 3 * math.ceil(8551 / 8),
        "nlg/e2e": None,
    }
    # A recipe is the named method's; the dense cell is the reference of the same budget.
    rates = {(c.method, c.task): dict(c.overrides.flat).get("lr") for c in made}
    assert rates["pst", "glue/rte"] == 1e-5
    assert {c for c in made if c.method == "dense"} == {c.dense for c in made}
    assert {rates["dense", "glue/rte"], rates["pst", "nlg/e2e"]} == {None}


@pytest.mark.parametrize(
    ("wanted", "left"),
    [
        ({"tasks": ["glue/rte"]}, {("glue/rte", "bert-base", "pst")}),
        ({"models": ["gpt2"]}, {("nlg/e2e", "gpt2", "pst"), ("nlg/e2e", "gpt2", "movement")}),
        (
            {"methods": ["movement"], "models": ["gpt2"]},
            {("nlg/e2e", "gpt2", "movement")},
        ),
        (
            {"methods": ["gmp"], "tasks": ["glue/cola"]},
            {("glue/cola", "bert-base", "gmp")},
        ),
        (
            {"tasks": ["glue/wnli", "glue/rte"], "methods": ["pst"]},
            {
                ("glue/rte", "bert-base", "pst"),
                ("glue/wnli", "bert-base", "pst"),
                ("glue/wnli", "gpt2", "pst"),
                ("glue/wnli", "gpt2-medium", "pst"),
            },
        ),
        ({"tasks": []}, None),
    ],
)
def test_what_a_user_names_selects_grids_or_goes_into_all(tmp_path, wanted, left):
    found = suite(tmp_path, GRIDS)
    made = {(c.task, c.model, c.method) for c in cells(found.narrowed(wanted))}
    everything = {(c.task, c.model, c.method) for c in cells(found)}
    assert {m for m in made if m[2] != "dense"} == (
        left or {m for m in everything if m[2] != "dense"}
    )


def test_a_users_steps_win_over_epochs(tmp_path):
    found = suite(tmp_path, GRIDS).changed(Overrides(budget=(("steps", 5),)))
    assert {dict(c.overrides.flat)["budget.steps"] for c in cells(found)} == {5}


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('tasks = ["reviews"]\nmodels = ["bert-base"]\nepochs = 0', "epochs 0: Input should be"),
        ('[[grid]]\nmodels = ["bert-base"]', "tasks: Field required"),
        (
            'tasks = ["reviews"]\nmodels = ["bert-base"]\n[params]\npst = { "budget.steps" = 3 }',
            "pst: write budget.steps into overrides",
        ),
        ('tasks = ["reviews"]\nmodels = ["bert-base"]\nboards = 3', "boards 3: Extra inputs"),
    ],
)
def test_a_wrong_suite_is_one_line(tmp_path, text, told):
    with pytest.raises(BenchError, match=told) as error:
        suite(tmp_path, text)
    assert "\n" not in str(error.value)


def test_epochs_need_a_number_of_examples(tmp_path):
    found = suite(tmp_path, 'tasks = ["reviews"]\nmodels = ["bert-base"]\nepochs = 3')
    with pytest.raises(BenchError, match=r"reviews tells no number of examples for 3 epochs"):
        expand(found)


@pytest.mark.parametrize("name", PRESETS)
def test_records_of_a_preset_are_on_its_page(jobs, name):
    found = load_suite(name)
    for job in jobs[name]:
        made = record(method="pst").model_copy(update={"cell": job.cell})
        assert suite_boards.belongs(made, found)
    other = job.cell.model_copy(update={"budget": "default"})
    assert not suite_boards.belongs(made.model_copy(update={"cell": other}), found)


@pytest.mark.parametrize("claim", paper_claims.read_claims(), ids=lambda c: c.statement[:40])
def test_the_preset_of_a_claim_has_its_cells(jobs, claim):
    found, preset = jobs[claim.preset], load_suite(claim.preset)
    tasks = set(claim.tasks)
    for name in filter(None, (claim.method, claim.against)):
        names = paper_claims.spellings(name, preset)
        having = [
            j
            for j in found
            if paper_claims.method_name(j.cell.method, j.cell.overrides) in names
            and (not claim.pattern or j.cell.pattern == claim.pattern or name == claim.against)
            and (not tasks or j.cell.task in tasks)
        ]
        models = {j.cell.model for j in having}
        if claim.against:  # measured: every model of the claim must be there
            assert set(claim.models) <= models
        else:  # counted without a run
            assert set(claim.models) & models


def full(method, value, **overrides):
    """Three records of RTE with the budget and recipe of PST's preset."""
    flat = {"budget.batch": 32, "budget.length": 128, "budget.steps": 1560, **overrides}
    cell = {"method": method, "task": "glue/rte", "model": "bert-base", "budget": "full"}
    spread = len(method) / 10_000  # the difference of two methods moves from seed to seed
    made = [
        record(value + k * spread, seed=k, sparsity=0.9, overrides=tuple(flat.items()), **cell)
        for k in (43, 44, 45)
    ]
    return [r.model_copy(update={"versions": Job.resolve(r.cell).versions}) for r in made]


def test_a_claim_is_decided_by_the_cells_of_its_preset():
    (claim,) = [c for c in paper_claims.read_claims() if c.method == "pst" and c.against]
    movement = {"lr": 3e-5, "score_lr": 1e-2}
    ours = full("pst", 0.8, lr=3e-5) + full("movement", 0.7, **movement)
    (finding,) = paper_claims.findings(claim, ours)
    assert finding.verdict == "reproduced"
    shorter = full("pst", 0.8, lr=3e-5, **{"budget.steps": 9})
    shorter += full("movement", 0.7, **{"budget.steps": 9}, **movement)
    (finding,) = paper_claims.findings(claim, shorter)
    assert finding.verdict == "holds elsewhere"
    assert "another budget than paper-pst's" in finding.where
    # Other rates are another method's name, so they are no row of the claim.
    (finding,) = paper_claims.findings(claim, full("pst", 0.8, lr=1.0) + full("movement", 0.7))
    assert finding.verdict == "not tested here"


def test_variants_keep_apart_from_the_method():
    preset = load_suite("paper-ast")
    naive, boosted = (paper_claims.spellings(n, preset) for n in ("ast", "ast slorb=mean"))
    assert "ast" in naive
    assert "ast slorb=mean" in boosted
    assert not naive & boosted
    assert any("lr=2e-05" in name and "slorb=mean" in name for name in boosted)
