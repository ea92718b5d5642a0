"""From a file to a spec: every way to get it wrong has a line, a place, a rule and a value."""

from __future__ import annotations

import contextlib
import itertools

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.errors import SpecError
from orchestrator.spec import CampaignSpec
from orchestrator.spec_io import dump_spec, json_schema, load_spec, redact_uri
from orchestrator.spec_tasks import Classification, LanguageModelling
from orchestrator.spec_yaml import dump, parse
from tests.orchestrator.spec_texts import VALID, broken, write_spec


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    """Run in a folder that is neither the repository nor the one of the spec."""
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One folder for all examples of a property."""
    return tmp_path_factory.mktemp("spec")


def test_valid_spec(tmp_path):
    spec = load_spec(write_spec(tmp_path))
    language, classes = spec.tasks
    assert isinstance(language, LanguageModelling)
    assert isinstance(classes, Classification)
    assert language.dense.learning_rate == 0.002
    assert classes.data.train == str(tmp_path / "train.tsv")
    assert spec.search.fields["gate_lr"].log_uniform == (0.01, 1)
    assert spec.storage == str(tmp_path / "cwd" / "runs")


def test_dump_loads_back_equal(tmp_path):
    spec = load_spec(write_spec(tmp_path), ["tracking.wait_minutes=7"])
    assert spec.tracking.wait_minutes == 7
    copy = tmp_path / "copy.yaml"
    copy.write_text(dump_spec(spec))
    again = load_spec(copy)
    assert again == spec
    assert again.digest() == spec.digest()
    assert dump_spec(again) == dump_spec(spec)


def test_dump_hides_passwords_only_when_asked(tmp_path):
    spec = load_spec(write_spec(tmp_path), ["tracking.uri=postgresql://me:pw@host/db"])
    assert "me:pw@host" in dump_spec(spec)
    assert "uri: postgresql://***@host/db" in dump_spec(spec, redact=True)
    assert "registry: null" in dump_spec(spec, redact=True)
    assert "wait_minutes: 60" in dump_spec(spec, redact=True)


def compared(text):
    """`VALID` with methods to compare; they begin in line 19."""
    return f"{VALID}  methods:\n    {text}\n"


HEAD, TAIL = VALID[: VALID.index("  - name")], VALID[VALID.index("search:") :]
BROKEN = [
    # what pydantic reports, in our words
    (broken("seed: 7", "seed: 1.5"), ":2: seed: must be a whole number, got 1.5"),
    (broken("seed: 7", "seed: many"), ":2: seed: must be a whole number, got 'many'"),
    (broken("seed: 7", "seed: true"), ":2: seed: must not be true or false, got True"),
    (broken("seed: 7", "seed: -1"), ":2: seed: must be >= 0 and < 2147483648, got -1"),
    (broken("seed: 7", "seed:"), ":2: seed: must be a whole number, got nothing"),
    (broken("seed: 7", "sed: 7"), ":2: sed: unknown key; did you mean `seed`? allowed: name, "),
    (broken("seed: 7", "zzz: 7"), ":2: zzz: unknown key; allowed: name, seed, storage, "),
    (broken("small-fleet", "Small"), ":1: name: must be 1 to 64 of a-z, 0-9, dot, dash and und"),
    (broken("small-fleet", "7"), ":1: name: must be text, got 7 (put it in quotes)"),
    (broken("small-fleet", "1e3"), ":1: name: must be text, got 1000.0 (put it in quotes)"),
    (broken("name: small-fleet\n", ""), ":1: name: required key is missing"),
    (broken("  density: [0.5, 0.3]", "  density: 0.5"), ":16: search.density: must be a list, g"),
    (broken("0.3", "1.7"), ":16: search.density[1]: must be > 0 and <= 1, got 1.7"),
    (broken("0.3", "0.5"), ":16: search.density: densities must differ, got [0.5, 0.5]"),
    (broken("0.3", "true"), ":16: search.density[1]: must not be true or false, got True"),
    (broken("[0.5, 0.3]", "[]"), ":16: search.density: must have at least 1 item, got []"),
    # inside tasks: no tags of unions in the place
    (
        broken("n_layer: 4}", "n_layer: 4}, n_head: 2"),
        ":7: tasks[0].model.n_head: unknown key; all",
    ),
    (broken("{type: gpt2, config: {n_layer: 4}}", "{}"), ":7: tasks[0].model: exactly one of `pre"),
    (broken("{type: gpt2, config: {n_layer: 4}}", "gpt2"), ":7: tasks[0].model: must be a block "),
    (broken("steps: 600, ", ""), ":8: tasks[0].dense.steps: required key is missing"),
    (broken("steps: 600", "step: 600"), ":8: tasks[0].dense.step: unknown key; did you mean `st"),
    (broken("2e-3", "2"), ":8: tasks[0].dense.learning_rate: must be > 0 and <= 1, got 2"),
    (broken("2e-3", ".2.3"), ":8: tasks[0].dense.learning_rate: must be a number, got '.2.3'"),
    (broken("language-modelling", "lm"), ":5: tasks[0].kind: must be one of language-modelling, c"),
    (broken("    kind: language-modelling\n", ""), ":4: tasks[0].kind: required key is missing, o"),
    (
        broken("kind: language-modelling", "kind: regression"),
        ":6: tasks[0].data.source: must be a source with scores, got 'python-docs'",
    ),
    (
        broken("{source: files, train: train.tsv}", "{source: glue, task: stsb}"),
        ":10: tasks[1].kind: must be regression for GLUE's stsb, got classification",
    ),
    (
        broken("{source: files, train: train.tsv}", "{source: glue, task: sst-2}"),
        ":11: tasks[1].data.task: must be one of cola, sst2, mrpc, stsb, ",
    ),
    (
        broken("python-docs", "python"),
        ":6: tasks[0].data.source: must be one of python-docs, files",
    ),
    (broken("source: python-docs", "classes: 3"), ":6: tasks[0].data.source: required key is miss"),
    (
        broken("{source: python-docs}", "3"),
        ":6: tasks[0].data: must be a block of keys and values,",
    ),
    (
        broken("docs}", "docs, classes: 40}"),
        ":6: tasks[0].data.classes: must be >= 2 and <= 20, go",
    ),
    (
        broken("train.tsv}", "train.tsv, text: [a, b, c]}"),
        ":11: tasks[1].data.text: must have at mos",
    ),
    (
        broken("train.tsv}", "train.tsv, files: x}"),
        ":11: tasks[1].data.files: unknown key; allowed",
    ),
    (
        broken("train: train.tsv", "test: train.tsv"),
        ":11: tasks[1].data.train: required key is m",
    ),
    (broken("train: train.tsv", "train: none.tsv"), ":11: tasks[1].data.train: file not found: "),
    (broken("train: train.tsv", "train: ."), ":11: tasks[1].data.train: must be a file, got "),
    (broken("train: train.tsv", "train: 3"), ":11: tasks[1].data.train: must be text, got 3"),
    (
        broken("name: sst", "name: docs-lm"),
        ":9: tasks[1].name: task names must differ, got 'docs-lm",
    ),
    (
        broken("  - name: sst", "  - 3\n  - name: sst"),
        ":9: tasks[1]: must be a block of keys and va",
    ),
    (f"{HEAD}  a: {{}}\n{TAIL}", ":3: tasks: must be a list, got {'a': {}}"),
    # a task's own method and resources
    (
        broken("{density: 0.5}", "{density: 2}"),
        ":14: tasks[1].method.density: must be > 0 and <= 1",
    ),
    (
        broken("density: 0.5}", "densitty: 1}"),
        ":14: tasks[1].method.densitty: unknown key; did you m",
    ),
    (
        broken("density: 0.5}", "kind: x}"),
        ":14: tasks[1].method.kind: must be one of adaptive, low-",
    ),
    (
        broken("{density: 0.5}", "{steps: true}"),
        ":14: tasks[1].method.steps: must not be",
    ),
    (
        broken("{density: 0.5}", "3"),
        ":14: tasks[1].method: must be a block of keys and values, got",
    ),
    (
        VALID.replace("method: {density: 0.5}", "resources: {workers: 0}"),
        ":14: tasks[1].resources.workers: must be >= 1 and <= 4096, got 0",
    ),
    (
        VALID + "resources: {workers: 3}\n",
        ":8: tasks[0].dense.batch: must be a multiple of resources.workers, got 16 and 3",
    ),
    # searched fields stand in the block or under `fields`
    (
        broken("gate_lr: ", "gate_rl: "),
        ":17: search.gate_rl: unknown key; did you mean `ga",
    ),
    (
        broken("gate_lr: {log_uniform: [0.01, 1]}", "distill: 4"),
        ":17: search.distill: must be a l",
    ),
    (
        broken("[0.01, 1]", "[0.01]"),
        ":17: search.gate_lr.log_uniform: must have at least 2 items",
    ),
    (
        broken("[0.01, 1]", "[0.01, 1, 2]"),
        ":17: search.gate_lr.log_uniform: must have at most 2",
    ),
    (broken("[0.01, 1]", "[0, 1]"), ":17: search.gate_lr: low < high must hold, and 0 < low if"),
    (
        broken("[0.01, 1]", "[0.01, 1000]"),
        ":17: search.gate_lr.log_uniform[1]: must be >= 0 and <",
    ),
    (
        broken("log_uniform", "log_unifrom"),
        ":17: search.gate_lr.log_unifrom: unknown key; did you mean `log_un",
    ),
    (
        broken("{log_uniform: [0.01, 1]}", "[1, true]"),
        ":17: search.gate_lr[1]: must be a number or",
    ),
    (
        broken("{log_uniform: [0.01, 1]}", "[1, -1]"),
        ":17: search.gate_lr[1]: must be >= 0 and <= 1",
    ),
    (broken("{log_uniform: [0.01, 1]}", "[]"), ":17: search.gate_lr: needs at least one value"),
    (
        broken("gate_lr: {log_uniform: [0.01, 1]}", "fields:\n    steps: [1.5]"),
        ":18: search.fields.steps[0]: must be a whole number, got 1.5",
    ),
    (
        broken("gate_lr: {log_uniform: [0.01, 1]}", "fields: {include: [a]}"),
        ":17: search.fields.include: is not a searchable field of the method: allocation, ",
    ),
    (
        VALID + "  fields: {gate_lr: [1]}\n",
        ":17: search.gate_lr: is given twice, here and und",
    ),
    (VALID + "  fields: 3\n", ":18: search.fields: must be a block of keys and values, got 3"),
    # compared methods: every place is the one that was written
    (
        compared("a: {gate_lr: -1, distill: [0.5]}"),
        ":19: search.methods.a.gate_lr: must be >= 0 and <= 10, got -1",
    ),
    (
        compared("a: {distill: [0.5, 3]}"),
        ":19: search.methods.a.distill[1]: must be >= 0 and <= 1, got 3",
    ),
    (
        compared("a:\n      fields:\n        distill: {uniform: [0, 2]}"),
        ":21: search.methods.a.fields.distill.uniform[1]: must be >= 0 and <= 1, got 2",
    ),
    (compared("a: {repeats: 0}"), ":19: search.methods.a.repeats: must be >= 1 and <= 1000, got "),
    (compared("a: {repeat: 2}"), ":19: search.methods.a.repeat: unknown key; did you mean `repea"),
    (compared("a: {gate_rl: 2}"), ":19: search.methods.a.gate_rl: unknown key; did you mean"),
    (compared("a: 3"), ":19: search.methods.a: must be a block of keys and values, got 3"),
    (compared("A: {}"), ":19: search.methods.A: must be 1 to 64 of a-z, 0-9, dot, dash and und"),
    (
        compared("a: {include: ['*']}"),
        ":19: search.methods.a.include: is not a field in which methods may differ: kind, alloc",
    ),
    (
        compared("a: {kind: lowrank}"),
        ":19: search.methods.a.kind: must be one of adaptive, low-rank,",
    ),
    (
        compared("a: {kind: [agp]}"),
        ":19: search.methods.a.kind: is not a searchable field of the method: allocation, ",
    ),
    (compared("a: {steps: true}"), ":19: search.methods.a.steps: must not be true or false, got T"),
    # right by themselves, wrong together
    (
        compared("a: {}\n    b: {kind: low-rank, temperature: 2}"),
        ":20: search.methods.b.temperature: is not a field of kind 'low-rank', which has kind, ",
    ),
    (
        compared("a: {}\n    b: {kind: low-rank, temperature: [1, 2]}"),
        ":20: search.methods.b.temperature[1]: is not a field of kind 'low-rank', which has kin",
    ),
    (
        compared("a: {}\n    b: {kind: np-l0, budget: latency}"),
        ":20: search.methods.b.budget: `latency` needs a kind that prunes ranks, got 'np-l0'",
    ),
    (
        compared("b: {kind: low-rank}"),
        ":17: search.gate_lr: is given by each of search.methods itself, or has no meaning",
    ),
    (
        broken("{density: 0.5}", "{kind: agp, floor_fraction: 0.3}"),
        ":14: tasks[1].method.floor_fraction: is not a field of kind 'agp', which has kind",
    ),
    (
        broken("gate_lr: {log", "temperature: {log"),
        ":17: search.temperature.log_uniform[0]: is not a field of kind 'adaptive', which has k",
    ),
    (
        VALID + "  tune_at: 0.4\n",
        ":18: search.tune_at: must be one of search.density [0.5, 0.3], got 0.4",
    ),
    (
        VALID + "  repeats_at: [0.5, 0.4]\n",
        ":18: search.repeats_at: must be some of search.density [0.5, 0.3], got 0.4",
    ),
    # measurement, selection, promotion
    (VALID + "measure: {batch: [0]}\n", ":18: measure.batch[0]: must be >= 1, got 0"),
    (VALID + "measure: {repeats: 3}\n", ":18: measure.repeats: must be >= 7, got 3"),
    (VALID + "select: {require: [x]}\n", ":18: select.require[0]: cannot read the rule 'x'"),
    (
        VALID + "select: {then: big}\n",
        ":18: select.then: must be one of smallest, fastest, best, kn",
    ),
    (
        VALID + "promote:\n  gates:\n    - bytes < 1\n    - speedup >= 1 @ batch 8\n",
        ":21: promote.gates[1]: the batch must be one of measure.batch [1, 32], got 8",
    ),
    (
        VALID + "promote: {model: '{x}'}\n",
        ":18: promote.model: only {campaign} and {task} may stand",
    ),
    (
        broken("source: files, train: train.tsv", "source: datasets, path: x, splits: {dev: a}"),
        ":11: tasks[1].data.splits.dev: must be one of train, validation, test, got 'dev'",
    ),
    # what YAML itself refuses
    (VALID + "seed: 8\n", ":18: key `seed` is given twice, first in line 2"),
    (broken("2e-3}", "2e-3"), ":9: not valid YAML: "),
    ("", ": the file is empty"),
]


@pytest.mark.parametrize(("text", "message"), BROKEN, ids=[m.strip(":")[:40] for _, m in BROKEN])
def test_broken_spec(tmp_path, text, message):
    path = write_spec(tmp_path, text)
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    assert f"{path}{message}" in str(caught.value)
    line = message.split(":")[1]
    assert caught.value.line == (int(line) if line.isdecimal() else None)
    assert len(caught.value.problems) <= 2  # a misspelt key is also a missing one


def test_an_architecture_key_in_the_wrong_block_is_sent_to_config(tmp_path):
    text = broken("n_layer: 4}", "n_layer: 4}, n_head: 2")
    with pytest.raises(SpecError, match="what the transformers config holds stands under `config`"):
        load_spec(write_spec(tmp_path, text))


def test_every_problem_is_listed_in_the_order_of_the_file(tmp_path):
    text = VALID.replace("seed: 7", "sed: 7").replace("600", "-1").replace("0.3", "3")
    text = text.replace("density: 0.5}", "density: 5}").replace("train.tsv", "none.tsv")
    with pytest.raises(SpecError) as caught:
        load_spec(write_spec(tmp_path, text))
    lines = [int(problem.split(":")[1]) for problem in caught.value.problems]
    assert lines == [2, 8, 11, 14, 16]
    assert caught.value.line == 2
    assert str(caught.value).splitlines() == caught.value.problems
    assert caught.value.path == str(tmp_path / "spec.yaml")


def test_a_missing_data_file_names_both_places(tmp_path):
    path = write_spec(tmp_path, broken("train.tsv", "none.tsv"))
    with pytest.raises(SpecError) as caught:
        load_spec(path)
    both = f"{tmp_path / 'none.tsv'} and {tmp_path / 'cwd' / 'none.tsv'}"
    assert caught.value.problems == [f"{path}:11: tasks[1].data.train: file not found: {both}"]


def test_no_message_shows_a_password(tmp_path):
    texts = [
        VALID + "tracking: postgresql://me:pw@host/db\n",
        VALID + "tracking: [postgresql://me:pw@host/db]\n",
        VALID + "tracking: {registry: {uri: postgresql://me:pw@host/db}}\n",
        VALID + "tracking: {url: postgresql://me:pw@host/db}\n",
    ]
    overrides = ["seed=postgresql://me:pw@host/db", "postgresql://me:pw@host/db"]
    for text, override in itertools.product(texts, overrides):
        for chosen in ([], [override]):
            with pytest.raises(SpecError) as caught:
                load_spec(write_spec(tmp_path, text), chosen)
            assert "pw@" not in str(caught.value)
    assert redact_uri("postgresql://me:pw@host/db") == "postgresql://***@host/db"


def test_long_values_are_cut(tmp_path):
    with pytest.raises(SpecError) as caught:
        load_spec(write_spec(tmp_path, broken("seed: 7", f"seed: {'x' * 5000}")))
    assert len(str(caught.value)) < 300
    with pytest.raises(SpecError, match="must be a whole number, got 100 items"):
        load_spec(write_spec(tmp_path), [f"seed={list(range(100))}"])


PROPERTY = settings(
    deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
PLACES = [place for place in parse(VALID, "f").origins if place]
ODD = [None, True, -1, 1e300, 2**70, "", "x", "1", "{task}", [], [1, "a", None], {}, {"kind": "x"}]


@PROPERTY
@given(st.sampled_from(PLACES), st.sampled_from(ODD), st.booleans())
def test_any_odd_value_anywhere_is_accepted_or_explained(folder, place, value, as_new_key):
    data = parse(VALID, "f").data
    holder = data
    for part in place[:-1]:
        holder = holder[part]
    key = f"{place[-1]}x" if as_new_key and isinstance(holder, dict) else place[-1]
    holder[key] = value
    with contextlib.suppress(SpecError):
        load_spec(write_spec(folder, dump(data)))


@PROPERTY
@given(
    start=st.integers(0, len(VALID)),
    removed=st.integers(0, 30),
    inserted=st.text("-:{}[]&*!<|>%@`'\"#,?\n\t a1.", max_size=4),
)
def test_any_typing_error_is_accepted_or_explained(folder, start, removed, inserted):
    with contextlib.suppress(SpecError):
        load_spec(write_spec(folder, VALID[:start] + inserted + VALID[start + removed :]))


def test_json_schema_accepts_what_loads(tmp_path):
    schema = json_schema()
    validator = jsonschema.Draft202012Validator(schema)
    validator.check_schema(schema)
    validator.validate(parse(VALID, "f").data)
    validator.validate(parse(dump_spec(load_spec(write_spec(tmp_path))), "f").data)
    methods = compared("a: {kind: agp, movement: true, distill: [0, 1], repeats: 2}\n    b: {}")
    for text in (methods, dump_spec(load_spec(write_spec(tmp_path, methods)))):
        validator.validate(parse(text, "f").data)


@pytest.mark.parametrize(
    "text",
    [
        broken("seed: 7", "sed: 7"),
        broken("0.3", "1.7"),
        broken("gate_lr", "gate_rl"),
        broken("{density: 0.5}", "{densitty: 0.5}"),
        broken("language-modelling", "lm"),
        compared("a: {gate_rl: 1}"),
        compared("a: {kind: lowrank}"),
        compared("A: {}"),
    ],
)
def test_json_schema_refuses_what_does_not(text):
    validator = jsonschema.Draft202012Validator(json_schema())
    assert not validator.is_valid(parse(text, "f").data)


def test_json_schema_names_every_block():
    names = set(json_schema()["properties"])
    assert names == set(CampaignSpec.model_fields)
