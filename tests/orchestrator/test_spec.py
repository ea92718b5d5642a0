"""The typed spec: what it refuses, what it derives, and that its YAML form loses nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from orchestrator.spec import CampaignSpec, MethodSpec, content_hash
from orchestrator.spec_io import dump_spec
from orchestrator.spec_search import SearchSpec
from orchestrator.spec_values import SEARCHABLE
from orchestrator.spec_yaml import parse

MINIMAL: dict[str, Any] = {
    "name": "c",
    "tasks": [
        {
            "name": "t",
            "kind": "language-modelling",
            "data": {"source": "python-docs"},
            "model": {"type": "gpt2"},
            "dense": {"steps": 1, "learning_rate": 0.1},
        }
    ],
    "search": {"density": [0.5]},
}

NAMES = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,12}", fullmatch=True)
TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
RATES = st.floats(1e-9, 1)
SMALL = st.integers(1, 64)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(-1e300, 1e300) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)


def optional(strategy):
    return st.none() | strategy


def block(**optional_fields):
    return st.fixed_dictionaries({}, optional=optional_fields)


def merged(*parts):
    return st.tuples(*parts).map(lambda each: {k: v for part in each for k, v in part.items()})


METHOD = block(
    include=st.lists(TEXT, min_size=1, max_size=3),
    exclude=st.lists(TEXT, max_size=3),
    calibration_batches=SMALL,
    anneal_fraction=st.floats(0, 1, exclude_max=True),
    gate_lr=optional(st.floats(0, 10)),
    distill=st.floats(0, 1),
)
CHOICES = st.one_of(
    st.lists(st.floats(1e-6, 1), min_size=1, max_size=3),
    st.tuples(st.floats(1e-6, 0.4), st.floats(0.5, 1)).map(lambda pair: {"log_uniform": pair}),
    st.tuples(st.floats(1e-6, 0.4), st.floats(0.5, 1)).map(lambda pair: {"uniform": pair}),
)
SEARCHED = st.dictionaries(st.sampled_from(["max_grad_norm", "distill", "learning_rate"]), CHOICES)
SETTINGS = st.dictionaries(
    st.sampled_from(["floor_fraction", "distill_temperature"]), CHOICES | st.floats(1e-6, 1)
) | st.fixed_dictionaries({"gate_lr": st.none(), "start": st.just("svd")})
COMPARED = merged(
    block(trials_per_density=SMALL, repeats=optional(SMALL)),
    SETTINGS | SETTINGS.map(lambda fields: {"fields": fields}),
)
SEARCH = merged(
    st.builds(lambda d: {"density": d}, st.lists(RATES, min_size=1, max_size=4, unique=True)),
    block(
        trials_per_density=SMALL,
        repeats=SMALL,
        methods=st.dictionaries(NAMES, COMPARED, min_size=1, max_size=3),
    ),
    SEARCHED | SEARCHED.map(lambda fields: {"fields": fields}),
)
DATA = st.one_of(
    merged(st.just({"source": "python-docs"}), block(classes=st.integers(2, 20))),
    st.fixed_dictionaries(
        {"source": st.just("files"), "train": TEXT},
        optional={"test": optional(TEXT), "text": st.lists(TEXT, min_size=1, max_size=2)},
    ),
    st.fixed_dictionaries(
        {"source": st.just("datasets"), "path": TEXT},
        optional={"name": optional(TEXT), "data_files": optional(st.dictionaries(TEXT, TEXT))},
    ),
)
MODEL = st.one_of(
    st.fixed_dictionaries({"pretrained": TEXT}),
    st.fixed_dictionaries({"type": TEXT, "config": st.dictionaries(TEXT, JSON, max_size=3)}),
)
DENSE = st.fixed_dictionaries(
    {"steps": st.integers(0, 1000), "learning_rate": RATES, "batch": SMALL.map(lambda n: 4 * n)}
)
TASK = merged(
    st.fixed_dictionaries(
        {"name": NAMES, "data": DATA, "model": MODEL, "dense": DENSE},
        optional={
            "method": METHOD,
            "resources": block(workers=st.sampled_from([1, 2, 4])),
            "max_train_examples": optional(SMALL),
        },
    ),
    st.one_of(
        st.fixed_dictionaries(
            {
                "kind": st.just("language-modelling"),
                "level": st.sampled_from(["character", "word", "token"]),
            }
        ),
        st.just({"kind": "classification", "metric": "f1"}),
        # of the sources above, one has no scores
        st.fixed_dictionaries(
            {
                "kind": st.just("regression"),
                "data": DATA.filter(lambda data: data["source"] != "python-docs"),
            }
        ),
    ),
)
CAMPAIGN = st.fixed_dictionaries(
    {
        "name": NAMES,
        "tasks": st.lists(TASK, min_size=1, max_size=3, unique_by=lambda task: task["name"]),
        "search": SEARCH,
    },
    optional={
        "seed": st.integers(0, 2**31 - 1),
        "storage": TEXT,
        "tracking": block(uri=optional(TEXT), registry=optional(TEXT)),
        "resources": block(
            workers=st.sampled_from([1, 2, 4]),
            cpus_per_worker=RATES,
            labels=st.sampled_from([{}, {"group": "big"}, {"ray.io/market-type": "!in(a, b)"}]),
        ),
        "retention": block(
            budget=st.sampled_from([None, "20 GB", "1.5 TiB"]),
            keep=st.sampled_from(["all", "front", "champion"]),
            snapshots=st.integers(1, 10),
        ),
        "method": METHOD,
        "measure": block(batch=st.lists(SMALL, min_size=1, max_size=3)),
        "select": block(then=st.sampled_from(["smallest", "fastest", "best", "knee"])),
        "promote": block(model=st.just("{task}-x"), gates=st.just(["quality_drop <= 2%"])),
    },
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CAMPAIGN)
def test_yaml_round_trip(values):
    spec = CampaignSpec.model_validate(values)
    again = CampaignSpec.model_validate(parse(dump_spec(spec), "f").data)
    assert again == spec
    assert again.digest() == spec.digest()


def changed(**values: Any) -> dict[str, Any]:
    return {**MINIMAL, **values}


def with_task(**values: Any) -> dict[str, Any]:
    return changed(tasks=[{**MINIMAL["tasks"][0], **values}])


def test_minimal_spec_is_valid():
    spec = CampaignSpec.model_validate(MINIMAL)
    assert spec.method == MethodSpec()
    assert spec.task("t").evaluate_every == 100
    with pytest.raises(ValueError, match="no task 'x'; tasks: t"):
        spec.task("x")


@pytest.mark.parametrize(
    "values",
    [
        changed(name="Small"),
        changed(name="a/b"),
        changed(name=""),
        changed(seed=-1),
        changed(seed=2**31),
        changed(tasks=[]),
        changed(tasks=MINIMAL["tasks"] * 2),
        changed(search={"density": []}),
        changed(search={"density": [0.5, 0.5]}),
        changed(search={"density": [0]}),
        changed(search={"density": [0.5], "fields": {"learning_rate": []}}),
        changed(search={"density": [0.5], "fields": {"learning_rate": [0]}}),
        changed(search={"density": [0.5], "fields": {"steps": [1.5]}}),
        changed(search={"density": [0.5], "fields": {"include": [["*"]]}}),
        changed(search={"density": [0.5], "fields": {"density": [0.1]}}),
        changed(search={"density": [0.5], "learning_rate": [1], "fields": {"learning_rate": [1]}}),
        changed(search={"density": [0.5], "learning_rate": {"log_uniform": [0, 1]}}),
        changed(search={"density": [0.5], "learning_rate": {"uniform": [1, 1]}}),
        changed(search={"density": [0.5], "learning_rate": {}}),
        changed(search={"density": [True]}),
        changed(search={"density": [0.5], "tune_at": 0.3}),
        changed(search={"density": [0.5], "repeats": 0}),
        changed(search={"density": [0.5], "methods": {"A": {}}}),
        changed(search={"density": [0.5], "methods": {"a": None}}),
        changed(search={"density": [0.5], "methods": {"a": {"density": 0.3}}}),
        changed(search={"density": [0.5], "methods": {"a": {"kind": ["agp", "low-rank"]}}}),
        changed(search={"density": [0.5], "methods": {"a": {"movement": [True]}}}),
        changed(search={"density": [0.5], "learning_rate": [True]}),
        changed(measure={"repeats": 6}),
        changed(select={"require": ["nonsense"]}),
        changed(select={"require": ["speedup >= 1.2 @ batch 64"]}),
        changed(promote={"gates": ["speedup >= 1.2 @ batch 64"]}),
        changed(promote={"model": "{task.x}"}),
        changed(promote={"model": "{0}-{task}"}),
        changed(promote={"model": "{campaign}"}),
        changed(promote={"model": "{task"}),
        changed(resources={"workers": 3}),
        with_task(resources={"workers": 3}),
        with_task(resources={"worker": 1}),
        with_task(method={"density": 2}),
        with_task(model={}),
        with_task(model={"type": "gpt2", "pretrained": "x"}),
        with_task(dense={"steps": True, "learning_rate": 0.1}),
        with_task(dense={"steps": 1, "learning_rate": float("nan")}),
    ],
)
def test_refused(values):
    with pytest.raises(ValidationError):
        CampaignSpec.model_validate(values)


GLUE_KINDS = {"stsb": "regression"} | dict.fromkeys(
    ["cola", "sst2", "mrpc", "qqp", "mnli", "qnli", "rte"], "classification"
)


def glue(task: str, **fields: Any) -> Any:
    data = {"source": "glue", "task": task}
    return CampaignSpec.model_validate(with_task(data=data, **fields)).tasks[0]


def test_a_glue_task_has_the_metric_of_glue():
    metrics = {task: glue(task, kind=kind).metric for task, kind in GLUE_KINDS.items()}
    assert metrics == {
        "cola": "matthews",
        "sst2": "accuracy",
        "mrpc": "accuracy_f1",
        "stsb": "pearson_spearman",
        "qqp": "accuracy_f1",
        "mnli": "accuracy",
        "qnli": "accuracy",
        "rte": "accuracy",
    }
    assert glue("mrpc", kind="classification", metric="f1").metric == "f1"
    assert glue("stsb", kind="regression", metric="spearman").metric == "spearman"
    # what a worker receives is the same task
    task = glue("cola", kind="classification")
    assert type(task).model_validate(task.model_dump(mode="json")) == task


@pytest.mark.parametrize("task", GLUE_KINDS)
def test_a_glue_task_is_of_one_kind(task: str):
    wrong = {"regression": "classification", "classification": "regression"}[GLUE_KINDS[task]]
    message = f"kind must be {GLUE_KINDS[task]} for GLUE's {task}, got {wrong}"
    with pytest.raises(ValidationError, match=message):
        glue(task, kind=wrong)
    with pytest.raises(ValidationError, match=f"for GLUE's {task}, got language-modelling"):
        glue(task, kind="language-modelling")


def test_docstrings_have_no_scores():
    with pytest.raises(ValidationError, match="must be a source with scores, got 'python-docs'"):
        CampaignSpec.model_validate(with_task(kind="regression"))


def test_method_of_a_task_takes_its_own_fields_then_the_searched():
    common = {"kind": "flop-l0", "distill": 0.1}
    values = with_task(method={"steps": 7, "penalty_lr": 0.5}) | {"method": common}
    spec = CampaignSpec.model_validate(values)
    method = spec.method_of(spec.tasks[0], penalty_lr=0.9, density=0.2)
    assert (method.steps, method.penalty_lr, method.distill) == (7, 0.9, 0.1)
    assert method.density == 0.2
    with pytest.raises(ValidationError):
        spec.method_of(spec.tasks[0], density=2)


def test_resources_of_a_task():
    values = with_task(resources={"workers": 4}) | {"resources": {"cpus_per_worker": 2}}
    spec = CampaignSpec.model_validate(values)
    resources = spec.resources_of(spec.tasks[0])
    assert (resources.workers, resources.cpus_per_worker) == (4, 2)


def test_searched_fields_may_stand_in_the_block():
    direct = SearchSpec.model_validate({"density": [1], "penalty_lr": [0.1], "distill": [0]})
    nested = {"density": [1], "fields": {"penalty_lr": [0.1], "distill": [0]}}
    assert direct == SearchSpec.model_validate(nested)
    assert SearchSpec.model_validate(direct) == direct
    assert "density" not in SEARCHABLE
    assert "penalty_lr" in SEARCHABLE


def test_searched_numbers_keep_their_type():
    search = SearchSpec.model_validate({"density": [1], "steps": [1, 2], "distill": [0, 0.5]})
    assert [type(value) for value in search.fields["steps"]] == [int, int]


def test_a_method_tells_what_it_changes_from_what_it_searches():
    values = {"kind": "agp", "movement": True, "gate_lr": None, "distill": [0, 1]}
    search = SearchSpec.model_validate({"density": [1], "methods": {"m": {"repeats": 2} | values}})
    method = search.methods["m"]
    assert method.changes == {"kind": "agp", "movement": True, "gate_lr": None}
    assert method.searched == {"distill": [0, 1]}
    assert (method.repeats, method.trials_per_density) == (2, None)
    nested = SearchSpec.model_validate({"density": [1], "methods": {"m": {"fields": values}}})
    assert nested.methods["m"].fields == method.fields


def test_methods_take_what_the_search_gives_to_all_if_their_kind_has_it():
    methods = {"a": {"distill": 0.1}, "b": {"kind": "low-rank"}, "c": {"gate_lr": [1]}}
    fields = {"gate_lr": [0.1, 0.2], "distill": [0, 0.5]}
    spec = CampaignSpec.model_validate(
        changed(search={"density": [0.5], "methods": methods} | fields)
    )
    taken = {
        name: spec.search.shared_fields(method, method.changes.get("kind", "adaptive")).keys()
        for name, method in spec.search.methods.items()
    }
    assert taken == {"a": {"gate_lr"}, "b": {"distill"}, "c": {"distill"}}


def test_a_kind_leaves_behind_what_it_does_not_have():
    gates = {"kind": "flop-l0", "penalty_lr": 0.5, "distill": 0.1}
    spec = CampaignSpec.model_validate(with_task(method=gates))
    method = spec.method_of(spec.tasks[0], {"kind": "low-rank"}, density=0.2)
    assert (method.kind, method.penalty_lr, method.distill) == ("low-rank", None, 0.1)


def test_a_task_may_give_a_field_of_the_campaigns_kind():
    values = with_task(method={"price_floor": 0}) | {"method": {"kind": "flop-l0"}}
    spec = CampaignSpec.model_validate(values)
    assert spec.method_of(spec.tasks[0]).price_floor == 0
    with pytest.raises(ValidationError, match="price_floor is not a field of kind 'adaptive'"):
        CampaignSpec.model_validate(with_task(method={"price_floor": 0}))


def test_digest_ignores_where_results_are_stored_and_nothing_else():
    spec = CampaignSpec.model_validate(MINIMAL)
    elsewhere = changed(storage="/x", tracking={"uri": "http://host"})
    assert CampaignSpec.model_validate(elsewhere).digest() == spec.digest()
    assert CampaignSpec.model_validate(changed(seed=1)).digest() != spec.digest()


def test_a_field_that_came_later_leaves_the_digest_of_specs_without_it():
    """Versions without `measure.int8` have recorded digests."""
    spec = CampaignSpec.model_validate(MINIMAL)
    values = spec.model_dump(mode="json", exclude={"storage", "tracking", "retention"})
    assert values["measure"].pop("int8") is False
    for name in ("min_workers", "resize_minutes", "labels"):
        del values["resources"][name]
    for name in ("finalists", "ladder", "stopping", "warm_start"):
        del values["search"][name]
    del values["select"]["epsilon"]
    del values["select"]["reference_drop"]
    for name in ("load_test", "license", "require_license", "approval"):
        del values["promote"][name]
    for name in ("sampler", "startup", "batch"):
        del values["search"][name]
    assert spec.digest() == content_hash(values)
    assert CampaignSpec.model_validate(changed(measure={"int8": True})).digest() != spec.digest()


def test_content_hash_does_not_depend_on_order():
    assert content_hash({"a": 1, "b": [2]}) == content_hash({"b": [2], "a": 1})
    assert len(content_hash(1, length=8)) == 8
    with pytest.raises(ValueError, match="Out of range"):
        content_hash(float("nan"))


def test_a_spec_never_changes():
    spec = CampaignSpec.model_validate(MINIMAL)
    with pytest.raises(ValidationError, match="frozen"):
        spec.seed = 3
