"""Models with a state: lanes of training and evaluation, and what is carried along them."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

from lowrank import FlopL0, Pruner
from lowrank.hf import load_pretrained, load_tokenizer, save_pretrained
from lowrank.weight_groups import weight_groups
from orchestrator import resume
from orchestrator.errors import DataError, ModelError
from orchestrator.models import build_model, carries_state
from orchestrator.spec_tasks import LanguageModelling, ModelSpec
from orchestrator.stretch import Recorder, Stretch
from orchestrator.tasks import Distillation, TrainingTask, recurrent
from orchestrator.tasks.language_modelling import LanguageModellingTask
from orchestrator.tasks.recurrent import RecurrentLanguageModellingTask
from orchestrator.train_loop import run_job
from orchestrator.training import evaluate, train
from orchestrator.workers import LocalWorkers
from tests.orchestrator.small import (
    GPT2,
    LENGTH,
    Family,
    make_classes,
    make_job,
    make_lm,
    method,
    ready,
    train_to,
    with_config,
)

SRU: dict[str, Any] = {
    "type": "sru",
    "config": {"hidden_size": 16, "num_hidden_layers": 2, "dropout": 0.0},
}
WINDOWS = 20
"""Of the training stream below: 16 tokens each, in 8 lanes."""


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> LanguageModelling:
    return make_lm(tmp_path_factory.mktemp("raw"), model=SRU, max_train_examples=WINDOWS + 1)


@pytest.fixture(scope="module")
def task(
    spec: LanguageModelling, tmp_path_factory: pytest.TempPathFactory
) -> RecurrentLanguageModellingTask:
    made = ready(spec, tmp_path_factory.mktemp("cache"), seed=3)
    assert isinstance(made, RecurrentLanguageModellingTask)
    return made


@pytest.fixture
def model(spec: LanguageModelling, task: TrainingTask) -> nn.Module:
    """Weights large enough that what came before matters."""
    built = build_model(spec, task.data, seed=1)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(2)
    return built.eval()


class Spy(nn.Module):
    """Passes calls on and keeps what the model was given."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.states: list[torch.Tensor | None] = []

    def forward(self, input_ids: torch.Tensor, state: torch.Tensor | None = None) -> Any:
        self.states.append(state)
        return self.model(input_ids=input_ids, state=state)


class TestTraining:
    def test_each_row_reads_on_where_it_stopped(self, task: RecurrentLanguageModellingTask):
        steps = [task.batch(step, 0, 1) for step in range(2 * WINDOWS)]
        wraps = 0
        for one, following in itertools.pairwise(steps):
            for row in range(task.batch_size):
                last = one["labels"][row, -1]
                if following["begins"][row]:
                    wraps += 1
                else:
                    assert following["input_ids"][row, 0] == last
        assert wraps == pytest.approx(2 * task.batch_size, abs=1)

    def test_each_row_reads_the_whole_stream_in_turn(self, task: RecurrentLanguageModellingTask):
        tokens = task.data.tokens("train").astype(int)
        first = task.global_batch(0).min() % LENGTH
        for row in range(task.batch_size):
            starts = [task.global_batch(step)[row] for step in range(WINDOWS)]
            assert sorted(starts) == [first + LENGTH * i for i in range(WINDOWS)]
            batch = task.collate(np.sort(starts))
            assert batch["input_ids"].flatten().tolist() == tokens[first:][: 20 * LENGTH].tolist()
            assert batch["labels"].flatten().tolist() == tokens[first + 1 :][: 20 * LENGTH].tolist()
            assert batch["begins"].tolist() == [True] + [False] * (WINDOWS - 1)

    def test_rows_are_spread_over_the_stream(self, task: RecurrentLanguageModellingTask):
        places = np.sort((task.global_batch(5) - task.global_batch(5).min()) // LENGTH)
        assert len(set(places.tolist())) == task.batch_size
        gaps = np.diff([*places, places[0] + WINDOWS])
        assert set(gaps.tolist()) <= {2, 3}  # 20 windows over 8 rows

    def test_batches_follow_from_seed_and_step_alone(
        self, task: RecurrentLanguageModellingTask, spec: LanguageModelling
    ):
        again, other = (RecurrentLanguageModellingTask(spec, task.data, seed) for seed in (3, 4))
        for step in (9, 3, 0):
            assert np.array_equal(task.global_batch(step), again.global_batch(step))
        assert not np.array_equal(task.global_batch(0), other.global_batch(0))

    def test_workers_share_the_rows_and_keep_them(self, task: RecurrentLanguageModellingTask):
        for step in (0, 7):
            whole = task.batch(step, 0, 1)["input_ids"]
            shares = [task.batch(step, rank, 2)["input_ids"] for rank in (0, 1)]
            assert torch.equal(whole[0::2], shares[0])
            assert torch.equal(whole[1::2], shares[1])

    def test_fewer_windows_than_rows(self, spec: LanguageModelling, tmp_path: Path):
        tiny = make_lm(tmp_path, model=SRU, max_train_examples=4)
        task = ready(tiny, tmp_path / "cache")
        assert task.batch(0, 0, 1)["input_ids"].shape == (8, LENGTH)

    def test_not_even_one_window(self, tmp_path: Path):
        with pytest.raises(DataError, match="more than `context` tokens, got 16 and 16"):
            ready(make_lm(tmp_path, model=SRU, max_train_examples=1), tmp_path / "cache")


class TestState:
    def test_is_carried_detached_and_zeroed_at_the_start_of_the_stream(
        self, task: RecurrentLanguageModellingTask, model: nn.Module
    ):
        spy = Spy(model)
        task.begin_stretch()
        batches = [task.batch(step, 0, 1) for step in range(WINDOWS)]
        for batch in batches:
            task.loss(spy, batch)
        assert spy.states[0] is None
        state = None
        for batch, given in zip(batches, spy.states, strict=True):
            if state is not None:
                state = state * ~batch["begins"][None, :, None]
                assert given is not None
                assert not given.requires_grad
                torch.testing.assert_close(given, state)
            state = model(input_ids=batch["input_ids"], state=state).state.detach()
        assert sum(int(batch["begins"].sum()) for batch in batches) == task.batch_size

    def test_loss_is_that_of_the_text_before(
        self, task: RecurrentLanguageModellingTask, model: nn.Module
    ):
        """Two steps against one pass over both windows in a row."""
        task.begin_stretch()
        first = next(s for s in range(WINDOWS) if not task.batch(s + 1, 0, 1)["begins"].any())
        batches = [task.batch(step, 0, 1) for step in (first, first + 1)]
        losses = [task.loss(model, batch).item() for batch in batches]
        ids = torch.cat([batch["input_ids"] for batch in batches], 1)
        logits = model(input_ids=ids).logits[:, LENGTH:].flatten(0, 1)
        wanted = F.cross_entropy(logits, batches[1]["labels"].flatten()).item()
        assert losses[1] == pytest.approx(wanted, rel=1e-5)
        task.begin_stretch()
        assert task.loss(model, batches[1]).item() != pytest.approx(wanted, rel=1e-3)

    def test_the_teacher_has_its_own(
        self, task: RecurrentLanguageModellingTask, model: nn.Module, spec: LanguageModelling
    ):
        teacher, student = Spy(build_model(spec, task.data, seed=9).eval()), Spy(model)
        task.begin_stretch()
        for step in range(3):
            task.loss(student, task.batch(step, 0, 1), Distillation(teacher=teacher))
        for spy in (student, teacher):
            lone = Spy(spy.model)
            task.begin_stretch()
            for step in range(3):
                task.loss(lone, task.batch(step, 0, 1))
            assert lone.states[0] is spy.states[0] is None
            for one, other in zip(spy.states[1:], lone.states[1:], strict=True):
                torch.testing.assert_close(one, other)

    def test_evaluation_does_not_disturb_it(
        self, task: RecurrentLanguageModellingTask, model: nn.Module
    ):
        task.begin_stretch()
        task.loss(model, task.batch(0, 0, 1))
        before = task._states["student"].clone()
        evaluate(model, task, LocalWorkers(), "test")
        assert torch.equal(task._states["student"], before)

    def test_a_stretch_begins_without_one(
        self, task: RecurrentLanguageModellingTask, spec: LanguageModelling
    ):
        """The same stretch twice, on one task, is the same training; also for two workers, whose
        search for unused parameters reads a batch of another size."""

        class Two(LocalWorkers):
            world = 2

            def gather(self, value: Any) -> list[Any]:
                return [value, value]

        stretch = Stretch(first_step=4, num_steps=5, max_grad_norm=1.0, evaluate_every=2)
        for workers in (LocalWorkers(), Two()):
            losses = []
            for _ in range(2):
                built = build_model(spec, task.data, seed=1)
                recorder = Recorder(workers=workers, total_steps=5)
                train(
                    built,
                    weight_groups(built.parameters(), 1e-2, 0),
                    task,
                    workers,
                    stretch,
                    recorder,
                )
                losses.append([point.train_loss for point in recorder.curve])
            assert losses[0] == losses[1]


class TestEvaluation:
    def test_is_a_pass_over_whole_lanes(
        self, task: RecurrentLanguageModellingTask, model: nn.Module
    ):
        tokens = torch.from_numpy(task.data.tokens("test").astype(np.int64))
        predictions = len(tokens) - 1
        assert predictions % recurrent.EVALUATION_LANES, "lanes of different lengths are needed"
        edges = [predictions * i // 16 for i in range(17)]
        nats = 0.0
        for start, end in itertools.pairwise(edges):
            logits = model(input_ids=tokens[None, start:end]).logits[0].double()
            labels = tokens[start + 1 : end + 1]
            nats += F.cross_entropy(logits, labels, reduction="sum").item()
        assert task.evaluate_shard(model, "test", 0, 1) == [
            pytest.approx(nats, rel=1e-6),
            predictions,
        ]

    @pytest.mark.parametrize("world", [3, 20])
    def test_any_number_of_workers_gives_the_same_metrics(
        self, task: RecurrentLanguageModellingTask, model: nn.Module, world: int
    ):
        alone = task.evaluate_shard(model, "test", 0, 1)
        shards = [task.evaluate_shard(model, "test", rank, world) for rank in range(world)]
        assert sum(count for _, count in shards) == alone[1] == len(task.data.tokens("test")) - 1
        assert task.combine(shards, "test") == pytest.approx(task.combine([alone], "test"))

    @pytest.mark.parametrize("tokens", [16, 64, 10**6])
    def test_pieces_of_any_length_give_the_same_metrics(
        self,
        task: RecurrentLanguageModellingTask,
        model: nn.Module,
        tokens: int,
        monkeypatch: pytest.MonkeyPatch,
    ):
        wanted = evaluate(model, task, LocalWorkers(), "test")
        monkeypatch.setattr(recurrent, "EVALUATION_BATCH_TOKENS", tokens)
        assert evaluate(model, task, LocalWorkers(), "test") == pytest.approx(wanted)

    def test_a_split_with_fewer_tokens_than_lanes(self, tmp_path: Path):
        spec = make_lm(tmp_path, model=SRU, context=5, max_eval_examples=2)
        task = ready(spec, tmp_path / "cache")
        assert task.evaluate_shard(build_model(spec, task.data, 0).eval(), "test", 0, 1)[1] == 9


def test_other_models_keep_their_task(lm: Family, tmp_path: Path):
    task = ready(make_lm(tmp_path), tmp_path / "cache")
    assert type(task) is LanguageModellingTask
    assert task.batch(0, 0, 1).keys() == {"input_ids", "labels"}


def test_a_state_is_known_from_the_type_and_from_pretrained_weights(
    task: RecurrentLanguageModellingTask, model: nn.Module, lm: Family, tmp_path: Path
):
    assert carries_state(ModelSpec(**SRU))
    assert not carries_state(ModelSpec(**GPT2))
    save_pretrained(model, tmp_path / "sru", "AutoModelForCausalLM")
    assert carries_state(ModelSpec(pretrained=str(tmp_path / "sru")))
    assert not carries_state(ModelSpec(pretrained=lm.dense.export))
    assert not carries_state(ModelSpec(pretrained=str(tmp_path / "nothing")))
    assert load_pretrained(tmp_path / "sru").carries_state


def test_configs_are_checked(spec: LanguageModelling, task: TrainingTask, tmp_path: Path):
    def build(fields: dict[str, Any]) -> None:
        made = spec.model_copy(update={"model": ModelSpec(**fields)})
        build_model(made, task.data, seed=0)

    with pytest.raises(ModelError, match="sru has no such field; did you mean hidden_size"):
        build(with_config(SRU, hiden_size=8))
    with pytest.raises(ModelError, match="hidden_size must be an integer >= 1, got 0"):
        build(with_config(SRU, hidden_size=0))
    with pytest.raises(ModelError, match="no model type 'sruu'; did you mean sru"):
        build({"type": "sruu"})
    classes = make_classes(tmp_path, model=SRU)
    with pytest.raises(ModelError, match="sru has no AutoModelForSequenceClassification"):
        build_model(classes, ready(classes, tmp_path / "cache").data, seed=0)


def test_example_inputs_fit_the_task(task: RecurrentLanguageModellingTask, model: nn.Module):
    inputs = task.example_inputs(3, 5)
    assert inputs.keys() == {"input_ids"}
    assert model(**inputs).logits.shape == (3, 5, task.data.vocab_size)
    assert task.example_inputs(1, 10_000)["input_ids"].shape == (1, LENGTH)


def test_the_served_model_continues_prompts(task: RecurrentLanguageModellingTask, model: nn.Module):
    from orchestrator.serving_model import CompressedModel

    served = CompressedModel()
    served.model, served.tokenizer = model, load_tokenizer(task.data.tokenizer_folder)
    served.generates = model.can_generate()
    ids = served.tokenizer("12 abc", return_tensors="pt", add_special_tokens=False)["input_ids"]
    for _ in range(9):
        following = model(input_ids=ids).logits[:, -1].argmax(-1)
        ids = torch.cat([ids, following[:, None]], 1)
    table = pd.DataFrame({"prompt": ["12 abc"]})
    answer = served.predict(None, table, {"max_new_tokens": 9})["text"].tolist()
    assert answer == [served.tokenizer.decode(ids[0, 6:])]


def test_two_workers_have_the_gradient_of_one(
    task: RecurrentLanguageModellingTask, model: nn.Module
):
    def gradient(world: int) -> torch.Tensor:
        total = torch.zeros(())
        for rank in range(world):
            task.begin_stretch()
            for step in range(3):
                model.zero_grad()
                task.loss(model, task.batch(step, rank, world)).backward()
            total = total + model.sru.layers[0].linear.weight.grad / world
        return total

    torch.testing.assert_close(gradient(2), gradient(1), rtol=1e-4, atol=1e-6)


def test_a_dense_model_and_a_compressed_one(spec: LanguageModelling, tmp_path: Path):
    """The jobs of a campaign, distillation included, end with models that a loop can serve."""
    task = ready(spec, tmp_path / "cache")
    how = method(density=0.4, distill=0.5)
    dense = train_to(tmp_path / "dense", make_job(spec, task.data, how))
    small = train_to(tmp_path / "small", make_job(spec, task.data, how, dense.export))
    assert small.size.num_parameters < dense.size.num_parameters
    assert small.size.macs_per_token < dense.size.macs_per_token
    loaded = load_pretrained(small.export)
    again = evaluate(loaded, task, LocalWorkers(), "test")
    assert again == pytest.approx(small.test, rel=1e-6)
    saved = json.loads((tmp_path / "small" / "config.json").read_text())
    assert saved["model_type"] == "sru"


def test_what_is_remembered_is_part_of_a_training_state(
    spec: LanguageModelling, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Of student and teacher: without it the first step after a stop would have no past."""
    monkeypatch.setattr(resume, "INTERVAL_S", 0.0)
    monkeypatch.setattr(resume, "LEAST_APART", 0.0)
    task = ready(spec, tmp_path / "cache")
    how = method(kind="adaptive", density=0.4, steps=24, gated_fraction=0.5, distill=0.5)
    dense = train_to(tmp_path / "dense", make_job(spec, task.data, how))
    job = make_job(spec, task.data, how, dense.export)
    straight = train_to(tmp_path / "straight", job)

    def die(progress: dict[str, Any], checkpoint: Path | None) -> None:
        if progress.get("step") == straight.curve[-1].step:
            raise RuntimeError("dead")

    again = replace(job, snapshots=str(tmp_path / "snapshots"))
    with pytest.raises(RuntimeError, match="dead"):
        run_job(again, LocalWorkers(die))
    last = max((tmp_path / "snapshots").iterdir())
    names = load_file(last / "state.safetensors").keys()
    assert {"worker0.memory.student", "worker0.memory.teacher"} <= set(names)
    assert train_to(tmp_path / "resumed", again).export_sha256 == straight.export_sha256


def test_gates_train_on_a_state(task: RecurrentLanguageModellingTask, spec: LanguageModelling):
    pruner = Pruner(build_model(spec, task.data, seed=1), FlopL0(density=0.5, gated_steps=5))
    stretch = Stretch(first_step=0, num_steps=5, max_grad_norm=1.0, evaluate_every=5, pruner=pruner)
    recorder = Recorder(workers=LocalWorkers(), total_steps=5)
    groups = pruner.parameter_groups(1e-3)
    train(pruner.model, groups, task, LocalWorkers(), stretch, recorder)
    assert recorder.curve[-1].target_density == pytest.approx(0.5)
    assert recorder.curve[-1].validation is not None
