"""`--set PATH=VALUE`: paths by key, index and task name, and messages that name the override."""

from __future__ import annotations

import pytest

from orchestrator.errors import SpecError
from orchestrator.spec_io import load_spec
from tests.orchestrator.spec_texts import VALID, write_spec


@pytest.fixture
def path(tmp_path):
    return write_spec(tmp_path)


def read(spec, dotted):
    for part in dotted.split("."):
        if isinstance(spec, dict):
            spec = spec[part]
        else:
            spec = spec[int(part)] if part.isdecimal() else getattr(spec, part)
    return spec


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("seed=3", "seed", 3),
        (" seed =3", "seed", 3),
        ("tasks.docs-lm.dense.steps=50", "tasks.0.dense.steps", 50),
        ("tasks.1.dense.steps=51", "tasks.1.dense.steps", 51),
        ("tasks[1].dense.steps=52", "tasks.1.dense.steps", 52),
        ("tasks.sst.dense.learning_rate=1e-3", "tasks.1.dense.learning_rate", 0.001),
        ("tasks.docs-lm.model.config.n_embd=64", "tasks.0.model.config.n_embd", 64),
        ("tasks.docs-lm.resources.workers=2", "tasks.0.resources.workers", 2),
        ("search.density=[0.9, 0.1]", "search.density", [0.9, 0.1]),
        ("search.density.1=0.2", "search.density", [0.5, 0.2]),
        ("search.gate_lr=[0.3]", "search.fields.gate_lr", [0.3]),
        ("search.fields.gate_lr=[0.3]", "search.fields.gate_lr", [0.3]),
        ("search.gate_lr.log_uniform=[1, 2]", "search.fields.gate_lr.log_uniform", (1, 2)),
        ("search.distill=[0, 1]", "search.fields.distill", [0, 1]),
        ("measure.batch=[4]", "measure.batch", [4]),
        ("tracking.uri=http://host?a=b", "tracking.uri", "http://host?a=b"),
        ("tracking.uri=null", "tracking.uri", None),
        ("select={then: knee}", "select.then", "knee"),
    ],
)
def test_sets_one_value(path, override, place, value):
    before = load_spec(path)
    after = load_spec(path, [override])
    assert read(after, place) == value
    other = "name" if place != "name" else "seed"
    assert read(after, other) == read(before, other)


def test_later_overrides_win(path):
    assert load_spec(path, ["seed=1", "seed=2"]).seed == 2


def test_fields_block_in_the_file_is_replaced_too(tmp_path):
    text = VALID.replace("  gate_lr:", "  fields:\n    gate_lr:")
    spec = load_spec(write_spec(tmp_path, text), ["search.gate_lr=[0.3]"])
    assert spec.search.fields == {"gate_lr": [0.3]}


@pytest.mark.parametrize("given", ["{gate_lr: 1}", "{fields: {gate_lr: 1}}"])
@pytest.mark.parametrize("written", ["gate_lr", "fields.gate_lr"])
def test_a_field_of_a_method_is_replaced_where_it_stands(tmp_path, given, written):
    text = f"{VALID}  methods: {{a: {given}, b: {{}}}}\n"
    spec = load_spec(write_spec(tmp_path, text), [f"search.methods.a.{written}=[0.3]"])
    assert spec.search.methods["a"].fields == {"gate_lr": [0.3]}


def test_task_names_may_hold_dots_and_look_like_indices(tmp_path):
    text = VALID.replace("name: docs-lm", "name: v1.dense").replace("name: sst", 'name: "0"')
    path = write_spec(tmp_path, text)
    assert load_spec(path, ["tasks.v1.dense.dense.steps=5"]).tasks[0].dense.steps == 5
    assert load_spec(path, ["tasks.0.dense.steps=5"]).tasks[1].dense.steps == 5


def test_an_empty_block_is_filled(tmp_path):
    path = write_spec(tmp_path, VALID + "tracking:\n")
    assert load_spec(path, ["tracking.uri=http://host"]).tracking.uri == "http://host"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed", "--set seed: must be PATH=VALUE, like `seed=3`"),
        ("=3", "--set: must be PATH=VALUE, like `seed=3`"),
        ("", "--set: must be PATH=VALUE, like `seed=3`"),
        ("a..b=1", "--set a..b: a key between two dots is empty"),
        ("seed=[", "--set seed: not valid YAML: "),
        ("seed={a: 1, a: 2}", "--set seed: key `a` is given twice"),
        ("sed=1", "--set sed: unknown key; did you mean `seed`?"),
        ("searchh.x=[1]", "--set searchh.x: searchh: unknown key; did you mean `search`?"),
        ("tasks.sst.dense.stepz=1", "--set tasks.sst.dense.stepz: tasks[1].dense.stepz: unknown k"),
        ("tasks[1].dense.steps=-1", "--set tasks[1].dense.steps: must be >= 0 and <= 10000000, g"),
        ("tasks.none.dense.steps=1", "`tasks` has no `none`; it holds 0 to 1, or docs-lm, sst"),
        ("tasks.2.dense.steps=1", "`tasks` has no `2`; it holds 0 to 1, or docs-lm, sst"),
        ("tasks.-1.dense.steps=1", "`tasks` has no `-1`"),
        ("search.density.2=1", "--set search.density.2: `search.density` has no `2`"),
        ("name.x=1", "--set name.x: `name` is a single value and has no `x`"),
        ("search.density=[2]", "--set search.density: search.density[0]: must be > 0 and <= 1"),
        ("search.gate_lr=[2, 1000]", "--set search.gate_lr: search.gate_lr[1]: must be "),
        ("tasks.sst.data.train=none", "--set tasks.sst.data.train: tasks[1].data.train: file not"),
        ("tasks=3", "--set tasks: must be a list, got 3"),
        ("tasks.sst.name=docs-lm", "--set tasks.sst.name: tasks[1].name: task names must differ"),
    ],
)
def test_refused_with_the_override_named(path, override, message):
    with pytest.raises(SpecError) as caught:
        load_spec(path, [override])
    assert message in str(caught.value)
    assert caught.value.path == str(path)
    assert len(caught.value.problems) == 1


def test_lines_of_the_file_stay_right_beside_overrides(path):
    with pytest.raises(SpecError) as caught:
        load_spec(path, ["seed=-1", "tasks.sst.dense={steps: 1}"])
    assert "--set tasks.sst.dense: tasks[1].dense.learning_rate: required key" in str(caught.value)
    assert "--set seed: must be" in str(caught.value)
