"""Components that are shut leave while the model trains: nothing else may notice."""

from __future__ import annotations

import copy

import pytest
import torch
from safetensors.torch import load, save
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from lowrank import Adaptive, FlopL0, LayerShape, Pruner
from lowrank.alignment import aligned
from lowrank.gate import GateConfig, HardConcreteGate
from lowrank.linear import GatedLinear
from lowrank.magnitude import MagnitudeGate
from lowrank.shrinking import components_to_keep, follow, swap
from tests.lowrank import relative_error, tiny_gpt2
from tests.lowrank.processes import in_processes

WORKERS, STEPS = 2, 24


def body():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 48), nn.Tanh(), nn.Linear(48, 96), nn.Linear(96, 48))


def batch(step, rows=32):
    generator = torch.Generator().manual_seed(100 + step)
    x = torch.randn(rows, 48, generator=generator)
    return x, x.flip(1) + 0.1 * torch.randn(rows, 48, generator=generator)


def adaptive(**fields):
    return Adaptive(density=0.3, gated_steps=STEPS, start="svd", **fields)


def hard_concrete():
    return FlopL0(density=0.3, gated_steps=STEPS, anneal_fraction=0.2, gate_lr=2.0, penalty_lr=1.0)


def shut(pruner):
    """Hard concrete gates as a long training leaves them: two thirds shut, and multipliers that
    keep them so."""
    if isinstance(pruner.method, FlopL0):
        for _ in range(3):
            pruner.control.lagrangian.ascend(1.0, 0.0)
        for gate in pruner.control.gates.values():
            order = gate.parameter.detach().argsort()
            gate.parameter.data[order] = torch.linspace(-80.0, 40.0, len(order))
    return pruner


METHODS = {"adaptive": adaptive, "hard concrete": hard_concrete}


def start(method, seed=5):
    pruner = Pruner(body(), method, seed=seed)
    return pruner, torch.optim.AdamW(pruner.parameter_groups(1e-3))


def train(pruner, optimizer, first, last, shrink_at=(), wrap=lambda model: model, workers=(0, 1)):
    """Steps first to last; the steps after which components left."""
    rank, world = workers
    model, left = wrap(pruner.model), []
    for step in range(first, last):
        x, y = (part.chunk(world)[rank] for part in batch(step))
        ((model(x) - y).square().mean() + pruner.penalty()).backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
        if step in shrink_at and pruner.shrink(optimizer):
            del model
            model = wrap(pruner.model)
            left.append(step)
    return left


def size(pruner):
    return sum(layer.num_components for layer in pruner.layers.values())


@pytest.mark.parametrize("name", METHODS)
class TestShrinking:
    def test_leaves_the_function_as_it_was(self, name):
        pruner, optimizer = start(METHODS[name]())
        train(pruner, optimizer, 0, STEPS - 1)
        shut(pruner)
        before, components = copy.deepcopy(pruner.model), size(pruner)
        assert pruner.shrink(optimizer)
        assert size(pruner) < 0.95 * components
        x, _ = batch(99)
        for mode in (True, False):
            wanted, found = before.train(mode)(x), pruner.model.train(mode)(x)
            assert relative_error(found, wanted) < 1e-5

    def test_leaves_the_rest_of_training_as_it_was(self, name):
        """The optimizer's moments stay with their components, the thresholds where they were."""
        whole, optimizer = start(METHODS[name]())
        train(whole, optimizer, 0, STEPS - 2)
        shut(whole)
        # of a stochastic gate the two runs would draw other samples
        twin, other = copy.deepcopy((whole, optimizer))
        assert twin.shrink(other)
        if name == "adaptive":
            train(whole, optimizer, STEPS - 2, STEPS)
            train(twin, other, STEPS - 2, STEPS)
        assert whole.project().ranks == twin.project().ranks
        x, _ = batch(99)
        wanted, found = whole.finish()(x), twin.finish()(x)
        assert relative_error(found, wanted) < 1e-4

    def test_never_takes_what_the_projection_would_keep(self, name):
        shrinking, optimizer = start(METHODS[name]())
        # the stochastic gates all fall too far here, to a tenth of the density
        left = train(shrinking, optimizer, 0, STEPS, shrink_at=range(STEPS))
        assert len(left) >= 2
        projection = shrinking.project()
        assert projection.density <= 0.3
        unit = max(layer.shape.num_per_component for layer in shrinking.layers.values())
        multiple = max(shrinking.method.multiple(s) for s in shrinking.shapes.values())
        assert (0.3 - projection.density) * shrinking.num_dense < unit * multiple

    def test_goes_on_bit_for_bit_from_a_saved_state(self, name):
        straight, optimizer = start(METHODS[name]())
        train(straight, optimizer, 0, STEPS - 5)
        assert train(shut(straight), optimizer, STEPS - 5, STEPS, shrink_at=(STEPS - 5,))

        first, optimizer = start(METHODS[name]())
        train(first, optimizer, 0, STEPS - 5)
        train(shut(first), optimizer, STEPS - 5, STEPS - 3, shrink_at=(STEPS - 5,))
        saved = load(save(first.model.state_dict())), load(save(first.state_dict()))
        moments = copy.deepcopy(optimizer.state_dict())

        second = Pruner(body(), METHODS[name](), seed=5)
        second.load_state_dict(saved[1])
        second.model.load_state_dict(saved[0])
        optimizer = torch.optim.AdamW(second.parameter_groups(1e-3))
        optimizer.load_state_dict(moments)
        train(second, optimizer, STEPS - 3, STEPS, shrink_at=(STEPS - 5,))
        for key, value in straight.model.state_dict().items():
            assert torch.equal(second.model.state_dict()[key], value), key

        small = straight.finish()
        third = Pruner(body(), METHODS[name](), seed=5)
        third.load_state_dict(load(save(straight.state_dict())))
        third.model.load_state_dict(small.state_dict())
        x, _ = batch(99)
        assert torch.equal(third.model(x), small(x))


def test_nothing_leaves_at_the_start():
    pruner, optimizer = start(adaptive())
    assert not pruner.shrink(optimizer)


def test_an_embedding_and_its_head_stay_one_layer():
    method = Adaptive(density=0.3, gated_steps=STEPS, start="svd")
    pruner = Pruner(tiny_gpt2(), method, embeddings=True)
    optimizer = torch.optim.AdamW(pruner.parameter_groups(1e-3))
    ids = torch.randint(0, 40, (4, 8), generator=torch.Generator().manual_seed(0))
    for _ in range(STEPS):
        pruner.model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        pruner.step()
    wanted = pruner.model(input_ids=ids).logits
    assert pruner.shrink(optimizer)
    model = pruner.model
    assert relative_error(model(input_ids=ids).logits, wanted) < 1e-6
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.lm_head.gate.parameter is model.transformer.wte.gate.parameter
    known = {id(p) for group in optimizer.param_groups for p in group["params"]}
    trained = {id(p) for p in model.parameters()} - {id(p) for p in pruner.control.own_parameters}
    assert known == trained


class TestFollow:
    def test_moments_belong_to_what_stays(self):
        weight = nn.Parameter(torch.randn(3, 5))
        optimizer = torch.optim.AdamW([{"params": [weight], "lr": 0.1}])
        weight.square().sum().backward()
        optimizer.step()
        moments = {k: v.clone() for k, v in optimizer.state[weight].items()}
        keep = torch.tensor([True, False, True, True, False])
        small = swap(weight, 1, keep)
        follow(optimizer, [small])
        assert [p is small.new for p in optimizer.param_groups[0]["params"]] == [True]
        assert weight not in optimizer.state
        state = optimizer.state[small.new]
        assert torch.equal(state["exp_avg"], moments["exp_avg"][:, keep])
        assert torch.equal(state["exp_avg_sq"], moments["exp_avg_sq"][:, keep])
        assert state["step"] == 1

    def test_an_optimizer_without_state_or_without_the_parameter(self):
        weight, other = nn.Parameter(torch.randn(2, 2)), nn.Parameter(torch.randn(2))
        fresh, stranger = torch.optim.SGD([weight], lr=0.1), torch.optim.SGD([other], lr=0.1)
        small = swap(weight, 0, torch.tensor([True, False]))
        for optimizer in (fresh, stranger):
            follow(optimizer, [small])
        assert fresh.param_groups[0]["params"][0] is small.new
        assert stranger.param_groups[0]["params"][0] is other


def cost(multiple=1):
    return aligned(LayerShape(400, 400), multiple)


class TestComponentsToKeep:
    SCORES = {"a": torch.tensor([0.9, 0.1, 0.8, 0.2, 0.3, 0.7])}  # noqa: RUF012

    def keep(self, dead, least=1, multiple=1):
        found = components_to_keep(
            self.SCORES, {"a": torch.tensor(dead)}, {"a": least}, {"a": cost(multiple)}
        )
        return found["a"].int().tolist() if found else None

    def test_dead_ones_go_whatever_their_score(self):
        assert self.keep([True, False, False, True, False, False]) == [0, 1, 1, 0, 1, 1]

    def test_some_stay_for_the_floor_and_at_no_cost_the_best_first(self):
        dead = [True, True, False, True, True, True]
        assert self.keep(dead, least=2) == [1, 0, 1, 0, 0, 0]
        assert self.keep(dead, multiple=4) == [1, 0, 1, 0, 1, 1]

    def test_a_small_gain_waits(self):
        scores = {"a": torch.rand(100)}
        dead = torch.arange(100) < 4
        free = {"a": cost()}
        assert components_to_keep(scores, {"a": dead}, {"a": 1}, free) == {}
        dead = torch.arange(100) < 5
        assert components_to_keep(scores, {"a": dead}, {"a": 1}, free)["a"].sum() == 95


class TestMultiplyingOut:
    @pytest.mark.parametrize("rows", [4, 400])
    def test_gives_the_same_output_and_gradients(self, rows):
        torch.manual_seed(0)
        layer = GatedLinear(nn.Linear(20, 20).double(), HardConcreteGate(20, GateConfig()))
        x = torch.randn(rows, 20, dtype=torch.float64)
        z = layer.gate()
        wanted = x @ (layer.up * z @ layer.down).t() + layer.bias
        names, parameters = zip(*layer.named_parameters(), strict=True)
        weights = torch.randn_like(wanted)
        gradients = torch.autograd.grad((wanted * weights).sum(), parameters)
        found = torch.autograd.grad((layer(x) * weights).sum(), parameters)
        for name, one, other in zip(names, found, gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6, msg=name)

    @pytest.mark.parametrize(("rank", "rows"), [(20, 400), (20, 4), (9, 400), (14, 25), (14, 80)])
    def test_is_done_where_it_takes_fewer_products(self, rank, rows):
        shape = LayerShape(20, 20)
        layer = GatedLinear(nn.Linear(20, 20, bias=False), MagnitudeGate(20))
        layer.drop(torch.arange(20) < rank)
        with FlopCounterMode(display=False) as counter:
            layer(torch.randn(rows, 20))
        apart = 2 * rows * rank * shape.num_per_component
        out = 2 * (rank * shape.num_dense + rows * shape.num_dense)
        assert counter.get_total_flops() == min(apart, out)


def run(rank, world, wrap):
    pruner, optimizer = start(adaptive())
    left = train(pruner, optimizer, 0, STEPS, (STEPS - 8, STEPS - 4), wrap, (rank, world))
    return {"left": torch.tensor(left)} | pruner.model.state_dict()


@pytest.mark.slow
def test_two_processes_shrink_alike_and_train_as_one(tmp_path):
    states = in_processes(run, tmp_path, WORKERS)
    wanted = run(0, 1, lambda model: model)
    assert len(wanted["left"])
    for name, value in wanted.items():
        assert torch.equal(states[0][name], states[1][name]), name
        torch.testing.assert_close(states[0][name], value, rtol=1e-3, atol=1e-4)
