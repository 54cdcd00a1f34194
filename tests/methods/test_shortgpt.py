"""ShortGPT against its definition (methods/README.md, shortgpt)."""

import pytest
import torch

import sparsebench
from bench.weights import dead
from bench.weights.blocks import blocks
from methods.shortgpt import influences
from tests.field import families
from tests.test_dead import made

IDS = families.ids(6, 16)


def by_hand(model, rows):
    """1 − the mean cosine of what each block is given and puts out, token by token."""
    given, found = {}, {number: [] for number in range(len(blocks(model)))}

    def before(number):
        def hook(block, args, kwargs):
            given[number] = args[0] if args else kwargs["hidden_states"]

        return hook

    def after(number):
        def hook(block, args, output):
            out = output if isinstance(output, torch.Tensor) else output[0]
            for x, y in zip(given[number].flatten(0, 1), out.flatten(0, 1), strict=True):
                found[number].append(float(1 - x @ y / (x.norm() * y.norm())))

        return hook

    handles = []
    for number, block in enumerate(blocks(model)):
        handles.append(block.register_forward_pre_hook(before(number), with_kwargs=True))
        handles.append(block.register_forward_hook(after(number)))
    with torch.no_grad():
        for row in rows:
            model(input_ids=torch.tensor([row]))
    for handle in handles:
        handle.remove()
    return [sum(values) / len(values) for values in found.values()]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "gpt_neox", "opt"])
def test_the_blocks_of_the_lowest_influence_go(kind):
    model = made(kind)
    for scale, block in zip((3.0, 0.2, 1.0), blocks(model), strict=True):
        for p in block.parameters():
            if p.ndim == 2:
                p.data.mul_(scale)  # blocks that differ
    expected = by_hand(model, IDS)
    with torch.no_grad():
        found = influences(model, [{"input_ids": torch.tensor(IDS)}])
    assert found.tolist() == pytest.approx(expected, abs=1e-5)
    sparsebench.prune(model, "shortgpt", sparsity=0.67, calibration=IDS)
    gone = sorted(range(3), key=expected.__getitem__)[:2]
    assert dead.silent(model) == sorted(gone)


def test_anew_measures_again_after_each_block():
    model = made("llama", num_hidden_layers=6)
    for number, block in enumerate(blocks(model)):
        for p in block.parameters():
            if p.ndim == 2:
                p.data.mul_(8.0 / (1 + number))
    gone = []
    twin = made("llama", num_hidden_layers=6)
    twin.load_state_dict(model.state_dict())
    for _ in range(3):
        scores = by_hand(twin, IDS)
        gone.append(min((n for n in range(6) if n not in gone), key=scores.__getitem__))
        dead.silence(twin, gone)
    sparsebench.prune(model, "shortgpt", sparsity=0.5, calibration=IDS, anew=True)
    assert dead.silent(model) == sorted(gone)


def test_too_small_a_share_drops_nothing_and_says_so(caplog):
    model = made("llama")
    found = sparsebench.prune(model, "shortgpt", sparsity=0.3, calibration=IDS)
    assert (found.sparsity, found.notes["dropped_blocks"]) == (0.0, 0)
    assert "0.3 of its blocks are none" in caplog.text
