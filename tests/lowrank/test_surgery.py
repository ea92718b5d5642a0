from __future__ import annotations

import pytest
import torch
from torch import nn

from lowrank import FlopL0, GatedLinear, LowRankError, Pruner, SurgeryError
from lowrank.surgery import find_layers, replace_layers
from tests.lowrank import relative_error, tiny_gpt2


class Block(nn.Module):
    """A layer of its own, and one that may be shared."""

    def __init__(self, shared=None):
        super().__init__()
        self.own = nn.Linear(6, 6)
        self.shared = nn.Linear(6, 6) if shared is None else shared

    def forward(self, x):
        return torch.tanh(self.shared(torch.tanh(self.own(x))))


class Twice(nn.Module):
    """One layer that its parent holds under two names."""

    def __init__(self):
        super().__init__()
        self.first = self.second = nn.Linear(6, 6)
        self.nothing = None
        self.register_module("empty", None)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def shared_blocks():
    shared = nn.Linear(6, 6)
    return nn.Sequential(Block(shared), nn.Sequential(Block(shared), nn.Identity()))


def test_layers_are_found_at_any_depth_in_module_order():
    model = nn.Sequential(Block(), nn.Sequential(nn.ReLU(), Block()))
    match = find_layers(model)
    assert list(match.layers) == ["0.own", "0.shared", "1.1.own", "1.1.shared"]
    assert all(match.layers[name] is model.get_submodule(name) for name in match.layers)
    assert match.tied == []


@pytest.mark.parametrize(
    ("include", "exclude", "found"),
    [
        (["0.*"], [], ["0.own", "0.shared"]),
        (["*.own"], [], ["0.own", "1.1.own"]),
        (["0.own", "1.1.shared"], [], ["0.own", "1.1.shared"]),
        (["*"], ["*.own"], ["0.shared", "1.1.shared"]),
        (["0.*"], ["0.own", "no such layer"], ["0.shared"]),
        (["1.?.o[vw]n"], [], ["1.1.own"]),
    ],
)
def test_patterns_select_by_whole_name_and_exclude_wins(include, exclude, found):
    model = nn.Sequential(Block(), nn.Sequential(nn.ReLU(), Block()))
    assert list(find_layers(model, include, exclude).layers) == found


@pytest.mark.parametrize("include", [["own"], ["*.ow"], ["*", "2.*"], ["0.OWN"]])
def test_a_pattern_that_matches_nothing_lists_what_could(include):
    model = nn.Sequential(Block(), nn.Sequential(nn.ReLU(), Block()))
    with pytest.raises(SurgeryError) as error:
        find_layers(model, include)
    assert repr(include[-1]) in str(error.value)
    assert "0.own, 0.shared, 1.1.own, 1.1.shared" in str(error.value)


def test_excluding_everything_lists_what_could_match():
    with pytest.raises(SurgeryError, match=r"leave no layer; .*: own, shared"):
        find_layers(Block(), exclude=["*"])


def test_the_list_of_candidates_is_cut_when_it_is_long():
    model = nn.Sequential(*(nn.Linear(1, 1) for _ in range(45)))
    with pytest.raises(SurgeryError, match=r"38, 39 and 5 more$"):
        find_layers(model, ["nothing"])


@pytest.mark.parametrize("model", [nn.Sequential(nn.ReLU()), nn.MultiheadAttention(4, 2)])
def test_a_model_without_matrix_layers_says_so(model):
    # attention reads its output projection's weight itself, so that one must stay
    with pytest.raises(SurgeryError, match=r"no nn.Linear or Conv1D layer"):
        find_layers(model)


def test_a_surgery_error_is_a_value_error_of_the_library():
    assert issubclass(SurgeryError, ValueError)
    assert issubclass(SurgeryError, LowRankError)


def test_a_shared_layer_is_one_layer_found_by_any_of_its_names():
    model = shared_blocks()
    assert list(find_layers(model).layers) == ["0.own", "0.shared", "1.0.own"]
    assert list(find_layers(model, ["1.0.shared"]).layers) == ["0.shared"]
    assert "0.shared" not in find_layers(model, exclude=["1.0.shared"]).layers


def test_a_shared_layer_is_replaced_everywhere_and_counted_once():
    model = shared_blocks().eval()
    x = torch.randn(4, 6)
    wanted = model(x)
    pruner = Pruner(model, FlopL0(density=0.5))
    assert pruner.num_dense == 3 * 36
    assert isinstance(model[0].shared, GatedLinear)
    assert model[0].shared is model[1][0].shared
    assert relative_error(model(x), wanted) < 1e-5
    pruner.finish()
    assert model[0].shared is model[1][0].shared
    assert not any(isinstance(module, GatedLinear) for module in model.modules())
    assert sum(p.numel() for p in model.parameters() if p.ndim == 2) <= 0.5 * 3 * 36


def test_one_parent_may_hold_a_layer_under_two_names():
    model = Twice().eval()
    x = torch.randn(4, 6)
    wanted = model(x)
    pruner = Pruner(model, FlopL0(density=0.9))
    assert list(pruner.layers) == ["first"]
    assert model.first is model.second is pruner.layers["first"]
    assert relative_error(model(x), wanted) < 1e-5
    pruner.finish()
    assert model.first is model.second
    assert not isinstance(model.second, GatedLinear)
    assert model.empty is None


@pytest.mark.parametrize("density", [0.4, 1.0])
def test_the_model_itself_may_be_the_layer(density):
    model = nn.Linear(8, 8).eval()
    x = torch.randn(3, 8)
    wanted = model(x)
    pruner = Pruner(model, FlopL0(density=density))
    assert list(pruner.layers) == [""]
    assert isinstance(pruner.model, GatedLinear)
    assert relative_error(pruner.model(x), wanted) < 1e-5
    small = pruner.finish()
    assert small is pruner.model
    assert small(x).shape == (3, 8)
    if density == 1.0:
        assert type(small) is nn.Linear
        assert relative_error(small(x), wanted) < 1e-5


def test_a_root_layer_is_listed_in_words():
    with pytest.raises(SurgeryError, match=r"'' \(the model itself\)"):
        find_layers(nn.Linear(2, 2), ["encoder.*"])


def test_tied_weights_are_left_alone_with_a_warning(caplog):
    model = tiny_gpt2()
    match = find_layers(model)
    assert match.tied == ["lm_head"]
    assert "lm_head" not in match.layers
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "lm_head" in caplog.text
    head = model.lm_head
    Pruner(model, FlopL0(density=0.5))
    assert model.lm_head is head
    assert model.lm_head.weight is model.transformer.wte.weight


def test_two_layers_with_one_weight_are_both_tied():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    match = find_layers(model)
    assert list(match.layers) == ["1"]
    assert match.tied == ["0", "2"]
    with pytest.raises(SurgeryError, match="leave no layer"):
        find_layers(model, ["0", "2"])


def test_excluded_tied_weights_need_no_warning(caplog):
    assert find_layers(tiny_gpt2(), exclude=["lm_head"]).tied == []
    assert not caplog.records


def test_a_shared_bias_does_not_tie_the_matrices():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].bias = model[0].bias
    pruner = Pruner(model, FlopL0(density=1.0))
    assert list(pruner.layers) == ["0", "1"]
    assert model[0].bias is model[1].bias


def test_replacement_asks_once_per_module_with_its_first_name():
    model = shared_blocks()
    asked = []
    replace_layers(model, lambda name, module: asked.append((name, type(module))))
    assert asked == [
        ("", nn.Sequential),
        ("0", Block),
        ("0.own", nn.Linear),
        ("0.shared", nn.Linear),
        ("1", nn.Sequential),
        ("1.0", Block),
        ("1.0.own", nn.Linear),
        ("1.1", nn.Identity),
    ]


def test_replacement_does_not_look_inside_what_it_replaced():
    model = nn.Sequential(Block(), nn.Linear(6, 6))
    seen = []

    def make(name, module):
        seen.append(name)
        return nn.Sequential(nn.Linear(1, 1)) if isinstance(module, Block) else None

    assert replace_layers(model, make) is model
    assert seen == ["", "0", "1"]
    assert type(model[0]) is nn.Sequential


def test_replacement_survives_a_cycle_of_modules():
    parent, child = Block(), Block()
    parent.child, child.parent = child, parent
    replace_layers(parent, lambda _, m: nn.Identity() if type(m) is nn.Linear else None)
    assert type(parent.own) is type(parent.child.shared) is nn.Identity
    assert parent.child.parent is parent


def test_a_failed_search_leaves_the_model_as_it_was():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[1].weight[0, 0] = float("inf")
    before = list(model)
    with pytest.raises(LowRankError, match="not finite"):
        Pruner(model, FlopL0(density=0.5))
    assert list(model) == before


class Scaled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


class Mixed(nn.Module):
    """One plain layer among matrices of other kinds."""

    def __init__(self):
        super().__init__()
        self.plain, self.scaled = nn.Linear(8, 8), Scaled(8, 8)
        self.attention = nn.MultiheadAttention(8, 2)
        self.table, self.norm = nn.Embedding(20, 8), nn.LayerNorm(8)
        self.first_token = nn.Parameter(torch.zeros(1, 1, 8))


def test_what_is_no_plain_layer_is_left_alone_with_the_reason(caplog):
    match = find_layers(Mixed())
    assert list(match.layers) == ["plain"]
    assert list(match.refused) == ["scaled", "attention", "attention.out_proj"]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    message = record.getMessage()
    assert "scaled (Scaled is a subclass of nn.Linear, which may compute something" in message
    assert "attention (MultiheadAttention holds in_proj_weight [24, 8], which no" in message


def test_what_is_excluded_needs_no_reason(caplog):
    match = find_layers(Mixed(), exclude=["scaled", "attention*"])
    assert match.refused == {}
    assert not caplog.records
    assert find_layers(Mixed(), ["plain"]).refused == {}
    assert not caplog.records


@pytest.mark.parametrize(
    ("include", "exclude", "message"),
    [
        (["scaled"], [], r"pattern 'scaled' matches no layer: scaled \(Scaled is a subclass"),
        (["*"], ["plain"], r"leave no layer: scaled \(.*; attention \(.*; layers that can be"),
        (["table"], [], r"pattern 'table' matches no layer; layers that can be matched: plain$"),
    ],
)
def test_asking_for_it_alone_is_an_error_with_the_reason(include, exclude, message):
    with pytest.raises(SurgeryError, match=message):
        find_layers(Mixed(), include, exclude)


def test_layers_of_this_package_are_no_surprise(caplog):
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    pruner = Pruner(model, FlopL0(density=0.4), ["0"])
    assert find_layers(pruner.model).refused == {}
    assert find_layers(pruner.finish()).refused == {}
    assert not caplog.records
