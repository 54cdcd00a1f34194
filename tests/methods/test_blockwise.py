"""The block-sequential driver (methods/README.md, calibration)."""

import gc
import itertools
import weakref

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from bench.api import BenchError, Budget, Cell, Context
from bench.weights import targets
from methods import owl, sparsegpt, wanda
from methods.shared import blockwise, obs, passes
from methods.shared.input_statistics import ColumnNorms
from tests import helpers

SIZES = {"hidden_size": 32, "num_attention_heads": 4, "vocab_size": 99}
CONFIGS = {
    "bert": SIZES | {"intermediate_size": 64},
    "gpt2": SIZES | {"n_positions": 32},
    "opt": SIZES | {"ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 32},
    "llama": SIZES | {"intermediate_size": 64, "num_key_value_heads": 2},
    # Blocks take masks and positions that differ from block to block.
    "gemma2": SIZES
    | {"intermediate_size": 64, "num_key_value_heads": 2, "head_dim": 8, "sliding_window": 4},
}
architecture = pytest.mark.parametrize("kind", list(CONFIGS))


def build(kind, depth=3):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, num_hidden_layers=depth, pad_token_id=0, **CONFIGS[kind])
    auto = AutoModelForSequenceClassification if kind == "bert" else AutoModelForCausalLM
    model = auto.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape))  # biases and norms that do something
    return model


def batches(count=2, size=3, length=10, padded=True, seed=0):
    g = torch.Generator().manual_seed(seed)
    for b in range(count):
        ids = torch.randint(5, 99, (size, length), generator=g)
        mask = torch.ones_like(ids)
        if padded:
            for row in range(size):
                mask[row, length - 2 * row - b :] = 0
        yield {"input_ids": ids, "attention_mask": mask}


def context(model, data, sparsity=0.5, pattern="unstructured", matrices=None):
    cell = Cell(task="t", model="m", method="m", pattern=pattern, sparsity=sparsity)
    return Context(
        cell=cell,
        budget=Budget(steps=1, batch=1, length=8),
        targets=targets.prunable(model) if matrices is None else matrices,
        calibration=lambda: iter(data),
        teacher=lambda: None,
        rng=torch.Generator(),
        device=torch.device("cpu"),
    )


def direct_squares(model, data, names):
    """Σ x² of every target over real tokens, from plain forward passes of the whole model."""
    squares, handles = {}, []
    real = {}
    for name, module in model.named_modules():
        if name in names:

            def hook(module, args, name=name):
                x = args[0].reshape(-1, args[0].shape[-1])[real["mask"]]
                squares[name] = squares.get(name, 0) + x.double().square().sum(0)

            handles.append(module.register_forward_pre_hook(hook))
    model.eval()
    with torch.no_grad():
        for batch in data:
            real["mask"] = batch["attention_mask"].bool().flatten()
            model(**batch)
    for handle in handles:
        handle.remove()
    return squares


@architecture
def test_statistics_equal_those_of_whole_forward_passes(kind):
    model, data = build(kind), list(batches())
    ctx, found = context(model, data), {}
    blockwise.walk(
        model,
        ctx,
        ColumnNorms,
        lambda inside, stats: found.update({t.name: stats[t.name].squares for t in inside}),
        {"forward_s": 0.0, "prune_s": 0.0},
        prunes=False,
    )
    expected = direct_squares(model, data, set(found))
    assert len(found) == len(ctx.targets)
    for name, squares in found.items():
        assert torch.allclose(squares.double(), expected[name], rtol=1e-4), name


@architecture
def test_blocks_see_inputs_from_already_pruned_blocks(kind):
    # Wanda by hand: block l's statistics come from plain passes of the model pruned below l.
    data = list(batches())
    ours, by_hand = build(kind), build(kind)
    wanda.Wanda().attach(ours, context(ours, data))
    method, inside = wanda.Wanda(), {t.name: t for t in targets.prunable(by_hand)}
    method.n_m, method.sparsity = None, 0.5
    for block in targets.blocks(by_hand):
        mine = [t for t in inside.values() if any(m is t.module for m in block.modules())]
        squares = direct_squares(by_hand, data, {t.name for t in mine})
        for t in mine:
            norms = ColumnNorms(t.shape[1], torch.device("cpu"))
            norms.squares = squares[t.name].float()
            t.write(method.pruned(t.weight, norms, t.weight.numel() // 2))
    for mine, theirs in zip(targets.prunable(ours), inside.values(), strict=True):
        differ = (mine.weight != 0) != (theirs.weight != 0)
        assert differ.float().mean() < 2e-3, mine.name  # rounding may swap near ties


def squares_of(monkeypatch, model, data, dtype):
    """Σ x² by name, seen while weights go, in passes of a dtype; and the dtypes of outputs."""
    monkeypatch.setattr(
        passes, "for_scoring", lambda head, _: dtype if head == "causal-lm" else "float32"
    )
    found, dtypes = {}, set()
    inside = {t.name: t for t in targets.prunable(model)}
    for target in inside.values():
        target.module.register_forward_hook(lambda *call: dtypes.add(call[-1].dtype))

    def visit(block, stats):
        for target in block:
            assert stats[target.name].squares.dtype == torch.float32
            found[target.name] = stats[target.name].squares
            product = target.weight @ target.weight.t()
            assert product.dtype == torch.float32  # no autocast between the passes
            target.write(target.weight.masked_fill(target.weight.abs() < 0.05, 0.0))

    blockwise.walk(model, context(model, data), ColumnNorms, visit, {})
    return found, dtypes


@architecture
def test_language_models_are_walked_in_bf16_and_see_what_was_pruned(kind, monkeypatch):
    data = list(batches())
    exact, _ = squares_of(monkeypatch, build(kind), data, "float32")
    found, dtypes = squares_of(monkeypatch, build(kind), data, "bf16-autocast")
    assert dtypes == {torch.float32 if kind == "bert" else torch.bfloat16}
    for name, squares in found.items():
        assert torch.allclose(squares, exact[name], rtol=0.1, atol=1e-2), name
        assert (squares - exact[name]).norm() < 0.01 * exact[name].norm(), name
    dense = direct_squares(build(kind), data, set(found))
    last = [name for name in found if ".2." in name]
    assert any((dense[n] - exact[n]).norm() > 0.05 * exact[n].norm() for n in last)


@pytest.mark.parametrize("kind", ["bert", "gpt2", "llama"])
@pytest.mark.parametrize("method", helpers.CALIBRATED.values())
def test_what_stands_in_padding_changes_nothing(kind, method):
    short = list(batches(count=1, size=2, length=6, padded=False))
    ids, mask = short[0]["input_ids"], short[0]["attention_mask"]
    padding = torch.full((2, 5), 7)
    long = [
        {
            "input_ids": torch.cat([ids, padding], 1),
            "attention_mask": torch.cat([mask, torch.zeros_like(padding)], 1),
        }
    ]
    results = []
    for data in (short, long):
        model = build(kind)
        method().attach(model, context(model, data))
        results.append([t.weight for t in targets.prunable(model)])
    for a, b in zip(*results, strict=True):
        # Sums over other shapes round differently, which may swap near ties.
        assert ((a != 0) != (b != 0)).float().mean() < 5e-3
        same = (a != 0) == (b != 0)
        assert (a - b)[same].abs().mean() < 1e-3 * a.abs().mean()


@architecture
def test_the_model_is_left_as_it_was_but_for_its_targets(kind):
    model = build(kind).train()
    before = {n: p.clone() for n, p in model.named_parameters()}
    cache = model.config.use_cache if hasattr(model.config, "use_cache") else None
    ctx = context(model, list(batches()))
    wanda.Wanda().attach(model, ctx)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {f"{t.name}.weight" for t in ctx.targets}
    assert model.training
    assert getattr(model.config, "use_cache", None) == cache
    assert not any(m._forward_pre_hooks or "forward" in m.__dict__ for m in model.modules())


def test_a_failing_calibration_leaves_no_stub_behind():
    model = build("bert")
    good = next(batches())

    def broken():
        yield good
        raise BenchError("no more rows")

    ctx = context(model, [])._replace(calibration=broken)
    with pytest.raises(BenchError, match="no more rows"):
        wanda.Wanda().attach(model, ctx)
    assert not any("forward" in m.__dict__ for m in model.modules())
    with pytest.raises(BenchError, match="no calibration batches"):
        wanda.Wanda().attach(model, context(model, []))


def test_targets_with_one_input_share_one_statistic():
    for kind, distinct in (("bert", 4), ("llama", 4), ("gpt2", 4)):
        model, seen = build(kind, 1), []
        blockwise.walk(
            model,
            context(model, list(batches())),
            obs.Gram,
            lambda inside, stats, seen=seen: seen.append(len({id(s) for s in stats.values()})),
            {"forward_s": 0.0, "prune_s": 0.0},
        )
        assert seen == [distinct]


class Counted:
    """Wraps a statistic's class: how many of its objects are alive, at most."""

    def __init__(self, kind):
        self.kind, self.alive, self.peak, self.made = kind, 0, 0, 0

    def __call__(self, width, device):
        statistic = self.kind(width, device)
        self.alive, self.made = self.alive + 1, self.made + 1
        self.peak = max(self.peak, self.alive)
        weakref.finalize(statistic, self._gone)
        return statistic

    def _gone(self):
        self.alive -= 1


def live_bytes(model):
    """Bytes of all tensors that are alive, the model's own left out."""
    own = {t.untyped_storage().data_ptr() for t in model.state_dict(keep_vars=True).values()}
    own |= {b.untyped_storage().data_ptr() for b in model.buffers()}
    gc.collect()
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter):
            storages[thing.untyped_storage().data_ptr()] = thing.untyped_storage().nbytes()
    return sum(n for pointer, n in storages.items() if pointer not in own)


@pytest.mark.parametrize("method", [wanda.Wanda, sparsegpt.SparseGPT])
def test_memory_does_not_grow_with_depth(method):
    peaks, totals = {}, {}
    for depth in (4, 24):
        model = build("bert", depth)
        data = list(batches())
        outside = live_bytes(model)
        made = method()
        made.statistic = counted = Counted(made.statistic)
        last = targets.prunable(model)[-1].module
        original = made.pruned
        at_end = []

        def pruned(weight, statistic, k, last=last, at_end=at_end, model=model, original=original):
            if weight.data_ptr() == last.weight.data_ptr():
                at_end.append(live_bytes(model))
            return original(weight, statistic, k)

        made.pruned = pruned
        made.attach(model, context(model, data))
        peaks[depth], totals[depth] = counted.peak, at_end[0] - outside
        assert counted.made == 4 * depth
        assert counted.alive == 0
    assert peaks[24] == peaks[4] == 4
    hidden = 2 * 3 * 10 * 32 * 4  # one set of hidden states, float32
    assert hidden <= totals[4]
    assert totals[24] <= totals[4] + 1024


def test_seconds_are_recorded():
    model = build("gpt2")
    method = owl.OWL(owl.OWL.Params(base="sparsegpt"))
    method.attach(model, context(model, list(batches())))
    assert set(method.report) == {"forward_s", "prune_s"}
    assert all(0 < s < 60 for s in method.report.values())


def test_a_block_runs_twice_and_the_last_once():
    model, runs = build("llama"), []
    for i, block in enumerate(targets.blocks(model)):
        block.self_attn.register_forward_hook(lambda *_, i=i: runs.append(i))
    data = list(batches(count=2, padded=False))
    wanda.Wanda().attach(model, context(model, data))
    # The trial calls each block twice. Then, per batch: the pass that collects, and the pass that
    # feeds the next block.
    assert [runs.count(i) for i in range(3)] == [2 + 2 * 2, 2 + 2 * 2, 2 + 2 * 1]


def test_bfloat16_models_keep_their_type_and_float32_statistics():
    model = build("gpt2").to(torch.bfloat16)
    method = sparsegpt.SparseGPT()
    method.attach(model, context(model, list(batches())))
    for target in targets.prunable(model):
        assert target.weight.dtype == torch.bfloat16
        assert int((target.weight == 0).sum()) == target.weight.numel() // 2


def test_width_is_refused_before_any_pass():
    with pytest.raises(BenchError, match=r"pattern 2:5: .* has 64 inputs, not a multiple of 5"):
        helpers.attached(helpers.cell("sparsegpt", pattern="2:5"))


def peak(kind, depth, **params):
    """The most bytes that were allocated at a time beside the model while it was pruned."""
    model, data = build("llama", depth), list(batches(count=2, size=4, length=24))
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        kind(kind.Params(**params)).attach(model, context(model, data))
    events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
    sizes = [e.nbytes() for e in sorted(events, key=lambda e: e.start_ns())]
    return max(itertools.accumulate(sizes))


@pytest.mark.parametrize("kind", helpers.CALIBRATED.values())
def test_peak_memory_does_not_grow_with_depth(kind):
    """Alive: weights, one block's statistics and its activations, whatever the depth."""
    shallow, deep = (peak(kind, depth) for depth in (2, 24))
    assert deep <= shallow + 22 * 1024  # a kilobyte a block: less than any matrix or statistic


def test_the_peak_sees_what_is_kept():
    class Hoarder(wanda.Wanda):
        def pruned(self, weight, statistic, k):
            self.kept = [*getattr(self, "kept", []), statistic, weight.clone()]
            return super().pruned(weight, statistic, k)

    shallow, deep = (peak(Hoarder, depth) for depth in (2, 24))
    assert deep > shallow + 22 * 1024
