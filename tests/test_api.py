"""`import sparsebench`: what bench/README.md shows in use works, and equals the command line."""

import ast
import copy
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.utils import parametrize
from transformers import Trainer, TrainingArguments

import sparsebench
from bench.core import seeds
from bench.core.store import Store
from bench.costs.by_method import cost_report
from bench.export.prune import prune_folder
from bench.pipeline.context import make_context
from bench.planning import registry
from bench.planning.job import Job
from bench.training.keep_zeros import pruned_parameters
from bench.weights.targets import prunable
from bench.weights.unstacked import Unstacked, unstacked
from methods.shared.masks import pruned_count
from sparsebench import BenchError, KeepZeros, SparsityCallback
from tests import helpers
from tests.field import families
from tests.field.test_experts import made as experts

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "bench" / "README.md").read_text(encoding="utf-8")
SECTION = PAGE.partition("\n## Python API\n")[2].partition("\n## ")[0]
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", SECTION, re.M | re.S)

T5 = families.T5 | {"tie_word_embeddings": True}
MODELS = {
    "encoder": lambda: families.build("bert", "SequenceClassification"),
    "no head": lambda: families.build("bert", "MaskedLM").base_model,
    "decoder, tied": lambda: families.build("gpt2", **families.GPT2),
    "encoder-decoder, tied": lambda: families.build("t5", "Seq2SeqLM", **T5),
    "experts (out, in)": lambda: experts("mixtral"),
    "experts (in, out)": lambda: experts("gpt_oss"),
    "bf16": lambda: families.build("llama").to(torch.bfloat16),
}
"""Models as users hold them, in training mode or not, of any dtype."""


def ids(rows=8, length=24):
    return families.ids(rows, length)


def values(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# The module


def test_the_import_loads_nothing_heavy_and_every_name_is_there():
    script = (
        "import sys, sparsebench\n"
        "print({'torch', 'transformers', 'pandas', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True, text=True, check=True,
        env={"PYTHONPATH": f"{ROOT}:{ROOT}/bench/python"},
    )  # fmt: skip
    assert done.stdout.strip() == "set()"
    assert sorted(sparsebench.__all__) == sorted(sparsebench._PLACES) == dir(sparsebench)
    for name in sparsebench.__all__:
        assert getattr(sparsebench, name).__doc__, name
    with pytest.raises(AttributeError, match="no attribute 'prun'"):
        _ = sparsebench.prun


def test_the_module_only_re_exports():
    """Type checkers see the same names, from the same places, as the lazy import finds."""
    tree = ast.parse(Path(sparsebench.__file__).read_text())
    functions = [node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    assert functions == ["__getattr__", "__dir__"]
    (checking,) = [node for node in tree.body if isinstance(node, ast.If)]
    typed = {node.names[0].asname: node.module for node in checking.body}
    assert typed == sparsebench._PLACES


def test_a_wheel_and_the_tests_find_the_module():
    """packages.find of pyproject.toml, asked as setuptools asks."""
    setuptools = pytest.importorskip("setuptools")
    import tomllib

    find = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    rules = {key: find["find"][key] for key in ("include", "exclude")}
    found = [setuptools.find_namespace_packages(str(ROOT / where), **rules)
             for where in find["find"]["where"]]  # fmt: skip
    assert found[1] == ["sparsebench"]
    assert {"bench.cli", "bench.suites", "methods.shared", "tasks"} <= set(found[0])
    assert not [name for name in found[0] if "python" in name or "sparsebench" in name]


# The page


@pytest.fixture(scope="module")
def pst_record():
    """The cell of the page's example, run by the benchmark."""
    return helpers.run_cell(helpers.cell("pst", sparsity=0.9))


@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_the_page_is_executed(number, pst_record, tmp_path, monkeypatch, capsys):
    """Among them the own Trainer script, which asserts that its scores are those of the cell."""
    monkeypatch.chdir(tmp_path)
    Store(tmp_path / "own").put(pst_record)
    exec(compile(EXAMPLES[number], f"example {number}", "exec"), {})


def test_the_page_has_a_script_of_a_users_own_and_its_cell():
    (own,) = [text for text in EXAMPLES if "SparsityCallback(" in text]
    assert len(own.strip().splitlines()) <= 30
    assert re.findall(r"^assert.*(score|sparsity)\b.*==.*\1", own, re.M) == ["score", "sparsity"]
    cell = helpers.cell("pst", sparsity=0.9)
    words = f"run --task {cell.task} --model {cell.model} --method pst --sparsity 0.9 --seeds 1"
    assert words in SECTION
    assert all(f"`{name}" in SECTION for name in sparsebench.__all__ if name != "Pruned")


# prune


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_pruning_changes_values_alone(kind, training):
    model = MODELS[kind]().train(training)
    part = next(iter(model.children())).eval()  # a model may be in both modes at once
    modes = [module.training for module in model.modules()]
    for parameter in part.parameters():
        parameter.requires_grad_(False)
    parameters, before = dict(model.named_parameters()), values(model)
    flags = {name: p.requires_grad for name, p in parameters.items()}
    config = copy.deepcopy(model.config.to_dict()), model.config._experts_implementation
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)

    report = sparsebench.prune(model, "wanda", sparsity=0.5, calibration=ids(), length=24)

    assert torch.equal(torch.rand(3), expected)
    assert [module.training for module in model.modules()] == modes
    assert list(dict(model.named_parameters())) == list(parameters)
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert {name: p.requires_grad for name, p in model.named_parameters()} == flags
    assert (model.config.to_dict(), model.config._experts_implementation) == config
    after = values(model)
    assert {n: (t.dtype, t.shape) for n, t in after.items()} == {
        n: (t.dtype, t.shape) for n, t in before.items()
    }
    for name, tensor in after.items():
        assert torch.equal(tensor, torch.where(tensor == 0, 0, before[name])), name

    pruned = {id(p) for p in pruned_parameters(model)}
    for name, parameter in model.named_parameters():
        if id(parameter) not in pruned:
            assert torch.equal(parameter, before[name]), name
    with unstacked(model):
        counted = {t.name: int((t.weight == 0).sum()) for t in prunable(model)}
    assert {m.name: m.zeros for m in report.matrices} == counted
    for matrix in report.matrices:
        if matrix.name not in report.left_dense:  # an expert that no token reached
            o, i = matrix.shape
            assert matrix.zeros == o * pruned_count(i, 0.5)
    assert report.zeros == sum(counted.values())
    assert len(report.left_dense) < len(counted) / 2
    model.eval()(**_inputs(model))  # it still runs


def _inputs(model):
    tokens = torch.tensor(ids(2))
    decoder = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {}
    return {"input_ids": tokens} | decoder


@pytest.mark.parametrize("kind", ["encoder", "experts (in, out)", "bf16"])
def test_memory_and_folder_are_pruned_alike(kind, tmp_path):
    """The command line and the API are one implementation: the same seed, the same weights."""
    model = MODELS[kind]()
    model.save_pretrained(tmp_path / "m")
    # From the folder, too: .to(bf16) rounds the table of angles, loading does not.
    model = type(model).from_pretrained(tmp_path / "m", dtype=model.dtype)
    (tmp_path / "ids.json").write_text(str(ids()))
    shared = {"pattern": "2:4", "length": 24}
    from bench.core.pattern import Pattern

    prune_folder(str(tmp_path / "m"), "sparsegpt", tmp_path / "folder", pattern=Pattern("2:4"),
                 calibration=str(tmp_path / "ids.json"), length=24)  # fmt: skip
    sparsebench.prune(model, "sparsegpt", calibration=ids(), **shared)
    model.save_pretrained(tmp_path / "memory")
    folder, memory = (load_file(tmp_path / n / "model.safetensors") for n in ("folder", "memory"))
    assert same(folder, memory)


def test_the_report_counts_zeros_that_were_there_and_names_seeds():
    model = MODELS["encoder"]()
    first = prunable(model)[0]
    weight = first.weight.clone()
    weight[:, :4] = 0
    first.write(weight)
    report = sparsebench.prune(model, "random", sparsity=0.5, seed=3)
    matrix = {m.name: m for m in report.matrices}[first.name]
    assert matrix.before == int((weight == 0).sum())
    assert sum(m.before for m in report.matrices) == matrix.before
    assert report.seeds == {
        "cell": 3,
        "method": seeds.derive("method", 3),
        "rng": seeds.derive("rng", "random", 3),
        "calibration": seeds.derive("calibration", 3),
    }
    size = sum(m.shape[0] * m.shape[1] for m in report.matrices)
    assert report.sparsity == pytest.approx(report.zeros / size)
    assert f"sparsity {report.sparsity:.4f}" in str(report)
    assert "before" in str(report)


def _tokenizer():
    return families.tiny_tokenizer("gpt2")


@pytest.mark.parametrize(
    "calibration",
    [
        " ".join(f"w{i % 200}" for i in range(300)),
        [" ".join(f"w{i + j}" for j in range(20)) for i in range(16)],
        torch.tensor(ids(16)),
        torch.tensor(ids(16)).numpy(),
        [torch.tensor(row) for row in ids(16)],
        [i for row in ids(16) for i in row],
        {"input_ids": ids(16), "attention_mask": None},
        [{"input_ids": torch.tensor(ids(16)), "attention_mask": torch.ones(16, 24).long()}],
    ],
    ids=["text", "texts", "tensor", "array", "tensors", "flat", "encoding", "batches"],
)
def test_calibration_takes_texts_and_ids_in_any_form(calibration):
    model = MODELS["decoder, tied"]()
    tok = _tokenizer()
    report = sparsebench.prune(model, "wanda", sparsity=0.5, calibration=calibration,
                               tokenizer=tok, calib=16, length=20)  # fmt: skip
    assert report.sparsity == pytest.approx(0.5, abs=0.01)


def quantized(model):
    model.config.quantization_config = {"quant_method": "gptq"}


def parametrized(model):
    prunable(model)[0].parametrize(torch.nn.Identity())


def not_finite(model):
    prunable(model)[0].write(torch.full(prunable(model)[0].shape, torch.nan))


@pytest.mark.parametrize(
    ("spoil", "changes", "line"),
    [
        (None, {"method": "pst"}, "pst trains; prune takes one-shot methods"),
        (None, {"method": "wand"}, "unknown method 'wand': did you mean wanda"),
        (None, {"pattern": "2:5", "sparsity": None}, "not a multiple of 5"),
        (None, {"pattern": "tower"}, "'tower' is not a pattern"),
        (None, {"sparsity": None}, "pattern unstructured needs"),
        (None, {"sparsity": 1.5}, "sparsity 1.5"),
        (None, {"pool": "row"}, "no parameter 'pool'"),
        (None, {"calibration": None}, "wanda needs calibration"),
        (None, {"calibration": "w1 w2"}, "texts need a tokenizer"),
        (None, {"calibration": [[1, 999]]}, "token ids from 1 to 999, the model knows 0 to 260"),
        (None, {"calibration": 7}, "calibration: wants a list of token ids"),
        (None, {"length": 500}, "has positions for 128 tokens"),
        (quantized, {}, "is quantized"),
        (parametrized, {}, "holds parametrizations"),
        (not_finite, {}, "NaN or infinite"),
        (lambda model: model.double(), {}, "weights of type float64"),
        (lambda model: setattr(model, "peft_config", {}), {}, "holds adapters"),
        (lambda model: model.to("meta"), {}, "lies on meta"),
    ],
)
def test_bad_input_is_one_line_and_changes_nothing(spoil, changes, line):
    model = MODELS["decoder, tied"]()
    if spoil:
        spoil(model)
    before, modes = values(model), [module.training for module in model.modules()]
    given = {"method": "wanda", "sparsity": 0.5, "calibration": ids(), "length": 24} | changes
    with pytest.raises(BenchError) as error:
        sparsebench.prune(model, **given)
    assert line in str(error.value)
    assert "\n" not in str(error.value)
    after = values(model)
    assert before.keys() == after.keys()
    if model.device.type != "meta":
        assert all(torch.equal(before[n].nan_to_num(), after[n].nan_to_num()) for n in before)
    assert [module.training for module in model.modules()] == modes


def test_what_is_no_model_is_named():
    with pytest.raises(BenchError, match="Linear is no model of transformers"):
        sparsebench.prune(torch.nn.Linear(4, 4), "magnitude", sparsity=0.5)


def test_experts_are_of_their_own_form_after_a_failure():
    model = MODELS["experts (out, in)"]()
    before = values(model)
    with pytest.raises(BenchError, match="wanda needs calibration"):
        sparsebench.prune(model, "wanda", sparsity=0.5)
    assert same(values(model), before)
    assert not any(isinstance(module, Unstacked) for module in model.modules())


# SparsityCallback

STEPS = {"max_steps": 6, "per_device_train_batch_size": 8}
OVERRIDES = {"budget__steps": 6, "budget__batch": 8}
PARAMETERS = {
    "ast": {"kd": 0.0},
    "obert": {"kd": 0.0},
    "gmp": {"every": 2},
    "rosa": {"lora_steps": 1},
    "platon": {"every": 2},
    "losparse": {"every": 2},
}


def trainer_of(task, slug, folder, **changes):
    """An own Trainer of a cell's model, data and settings."""
    data = sparsebench.task(task)
    model, tok = sparsebench.load_model_and_tokenizer(slug, task)
    return Trainer(
        model,
        sparsebench.training_arguments(task, output_dir=folder, **(STEPS | changes)),
        train_dataset=data.train(tok),
        data_collator=data.collator(tok),
        processing_class=tok,
    )


def trained(trainer, callback):
    callback.attach(trainer)
    trainer.train()
    return callback.finish()


TRAINING = [kind.name for kind in registry.training_methods()]


@pytest.mark.parametrize("name", TRAINING)
def test_an_own_trainer_ends_with_the_cells_weights(name, tmp_path):
    """Every training method, its loss, optimizer and schedule included, to the last bit."""
    parameters = PARAMETERS.get(name, {})
    cell = helpers.cell(name, sparsity=0.5, **OVERRIDES, **parameters)
    fitted = helpers.fit_cell(cell)
    trainer = trainer_of(cell.task, cell.model, tmp_path)
    model = trainer.model
    parameters_before = {n: (p, p.requires_grad) for n, p in model.named_parameters()}
    level = None if str(cell.pattern) == "dense" or cell.pattern.sparsity else 0.5
    callback = SparsityCallback(name, level, **parameters)
    report = trained(trainer, callback)

    assert same(values(model), values(fitted.model))
    assert (report.trainable, report.notes) == (fitted.trained.trainable, fitted.method.report)
    assert not any(map(parametrize.is_parametrized, model.modules()))
    for n, (parameter, flag) in parameters_before.items():
        assert model.get_parameter(n) is parameter
        assert parameter.requires_grad == flag
    assert trainer.optimizer is None
    assert callback not in trainer.callback_handler.callbacks
    assert trainer.args.max_grad_norm == 1.0


@pytest.mark.parametrize("name", ["pst", "movement"])
def test_a_language_model_ends_with_the_cells_weights(name, tmp_path):
    cell = helpers.cell(name, "tiny-gpt2", task="tiny/wikitext", **OVERRIDES)
    fitted = helpers.fit_cell(cell)
    trainer = trainer_of(cell.task, cell.model, tmp_path)
    trained(trainer, SparsityCallback(name, 0.5))
    assert same(values(trainer.model), values(fitted.model))


def test_a_teacher_teaches_as_in_the_cell(tmp_path):
    cell = helpers.cell("ast", pattern="2:4", **OVERRIDES)
    helpers.run_cell(cell.dense)
    fitted = helpers.fit_cell(cell)
    job = Job.resolve(cell)
    loaded = helpers.load(cell.model, job.task)
    teacher = make_context(job, loaded, torch.device("cpu")).teacher()
    trainer = trainer_of(cell.task, cell.model, tmp_path)
    trained(trainer, SparsityCallback("ast", pattern="2:4", teacher=teacher))
    assert same(values(trainer.model), values(fitted.model))


def test_pieces_of_a_batch_are_the_batch(tmp_path):
    """Eight sequences at once, or twice four: the same update up to rounding, that of float32."""
    models = []
    for i, size in enumerate((8, 4)):
        changes = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        changes["bf16"] = False
        trainer = trainer_of("tiny/reviews", "tiny-bert", tmp_path / str(i), **changes)
        for module in trainer.model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        # L0 is random in every forward; movement's penalty counts once a batch.
        callback = SparsityCallback("movement", 0.5, mode="soft", penalty=10.0)
        callback.attach(trainer)
        trainer.train()
        models.append(values(trainer.model))
    for name, tensor in models[0].items():
        assert torch.allclose(tensor, models[1][name], rtol=1e-3, atol=1e-4), name


def test_experts_train_and_come_back_in_their_own_form(tmp_path):
    model = experts("mixtral")
    shapes = {n: p.shape for n, p in model.named_parameters()}
    rows = [{"input_ids": row, "labels": row} for row in ids(16)]
    arguments = TrainingArguments(
        str(tmp_path), max_steps=3, use_cpu=True, report_to="none", save_strategy="no"
    )
    report = trained(Trainer(model, arguments, train_dataset=rows), SparsityCallback("gmp", 0.5))
    assert {n: p.shape for n, p in model.named_parameters()} == shapes
    assert report.sparsity == pytest.approx(
        0.5 * sum(p.numel() for p in pruned_parameters(model)) / _in_blocks(model), abs=1e-3
    )
    assert report.cell.method == "gmp"


def _in_blocks(model):
    from bench.weights.targets import block_elements

    with unstacked(model):
        return block_elements(model)


def test_epochs_are_counted_as_trainer_counts_them(tmp_path):
    trainer = trainer_of("tiny/reviews", "tiny-bert", tmp_path, max_steps=-1, num_train_epochs=0.1)
    callback = SparsityCallback("dense")
    trained(trainer, callback)
    assert callback.steps == trainer.state.max_steps == trainer.state.global_step > 1


@pytest.mark.parametrize(
    ("make", "line"),
    [
        (lambda: SparsityCallback("wanda", 0.5), "wanda is a one-shot method: use prune"),
        (lambda: SparsityCallback("pst"), "pattern unstructured needs"),
        (lambda: SparsityCallback("pst", 0.5, "2:4"), "method pst makes unstructured, not 2:4"),
        (lambda: SparsityCallback("pst", 0.5, lr="abc"), "lr"),
        (lambda: SparsityCallback("ast", pattern="2:4"), "ast distils: pass teacher="),
        (lambda: SparsityCallback("movement", 0.5, distill=0.5), "movement distils"),
    ],
)
def test_a_callback_that_cannot_be_is_refused_in_one_line(make, line):
    with pytest.raises(BenchError) as error:
        make()
    assert line in str(error.value)
    assert "\n" not in str(error.value)


def own_optimizer(trainer):
    trainer.create_optimizer()


def own_loss(trainer):
    trainer.compute_loss_func = lambda *_, **__: None


@pytest.mark.parametrize(
    ("name", "spoil", "line"),
    [
        ("pst", own_optimizer, "optimizers"),
        ("movement", own_loss, "compute_loss_func"),
        ("l0", lambda t: setattr(t.args, "label_smoothing_factor", 0.1), "label_smoothing_factor"),
        ("pst", lambda t: setattr(t.args, "fp16", True), "fp16 (use bf16)"),
        ("pst", lambda t: setattr(t.args, "load_best_model_at_end", True), "load_best_model"),
        ("pst", lambda t: t.model.half(), "training needs float32 weights"),
        ("rosa", lambda t: setattr(t.args, "max_steps", 1), "gradients 1: it must be below"),
    ],
)
def test_a_trainer_that_is_in_the_way_is_refused_and_left_alone(name, spoil, line, tmp_path):
    trainer = trainer_of("tiny/reviews", "tiny-bert", tmp_path)
    spoil(trainer)
    before, optimizer = values(trainer.model), trainer.optimizer
    callback = SparsityCallback(name, None if name == "rosa" else 0.5)
    with pytest.raises(BenchError) as error:
        callback.attach(trainer)
    assert line in str(error.value)
    assert same(values(trainer.model), before)
    assert trainer.optimizer is optimizer


def test_a_method_that_fails_while_attaching_leaves_the_model(tmp_path):
    trainer = trainer_of("tiny/reviews", "tiny-bert", tmp_path)
    before = values(trainer.model)
    callback = SparsityCallback("gmp", pattern="3:7")  # 7 divides no width; found half-way
    with pytest.raises(BenchError, match="not a multiple of 7"):
        callback.attach(trainer)
    assert same(values(trainer.model), before)
    assert all(p.requires_grad for p in trainer.model.parameters())


def test_the_order_of_calls_is_checked(tmp_path):
    trainer = trainer_of("tiny/reviews", "tiny-bert", tmp_path)
    callback = SparsityCallback("pst", 0.5)
    with pytest.raises(BenchError, match="nothing to finish: attach, then train"):
        callback.finish()
    trainer.add_callback(callback)
    with pytest.raises(BenchError, match=r"call SparsityCallback.attach\(trainer\) before"):
        trainer.train()
    trainer = trainer_of("tiny/reviews", "tiny-bert", tmp_path)
    callback.attach(trainer)
    with pytest.raises(BenchError, match="trained 0 of 6 steps: the schedule is not over"):
        callback.finish()
    with pytest.raises(BenchError, match="attached already; make another one"):
        callback.attach(trainer)
    trainer.args.max_steps = 3
    with pytest.raises(BenchError, match="attached for 6 steps, Trainer has 3"):
        trainer.train()


def test_a_trainer_that_makes_its_own_loss_is_noticed(tmp_path):
    class Mine(Trainer):
        def compute_loss(self, model, inputs, return_outputs=False, **_):
            hidden = model.base_model(inputs["input_ids"]).last_hidden_state
            return hidden.square().mean()

    data = sparsebench.task("tiny/reviews")
    model, tok = sparsebench.load_model_and_tokenizer("tiny-bert", "tiny/reviews")
    arguments = sparsebench.training_arguments("tiny/reviews", output_dir=tmp_path, **STEPS)
    trainer = Mine(
        model, arguments, train_dataset=data.train(tok), data_collator=data.collator(tok)
    )
    SparsityCallback("movement", 0.5).attach(trainer)
    with pytest.raises(BenchError, match="movement adds to the model's loss; Trainer does not"):
        trainer.train()


# KeepZeros


def tuned(model, folder, keep=True, **changes):
    """Fine-tunes a language model for a few updates with large steps; returns the callback."""
    rows = [{"input_ids": row, "labels": row} for row in ids(16)]
    options = {"max_steps": 4, "learning_rate": 1e-2, "weight_decay": 0.1} | changes
    arguments = TrainingArguments(
        str(folder), use_cpu=True, report_to="none", save_strategy="no", disable_tqdm=True,
        per_device_train_batch_size=2, **options,
    )  # fmt: skip
    callback = KeepZeros()
    Trainer(model, arguments, train_dataset=rows, callbacks=[callback] if keep else []).train()
    return callback


@pytest.mark.parametrize("kind", ["decoder, tied", "experts (out, in)"])
@pytest.mark.parametrize(
    "changes",
    [
        {"optim": "adamw_torch"},
        {"optim": "sgd", "optim_args": "momentum=0.9"},
        {"optim": "adafactor", "gradient_accumulation_steps": 2},
    ],
    ids=["adamw", "sgd", "adafactor"],
)
def test_zeros_stay_and_everything_else_moves(kind, changes, tmp_path):
    model = MODELS[kind]()
    sparsebench.prune(model, "magnitude", sparsity=0.5)
    with torch.no_grad():  # a vector of zeros is not pruned: it trains
        vector = next(p for n, p in model.named_parameters() if p.ndim == 1)
        vector.zero_()
    matrices = pruned_parameters(model)
    places = [p.detach() == 0 for p in matrices]
    before = [p.detach().clone() for p in matrices]
    dense = copy.deepcopy(model)
    callback = tuned(model, tmp_path, **changes)
    assert callback.zeros == sum(int(zero.sum()) for zero in places) > 0
    for parameter, zero, old in zip(matrices, places, before, strict=True):
        assert torch.equal(parameter == 0, zero)
        assert not torch.equal(parameter, old)
    assert bool(vector.any())
    assert not any(p._backward_hooks for p in model.parameters())
    # Without the callback they are filled.
    tuned(dense, tmp_path, keep=False, **changes)
    assert sum(int((p == 0).sum()) for p in pruned_parameters(dense)) < callback.zeros


def test_a_sliced_model_keeps_its_shapes_and_zeros(tmp_path):
    model = MODELS["decoder, tied"]()
    sparsebench.prune(model, "magnitude", sparsity=0.5)
    with torch.no_grad():
        for block in model.transformer.h:
            block.mlp.c_fc.weight[:, :16] = 0
            block.mlp.c_fc.bias[:16] = 0
            block.mlp.c_proj.weight[:16] = 0
    before = values(model)
    sparsebench.export(model, "hf", tmp_path / "sliced", sliced=True, tokenizer=_tokenizer())
    assert same(values(model), before)
    small = sparsebench.load(tmp_path / "sliced")
    assert small.transformer.h[0].mlp.c_proj.weight.shape[0] < 64 * 2
    places = [p.detach() == 0 for p in pruned_parameters(small)]
    tuned(small, tmp_path / "t")
    for parameter, zero in zip(pruned_parameters(small), places, strict=True):
        assert torch.equal(parameter == 0, zero)


def test_clipping_sees_no_gradient_of_a_zero(tmp_path):
    """The norm that Trainer clips is that of the weights which move."""
    model = MODELS["decoder, tied"]()
    sparsebench.prune(model, "magnitude", sparsity=0.5)
    masks = [(p, p.detach() == 0) for p in pruned_parameters(model)]
    seen = []

    class Look(KeepZeros):
        def on_pre_optimizer_step(self, *_, **__):
            seen.append(all(not p.grad[zero].any() for p, zero in masks))

    rows = [{"input_ids": row, "labels": row} for row in ids(8)]
    arguments = TrainingArguments(str(tmp_path), max_steps=2, use_cpu=True, report_to="none")
    Trainer(model, arguments, train_dataset=rows, callbacks=[Look()]).train()
    assert seen == [True, True]


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda model: None, "has no zeros in its blocks to keep; prune it first"),
        (parametrized, "holds parametrizations"),
    ],
)
def test_nothing_to_keep_is_said(spoil, line, tmp_path):
    model = MODELS["decoder, tied"]()
    spoil(model)
    with pytest.raises(BenchError, match=line):
        tuned(model, tmp_path)


# count, export, load, records


def test_a_model_its_config_and_its_name_count_alike(tmp_path):
    model = MODELS["encoder"]()
    model.save_pretrained(tmp_path / "m")
    given = (model, model.config, tmp_path / "m")
    costs = [sparsebench.count(each, "pst", sparsity=0.9, rank=4) for each in given]
    assert costs[0] == costs[1] == costs[2]
    body = sum((4 + 8 + 1) * (o + i) for o, i in (t.shape for t in prunable(model)))
    assert costs[0].trainable.body == body
    report = cost_report(str(tmp_path / "m"), ["pst"], sparsity=0.9, overrides={"rank": 4})
    assert f"{body:,}" in report
    with pytest.raises(BenchError, match="unknown method"):
        sparsebench.count(model, "pstt")
    with pytest.raises(BenchError, match="has positions for 128"):
        sparsebench.count(model, "pst", length=500)


@pytest.mark.parametrize("kind", ["decoder, tied", "experts (in, out)", "bf16"])
@pytest.mark.parametrize("form", ["hf", "nm-packed"])
def test_an_exported_model_comes_back(kind, form, tmp_path):
    model = MODELS[kind]()
    sparsebench.prune(model, "magnitude", pattern="2:4")
    before, modes = values(model), [m.training for m in model.train().modules()]
    report = sparsebench.export(model, form, str(tmp_path / "out"), tokenizer=_tokenizer())
    assert same(values(model), before)
    assert [m.training for m in model.modules()] == modes
    again = sparsebench.load(tmp_path / "out")
    assert type(again) is type(model)
    assert same(values(again), before)
    assert not any(isinstance(module, Unstacked) for module in again.modules())
    assert report.size == sum(f.stat().st_size for f in (tmp_path / "out").glob("*.safetensors"))
    if form == "hf":
        kind_of = type(model).from_pretrained(tmp_path / "out")
        assert same(values(kind_of), before)


def test_a_folder_that_is_none_is_named(tmp_path):
    with pytest.raises(BenchError, match="no folder with a config.json"):
        sparsebench.load(tmp_path)
    with pytest.raises(BenchError, match="no such folder"):
        sparsebench.records(tmp_path / "nowhere")


def test_records_are_the_rows_of_the_table(pst_record, tmp_path):
    path = Store(tmp_path).put(pst_record)
    bad = path.with_name("seed2.json")
    bad.write_text("{")
    with pytest.warns(UserWarning, match="left out: .*seed2.json"):
        frame = sparsebench.records(tmp_path)
    (row,) = frame.to_dict("records")
    assert row["method"] == "pst"
    assert row["score"] == pytest.approx(pst_record.scores.value, rel=1e-5)
    assert row["sparsity.overall"] == pytest.approx(pst_record.sparsity.overall, rel=1e-5)
    bad.unlink()
    assert len(sparsebench.records(str(tmp_path))) == 1
