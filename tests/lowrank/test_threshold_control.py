"""The control of the default method: on the budget at every step, along it in between."""

from __future__ import annotations

import copy
import math
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import nn

from lowrank import Adaptive, FixedRank, GatedLinear, LowRankError, Macs, Pruner, Start
from lowrank.currency import Latency, TableCost
from lowrank.density import LinearCost
from lowrank.linear import dense_weight
from lowrank.threshold import solve_threshold, tangent_gradients
from tests.lowrank import relative_error
from tests.lowrank.every_method import assert_same

STEPS = 40
HOLD = 30


def linear(scores: dict[str, torch.Tensor], unit_costs: dict[str, float]) -> dict[str, LinearCost]:
    """The cost of units that cost the same each."""
    return {name: LinearCost(len(score), unit_costs[name]) for name, score in scores.items()}


# --- the control


class Branches(nn.Module):
    """Square matrices side by side; the loss weighs the output of each."""

    def __init__(self, seed=0, width=24, count=3):
        super().__init__()
        torch.manual_seed(seed)
        self.branches = nn.ModuleList(
            nn.Linear(width, width, bias=number == 0) for number in range(count)
        )

    def forward(self, x):
        return [branch(x) for branch in self.branches]


EVEN, UNEVEN = (1.0, 1.0, 1.0), (10.0, 1.0, 1.0)


class Run:
    """A student that is pruned while it learns from the dense model it was."""

    def __init__(self, model=None, weights=EVEN, density=0.4, seed=3, currency=None, **fields):
        model = Branches() if model is None else model
        self.teacher, self.weights = copy.deepcopy(model).eval(), weights
        self.width = next(model.parameters()).shape[-1]
        fields = {"gated_steps": STEPS, "start": "svd"} | fields
        method = Adaptive(density=density, **fields)
        self.pruner = Pruner(model, method, seed=seed, currency=currency)
        self.control, self.model = self.pruner.control, self.pruner.model
        self.optimizer = torch.optim.AdamW(self.pruner.parameter_groups(2e-3))

    def inputs(self, step, rows=32):
        generator = torch.Generator().manual_seed(1000 + step)
        x = torch.randn(rows, self.width, generator=generator)
        return x.to(next(p for p in self.model.parameters() if p.ndim > 1))

    def loss(self, x):
        with torch.no_grad():
            wanted = self.teacher.to(x)(x)
        pairs = zip(self.weights, self.model(x), wanted, strict=True)
        return sum(
            weight**2 * (found - right).float().square().mean()
            for weight, found, right in pairs
            if weight
        )

    def backward(self, step, parts=1):
        for x in self.inputs(step).chunk(parts):
            (self.loss(x) / parts).backward()

    def step(self):
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.pruner.step()

    def until(self, last, parts=1):
        self.model.train()
        while self.pruner.step_index < last:
            self.backward(self.pruner.step_index, parts)
            self.step()
        return self

    @property
    def gates(self):
        return {name: layer.gate for name, layer in self.pruner.layers.items()}

    def kept(self):
        return torch.cat([gate.value() for gate in self.gates.values()])

    def scores(self):
        return {name: gate.parameter.detach().clone() for name, gate in self.gates.items()}

    @torch.no_grad()
    def output(self, model=None):
        model = (self.model if model is None else model).eval()
        return torch.cat(model(self.inputs(-1)), dim=-1)


def mixed(seed=0):
    """Three shapes, one after the other."""
    torch.manual_seed(seed)
    return Chain(nn.Linear(24, 40), nn.Linear(40, 24), nn.Linear(24, 24))


class Chain(nn.Sequential):
    def forward(self, x):
        return [super().forward(x)]


@pytest.mark.parametrize("target", [0.12, 0.35, 0.7])
def test_the_density_is_the_target_at_every_step(target):
    run = Run(mixed(), weights=(1.0,), density=target)
    control, seen = run.control, []
    for step in range(STEPS + 5):
        seen.append(run.pruner.target)
        assert float(run.pruner.expected_density()) == pytest.approx(seen[-1], abs=1e-4)
        spent = {name: float(gate.value().sum()) for name, gate in run.gates.items()}
        dense = sum(cost.dense_cost for cost in control.costs.values())
        counted = sum(count * control.costs[name].unit_cost for name, count in spent.items())
        assert counted / dense == pytest.approx(seen[-1], abs=1e-9)
        run.until(step + 1)
    start = sum(layer.down.numel() + layer.up.numel() for layer in run.pruner.layers.values())
    assert seen[0] == pytest.approx(start / dense)
    assert seen[0] > target
    assert all(earlier > later for earlier, later in pairwise(seen[: HOLD + 1]))
    assert seen[HOLD:] == pytest.approx([target] * (len(seen) - HOLD))


def test_gates_harden_where_scores_rest():
    run, temperatures, moved = Run(weights=UNEVEN), [], []
    for step in range(STEPS):
        before = run.scores()
        temperatures.append(run.control.temperature)
        run.until(step + 1)
        moved.append(any((run.scores()[name] != before[name]).any() for name in before))
    temperatures.append(run.control.temperature)
    assert temperatures[0] == pytest.approx(0.05)
    assert temperatures[HOLD] == pytest.approx(0.01)
    assert temperatures[STEPS] == pytest.approx(1e-5)
    assert all(earlier > later for earlier, later in pairwise(temperatures))
    # all gates are open at step 0
    assert moved == [False] + [True] * (HOLD - 1) + [False] * (STEPS - HOLD)


def test_at_the_end_gates_are_decided_and_the_projection_cuts_nothing_in_use():
    run = Run(weights=UNEVEN)

    def jump():
        small = copy.deepcopy(run.pruner)
        projection = small.project()
        return relative_error(run.output(small.finish(projection)), run.output())

    run.until(4)
    undecided = run.control.figures()["undecided"]
    early = jump()
    run.until(STEPS)
    # one gate may hold what is left of the budget
    assert ((run.kept() > 0.05) & (run.kept() < 0.95)).sum() <= 1
    assert run.control.figures()["undecided"] < 1.01 / len(run.kept()) < 0.1 < undecided
    assert jump() < early / 2
    keep = run.pruner.project().keep
    with torch.no_grad():
        for name, layer in run.pruner.layers.items():
            value = layer.gate.value()
            assert keep[name][value > 0.95].all()
            assert not keep[name][value < 0.05].any()
            layer.up[:, (value < 0.95) & ~keep[name]] = 0
    # all that is lost is what it still held
    assert jump() < 1e-3


def test_where_the_budget_comes_out_even_the_projected_model_is_the_gated_one():
    # 14 of 48 rows and columns of 24 are 14 x 48 of 3 x 576
    run = Run(weights=(3.0, 2.0, 1.0), density=14 * 48 / (3 * 576)).until(STEPS)
    wanted = run.output()
    projection = run.pruner.project()
    assert sum(projection.ranks.values()) == 14
    assert relative_error(run.output(run.pruner.finish(projection)), wanted) < 1e-3


@pytest.mark.parametrize("rate", [1e-3, 1e-2, 0.05, 0.2, 1.0])
def test_the_density_is_met_to_a_component_at_any_rate(rate):
    run = Run(mixed(), weights=(1.0,), gate_lr=rate).until(STEPS)
    projection = run.pruner.project()
    costs = run.control.costs
    dense = sum(cost.dense_cost for cost in costs.values())
    dearest = max(cost.unit_cost for cost in costs.values())
    assert 0.4 - dearest / dense < projection.density <= 0.4 + 1e-12


@pytest.mark.parametrize("density", [0.15, 0.3, 0.5])
def test_without_a_rate_ranks_stay_uniform(density):
    run = Run(mixed(), weights=(1.0,), density=density, gate_lr=0.0)
    before = run.scores()
    run.until(STEPS)
    assert_same(run.scores(), before)
    fixed = Pruner(mixed(), FixedRank(density=density, start=Start())).project().ranks
    found = run.pruner.project().ranks
    assert found.keys() == fixed.keys()
    assert all(abs(found[name] - rank) <= 1 for name, rank in fixed.items())


def test_a_layer_that_matters_more_gains_rank_from_the_others():
    even = Run(gate_lr=0.0).until(STEPS).pruner.project().ranks
    uneven = Run(weights=UNEVEN).until(STEPS).pruner.project().ranks
    first, *others = uneven
    assert uneven[first] >= even[first] + 3
    assert all(uneven[name] < even[name] for name in others)
    # whichever it is
    turned = Run(weights=UNEVEN[::-1]).until(STEPS).pruner.project().ranks
    assert max(turned, key=turned.get) == others[-1]


def test_what_costs_less_gains_rank():
    """Equal in everything but the rows that are multiplied per token."""
    model = Branches(count=2)
    model.branches[1] = copy.deepcopy(model.branches[0])
    names = ["branches.0", "branches.1"]
    run = Run(model, weights=(1.0, 1.0), currency=Macs({names[0]: 1.0, names[1]: 4.0}))
    ranks = run.until(STEPS).pruner.project().ranks
    assert ranks[names[0]] > ranks[names[1]]


def test_a_score_falls_if_its_component_does_harm():
    run = Run(weights=UNEVEN)
    run.until(3)
    gate = run.gates["branches.0"]
    before = gate.parameter.detach().clone()
    open_ones = (gate.value() > 0.2) & (gate.value() < 0.8)
    assert open_ones.any()
    # without its history, Adam follows the sign of a gradient
    run.control.load_state_dict({})
    gate.parameter.grad = 100.0 * open_ones  # the loss rises with these
    others = [other for name, other in run.gates.items() if name != "branches.0"]
    scores = [other.parameter.detach().clone() for other in others]
    for other in others:
        other.parameter.grad = torch.zeros_like(other.parameter)
    reachable = [other.value() * (1 - other.value()) > 0.01 for other in others]
    run.pruner.step()
    assert ((gate.parameter.detach() - before)[open_ones] < 0).all()
    for other, score, reach in zip(others, scores, reachable, strict=True):
        assert reach.any()
        assert ((other.parameter.detach() - score)[reach] > 0).all()


def test_what_the_scores_follow_is_the_gradient_along_the_budget():
    run, seen = Run(weights=UNEVEN).until(12), {}
    run.backward(12)
    s = {name: gate.value() for name, gate in run.gates.items()}
    slopes = {name: value * (1 - value) / run.control.temperature for name, value in s.items()}
    given = {name: gate.parameter.grad.double() for name, gate in run.gates.items()}
    parts = [torch.cat(list(each.values())) for each in (given, slopes)]
    along, _ = tangent_gradients(*parts, torch.full_like(parts[0], 48.0))
    wanted = dict(zip(given, along.split([len(g) for g in given.values()]), strict=True))

    def look(optimizer, args, kwargs):
        seen.update({name: gate.parameter.grad.clone() for name, gate in run.gates.items()})

    run.control._optimizer.register_step_pre_hook(look)
    run.step()
    assert list(seen) == list(wanted)
    for name, gradient in seen.items():
        torch.testing.assert_close(gradient.double(), wanted[name], rtol=1e-3, atol=1e-6)
        assert relative_error(gradient, given[name]) > 0.01


def test_floors_are_kept():
    run = Run(weights=(10.0, 1e-3, 1e-3), floor_fraction=0.7, gate_lr=1.0)
    assert run.control.floors == dict.fromkeys(run.gates, 3)  # of 4.8
    run.until(STEPS)
    ranks = run.pruner.project().ranks
    assert min(ranks.values()) == 3
    least = Run(weights=(10.0, 1e-3, 1e-3), floor_fraction=0.0, min_rank=2, gate_lr=1.0)
    assert min(least.until(STEPS).pruner.project().ranks.values()) == 2


def test_a_layer_without_gradient_does_no_harm():
    run = Run(weights=(1.0, 1.0, 0.0))  # the loss does not read the last
    idle = run.scores()["branches.2"]
    for name, parameter in run.model.named_parameters():
        parameter.requires_grad_("branches.2" not in name)
    run.until(STEPS)
    assert torch.equal(run.scores()["branches.2"], idle)
    assert (run.scores()["branches.0"] != idle).any()
    assert float(run.pruner.expected_density()) == pytest.approx(0.4, abs=1e-4)
    assert 0.4 - 48 / (3 * 576) < run.pruner.project().density <= 0.4


def test_steps_without_any_gradient_follow_the_schedule():
    run = Run()
    before = run.scores()
    for _ in range(STEPS):
        run.pruner.step()
    assert_same(run.scores(), before)
    assert float(run.pruner.expected_density()) == pytest.approx(0.4, abs=1e-4)
    assert run.control.figures()["lambda_linear"] == 0


def test_scores_are_trained_by_the_control_alone():
    run = Run(weights=UNEVEN)
    scores = {id(gate.parameter) for gate in run.gates.values()}
    groups = run.pruner.parameter_groups(1e-3)
    listed = {id(parameter) for group in groups for parameter in group["params"]}
    assert {id(parameter) for parameter in run.control.own_parameters} == scores
    assert scores <= {id(parameter) for parameter in run.model.parameters()}
    assert not listed & scores
    assert run.control.gate_parameters() == []
    assert run.pruner.penalty() == 0
    run.until(3)
    run.backward(3)
    before = run.scores()
    run.optimizer.step()
    assert_same(run.scores(), before)
    run.optimizer.zero_grad()
    run.pruner.step()
    assert any((run.scores()[name] != score).any() for name, score in before.items())
    assert all(gate.parameter.grad is None for gate in run.gates.values())


@pytest.mark.parametrize(("given", "rate"), [(None, 2 / STEPS), (0.003, 0.003)])
def test_a_score_moves_by_about_the_rate_in_a_step(given, rate):
    run = Run(weights=UNEVEN, gate_lr=given)
    run.until(1)  # the gradient of open gates is none
    before = run.scores()
    run.until(2)
    moved = max(float((run.scores()[n] - score).abs().max()) for n, score in before.items())
    # Adam at its second step, after a first one without gradient
    assert moved == pytest.approx(rate * (0.1 / 0.19) / math.sqrt(0.01 / 0.0199), rel=1e-3)


def test_nothing_is_random():
    first, second = Run(seed=1).until(12), Run(seed=2)
    torch.manual_seed(99)
    second.until(12)
    assert_same(first.model.state_dict(), second.model.state_dict())
    x = first.inputs(77)
    assert ((first.kept() > 0.1) & (first.kept() < 0.9)).any()
    for trained, evaluated in zip(first.model.train()(x), first.model.eval()(x), strict=True):
        assert torch.equal(trained, evaluated)


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_give_the_scores_of_the_whole_batch(parts):
    whole, cut = Run(weights=UNEVEN).until(10), Run(weights=UNEVEN).until(10)
    assert_same(whole.scores(), cut.scores())
    whole.backward(10)
    cut.backward(10, parts)
    for name, gate in whole.gates.items():
        assert gate.parameter.grad.abs().max() > 0
        torch.testing.assert_close(
            cut.gates[name].parameter.grad, gate.parameter.grad, rtol=1e-4, atol=1e-7
        )
    whole.step()
    cut.step()
    for name, score in whole.scores().items():
        torch.testing.assert_close(cut.scores()[name], score, rtol=0, atol=1e-4)
    assert whole.control.figures() == pytest.approx(cut.control.figures(), rel=1e-4)


@pytest.mark.parametrize("stop", [0, 1, 17, HOLD, STEPS - 1])
def test_a_resumed_run_is_the_uninterrupted_one(stop):
    straight, first = Run(weights=UNEVEN).until(STEPS), Run(weights=UNEVEN).until(stop)
    model_state = load_tensors(save_tensors(first.model.state_dict()))
    control_state = load_tensors(save_tensors(first.pruner.state_dict()))
    optimizer_state = copy.deepcopy(first.optimizer.state_dict())

    def resumed(control_state):
        run = Run(Branches(seed=5), weights=UNEVEN)
        run.teacher = first.teacher
        run.until(4)  # a past of its own, to be forgotten
        run.model.load_state_dict(model_state)
        run.optimizer.load_state_dict(optimizer_state)
        run.pruner.load_state_dict(control_state)
        return run

    second = resumed(control_state)
    assert torch.equal(second.kept(), first.kept())
    second.until(STEPS)
    assert_same(second.model.state_dict(), straight.model.state_dict())
    assert_same(second.pruner.state_dict(), straight.pruner.state_dict())
    if 1 < stop < HOLD:
        forgetful = resumed({"step_index": control_state["step_index"]}).until(STEPS)
        assert any((forgetful.scores()[n] != s).any() for n, s in straight.scores().items())


def test_the_state_belongs_to_whoever_asked_for_it():
    run = Run(weights=UNEVEN).until(5)
    state = run.pruner.state_dict()
    kept = {name: value.clone() for name, value in state.items()}
    # step, two moments and what is there of each layer; threshold, price and step of all
    assert len(state) == 4 * 3 + 3
    run.until(8)
    assert_same(state, kept)
    run.pruner.load_state_dict(state)
    run.until(9)
    assert_same(state, kept)


@pytest.mark.parametrize("cast", ["bfloat16", "double"])
def test_scores_stay_float32_whatever_the_model_is_cast_to(cast):
    run = Run(weights=UNEVEN)
    getattr(run.model, cast)()
    run.optimizer = torch.optim.AdamW(run.pruner.parameter_groups(2e-3))
    run.until(6)
    for gate in run.gates.values():
        assert gate.parameter.dtype == gate().dtype == torch.float32
    state = run.control.state_dict()
    assert {v.dtype for k, v in state.items() if k.startswith("scores")} == {torch.float32}
    assert {score.dtype for score in run.control.scores().values()} == {torch.float32}
    assert {p.dtype for p in run.model.parameters() if p.ndim > 1} == {getattr(torch, cast)}
    assert float(run.pruner.expected_density()) == pytest.approx(run.pruner.target, abs=1e-4)
    assert run.pruner.target < run.control._whole.start


def test_scores_that_are_not_finite_are_named():
    run = Run()
    with torch.no_grad():
        run.gates["branches.1"].parameter[0] = math.nan
    with pytest.raises(LowRankError, match=r"training diverged: branches\.1$"):
        run.pruner.project()


def test_the_multiplier_is_what_a_little_more_density_would_save():
    run = Run(weights=UNEVEN).until(12)
    x, control = run.inputs(12), run.control
    before, temperature, target = run.scores(), control.temperature, run.pruner.target
    run.backward(12)
    control.end_step()  # weights stay as they were
    found, step, losses = control.figures()["lambda_linear"], 1e-3, []
    with torch.no_grad():
        for name, gate in run.gates.items():
            gate.parameter.copy_(before[name])
        for sign in (1, -1):
            allowed = (target + sign * step) * 3 * 576
            threshold = solve_threshold(
                before, linear(before, dict.fromkeys(before, 48.0)), allowed, temperature
            )
            for gate in run.gates.values():
                gate.place(threshold, temperature)
            losses.append(float(run.loss(x)))
    assert found == pytest.approx((losses[1] - losses[0]) / (2 * step), rel=0.02)
    assert found > 0


# --- the start


@pytest.mark.parametrize(
    ("fields", "rank"),
    [
        ({"density": 0.25}, 6),  # twice 3
        ({"density": 0.25, "start_excess": 1.0}, 3),
        ({"density": 0.3}, 8),  # twice 3.6, rounded up
        ({"density": 0.25, "start_excess": 1000.0}, 11),  # the largest below break-even
        ({"density": 0.9}, 11),
        ({"density": 1.0}, 24),
    ],
)
def test_the_rank_at_the_start(fields, rank):
    run = Run(**fields)
    layers = run.pruner.layers
    assert all(isinstance(layer, GatedLinear) for layer in layers.values())
    assert {layer.num_components for layer in layers.values()} == {rank}
    # open at first
    assert (run.kept() == 1).all()


def test_the_first_step_runs_the_truncated_layers():
    run = Run(density=0.3)
    for name, layer in run.pruner.layers.items():
        dense = run.teacher.get_submodule(name)
        u, s, v = torch.linalg.svd(dense_weight(dense).double())
        x = run.inputs(0)
        wanted = x.double() @ ((u[:, :8] * s[:8]) @ v[:8]).t()
        wanted = wanted if dense.bias is None else wanted + dense.bias
        assert relative_error(layer.train()(x), wanted) < 1e-5


def test_a_latency_budget_is_met_on_the_table_itself():
    """A fixed overhead makes the table bend: units counted at one price would miss the target."""
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(24, 24) for _ in range(3)))
    factorized = [0.2 + 0.08 * rank for rank in range(1, 25)]
    table = TableCost.of_factors(factorized, dense=1.0)
    currency = Latency({str(number): table for number in range(3)})
    method = Adaptive(density=0.6, gated_steps=STEPS, start="svd", start_excess=4.0)
    pruner = Pruner(model, method, currency=currency)
    for _ in range(STEPS):
        counts = [float(layer.gate.kept().detach().sum()) for layer in pruner.layers.values()]
        spent = sum(table.expected(count) for count in counts) / 3
        assert float(pruner.expected_density()) == pytest.approx(spent, abs=1e-6)
        assert spent == pytest.approx(pruner.target, abs=1e-6)
        pruner.penalty()
        pruner.step()
    projection = pruner.project()
    assert 0.6 - 0.08 / 3 < projection.density <= 0.6 + 1e-12


def test_a_diverged_score_ends_in_a_loss_that_is_not_finite_and_in_no_other_error():
    run = Run().until(3)
    with torch.no_grad():
        next(iter(run.gates.values())).parameter[0] = math.nan
    run.pruner.step()
    assert not torch.isfinite(run.loss(run.inputs(4)))
    with pytest.raises(LowRankError, match="gates are not finite"):
        run.pruner.project()
