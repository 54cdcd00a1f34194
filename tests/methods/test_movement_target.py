"""Soft movement with a target: the expected sparsity and its masks (methods/README.md)."""

import math

import pytest
import torch

from bench.api import BenchError
from bench.core.parameters import make_parameters
from bench.core.pattern import Pattern
from bench.costs.parameters import count_sparsity
from bench.weights import targets
from methods.movement import REACH, Movement
from methods.shared.score_masks import Gate, keep_together
from tests import helpers

HYBRID = "block:16x16+neurons"
SOFT = {"mode": "soft", "target": "lagrangian"}
every = pytest.mark.parametrize("model", helpers.ARCHITECTURES)
patterns = pytest.mark.parametrize("pattern", ["unstructured", "block:16x32", HYBRID])


def attached(model="tiny-bert", sparsity=0.5, pattern="unstructured", spread=1.0, **params):
    """An attached model whose scores are random, `spread` in the unit of the expected sparsity."""
    more = SOFT | {"budget__steps": 200} | params
    found = helpers.attached(helpers.cell("movement", model, sparsity, pattern, **more))
    g = torch.Generator().manual_seed(7)
    for gate in found[1].gates:
        noise = torch.randn(gate.scores.shape, generator=g)
        gate.scores.data = spread * found[1].unit * noise
    return found


def unit_of_each_weight(method, ctx):
    """For every weight of every target the index of its score among all scores, one by one."""
    start, offsets = 0, {}
    for gate in method.gates:
        offsets[id(gate)] = start
        start += gate.scores.numel()
    found = []
    for target in ctx.targets:
        layer = target.module.parametrizations.weight[0]
        rows, columns = target.module.parametrizations.weight.original.shape
        (r, c), first = layer.unit, offsets[id(layer.gate)]
        for i in range(rows):
            at = first + (i // r) * (columns // c)
            found.append(at + torch.arange(columns) // c)
    return torch.cat(found)


@every
@patterns
def test_the_expected_sparsity_and_its_gradient_are_those_of_every_weight(model, pattern):
    _, method, ctx = attached(model, pattern=pattern, threshold=0.2)
    beta = 5e-2 * 200 / 2 / REACH
    owner = unit_of_each_weight(method, ctx)
    scores = torch.cat([gate.scores.detach() for gate in method.gates]).double()

    def brute(scores):
        """The mean over all weights, each with the probability of its unit."""
        return (1 / (1 + torch.exp(scores / beta - math.log(0.2 / 0.8))))[owner].mean().item()

    expected = method.expected_sparsity()
    assert expected.item() == pytest.approx(brute(scores), rel=1e-5)
    expected.backward()
    gradient = torch.cat([gate.scores.grad for gate in method.gates])
    # The first and the last unit of every gate, and some between them.
    ends = torch.tensor([gate.scores.numel() for gate in method.gates]).cumsum(0)
    g = torch.Generator().manual_seed(0)
    for unit in {0, *(ends - 1).tolist(), *torch.randint(len(scores), (9,), generator=g).tolist()}:
        up, down = scores.clone(), scores.clone()
        up[unit] += 1e-3 * beta
        down[unit] -= 1e-3 * beta
        slope = (brute(up) - brute(down)) / (2e-3 * beta)
        assert gradient[unit].item() == pytest.approx(slope, rel=1e-3)


def test_at_the_start_the_threshold_is_expected_whatever_the_rate_and_the_steps():
    for score_lr, steps in ((1e-2, 30), (1e-1, 3000)):
        more = {"score_lr": score_lr, "budget__steps": steps, "threshold": 0.15}
        _, method, _ = attached(spread=0.0, **more)
        assert method.expected_sparsity().item() == pytest.approx(0.15, rel=1e-5)
        # A score that falls by its rate in every update, which warms up and decays.
        fall = sum(method.lr_factor(t / steps) for t in range(steps)) * score_lr
        assert fall / method.unit == pytest.approx(REACH, rel=0.02)


def lowest_first(gates, share):
    """Which units go, one by one: the lowest score first, the best of each gate last."""
    units, total = [], 0
    for i, gate in enumerate(gates):
        order = sorted(range(gate.scores.numel()), key=lambda j: (gate.scores[j].item(), j))
        best = set(order[len(order) - gate.floor :])
        units += [(j in best, gate.scores[j].item(), i, j) for j in order]
        total += gate.extent * len(order)
    gone, left = set(), math.floor(total * share + 1e-6)
    for _, _, i, j in sorted(units):
        left -= gates[i].extent
        if left < 0:
            break
        gone.add((i, j))
    return gone


@pytest.mark.parametrize("extents", [(1, 1, 1), (6, 6, 6), (4, 3, 7)])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.83])
@pytest.mark.parametrize("ties", [False, True])
def test_all_units_compete_and_the_lowest_go(extents, share, ties):
    g = torch.Generator().manual_seed(3)
    gates = []
    for extent, units, floor in zip(extents, (50, 31, 80), (0, 5, 2), strict=True):
        gate = Gate(units, soft=True, floor=floor, extent=extent)
        values = torch.randn(units, generator=g) - float(extent == 3)
        gate.scores.data = values.round() if ties else values
        gates.append(gate)
    keeps = keep_together(gates, share)
    found = {
        (i, j) for i, keep in enumerate(keeps) for j in (keep == 0).nonzero().flatten().tolist()
    }
    assert all(set(keep.unique().tolist()) <= {0.0, 1.0} for keep in keeps)
    assert found == lowest_first(gates, share)


@every
@patterns
@pytest.mark.parametrize("warmups", [1.0, 2.5])
def test_what_is_counted_is_what_is_expected_but_no_more_than_the_ramp(model, pattern, warmups):
    sparse, method, ctx = attached(model, 0.8, pattern, initial_warmup=warmups)
    total = sum(math.prod(t.shape) for t in ctx.targets)
    unit = max(gate.extent for gate in method.gates)
    expected = method.expected_sparsity().item()
    start = 0.1 * warmups  # the scores' head start; the ramp ends two warm-ups before the end
    for progress in (0.0, 0.1, 0.12, 0.27, 0.5, 0.9, 1.0):
        method.step(sparse, progress)
        ramp = 0.8 * min(max(progress - start, 0.0) / (0.8 - start), 1.0)
        wanted = total * min(expected, ramp)
        assert wanted - unit < sum(helpers.zeros(sparse).values()) <= wanted + 1


def test_without_pruning_the_forward_is_the_dense_models():
    sparse, method, _ = attached(sparsity=0.9)
    dense, _, _ = helpers.attached(helpers.cell("dense"))
    method.step(sparse, 0.0)
    assert torch.equal(helpers.logits(sparse), helpers.logits(dense))


@every
@patterns
@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_the_finished_model_has_the_sparsity_wherever_the_scores_are(model, pattern, sparsity):
    sparse, method, ctx = attached(model, sparsity, pattern)
    method.gates[0].scores.data -= 50.0  # a matrix that would lose everything
    method.step(sparse, 1.0)
    method.finish(sparse)
    total = sum(math.prod(t.shape) for t in ctx.targets)
    zeros = sum(helpers.zeros(sparse).values())
    unit = max(gate.extent for gate in method.gates)
    assert total * sparsity - unit < zeros <= total * sparsity
    first = targets.prunable(sparse)[0]
    kept = int((first.weight != 0).sum()) // method.gates[0].extent
    units = first.weight.numel() // method.gates[0].extent
    assert kept == min(int(0.005 * units) + 1, int((1 - sparsity) * units))
    assert count_sparsity(sparse, Pattern(pattern)).pattern_ok


@pytest.mark.parametrize("pattern", ["unstructured", HYBRID])
@pytest.mark.parametrize("sparsity", [0.5, 0.9])
def test_training_steers_the_expected_sparsity_to_the_target(pattern, sparsity):
    more = SOFT | {"budget__steps": 150, "budget__batch": 8, "pattern": pattern}
    fit = helpers.fit_cell(helpers.cell("movement", sparsity=sparsity, **more))
    assert fit.method.report["expected_sparsity"] == pytest.approx(sparsity, abs=0.02)
    sizes = [t.weight.numel() for t in targets.prunable(fit.model)]
    unit = max(gate.extent for gate in fit.method.gates)
    zeros = sum(helpers.zeros(fit.model).values())
    assert sum(sizes) * sparsity - unit < zeros <= sum(sizes) * sparsity


def test_the_sparsity_is_promised_of_all_matrices_together():
    made = Movement(Movement.Params(**SOFT))
    assert made.promises_sparsity
    assert not made.uniform
    assert Movement().uniform
    assert not Movement(Movement.Params(mode="soft")).promises_sparsity


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"target": "lagrangian"}, "target=lagrangian needs mode=soft"),
        (SOFT | {"threshold": 0.0}, "target=lagrangian needs a threshold above 0"),
    ],
)
def test_what_a_target_needs_is_said_in_one_line(values, line):
    with pytest.raises(BenchError, match=line) as found:
        make_parameters(Movement.Params, values, "movement")
    assert "\n" not in str(found.value)
