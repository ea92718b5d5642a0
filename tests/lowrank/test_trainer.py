"""The pruner in transformers.Trainer: against a loop by hand, stopped anywhere, misused."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from lowrank import Adaptive, Agp, ExportError, FixedRank, FlopL0, LowRankError, Pruner, Start
from lowrank.embedding import LowRankEmbedding
from lowrank.trainer import STATE, PrunerCallback
from tests.lowrank import tiny_gpt2, token_ids
from tests.lowrank.architectures import ARCHITECTURES

GATED, STEPS = 6, 9
METHODS: dict[str, Any] = {
    "adaptive": partial(Adaptive, gated_steps=GATED, start="svd"),
    "flop-l0": partial(FlopL0, gated_steps=GATED),
    "agp column": partial(Agp, gated_steps=GATED, granularity="column"),
    "fixed": partial(FixedRank, start=Start()),
}
EXCLUDE = ["*lm_head"]


def data(size: int = 3 * STEPS) -> list[dict[str, torch.Tensor]]:
    found = [token_ids(1, 8, seed)[0] for seed in range(size)]
    return [{"input_ids": ids, "labels": ids} for ids in found]


def make_pruner(kind: str = "flop-l0", embeddings: bool = False, dropout: float = 0.1) -> Pruner:
    model = tiny_gpt2()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    exclude = [] if embeddings else EXCLUDE
    method = METHODS[kind](density=0.4)
    return Pruner(model, method, exclude=exclude, embeddings=embeddings, seed=3)


def arguments(folder: Path, **fields: Any) -> TrainingArguments:
    options: dict[str, Any] = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "learning_rate": 1e-2,
        "save_steps": 1,
        "logging_steps": 1,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return TrainingArguments(str(folder), **(options | fields))


def make_trainer(pruner: Pruner, args: TrainingArguments, **options: Any) -> Trainer:
    pruning = options.pop("pruning", None) or PrunerCallback(pruner)
    options = {"optimizers": (pruning.optimizer(args), None), **options}
    extra = options.pop("callbacks", [])
    callbacks = [pruning, *extra]
    return Trainer(pruner.model, args, train_dataset=data(), callbacks=callbacks, **options)


def same(first: Any, second: Any) -> bool:
    wanted = second.state_dict()
    found = first.state_dict()
    return found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in found)


@pytest.mark.parametrize("kind", METHODS)
def test_it_goes_on_in_every_phase_bit_for_bit(kind, tmp_path):
    straight = make_pruner(kind)
    trainer = make_trainer(straight, arguments(tmp_path / "a"))
    trainer.train()
    assert straight.finished
    # gated, the projection just done, recovery; fixed ranks have no gated steps
    for stop in (2, GATED - 1, GATED, GATED + 2):
        pruner = make_pruner(kind)
        pruning = PrunerCallback(pruner)
        checkpoint = pruning.resume(tmp_path / "a" / f"checkpoint-{stop}")
        assert pruner.finished == (stop >= pruner.method.gated_steps)
        args = arguments(tmp_path / "b", save_strategy="no")
        resumed = make_trainer(pruner, args, pruning=pruning)
        resumed.train(resume_from_checkpoint=checkpoint)
        assert resumed.state.global_step == STEPS
        assert pruner.step_index == straight.step_index
        assert same(pruner.model, straight.model), (kind, stop)


def test_embeddings_go_on_too_and_the_end_loads(tmp_path):
    straight = make_pruner(embeddings=True)
    trainer = make_trainer(straight, arguments(tmp_path / "a"))
    trainer.train()
    trainer.save_model(tmp_path / "end")
    assert any(isinstance(module, LowRankEmbedding) for module in straight.model.modules())
    for stop in (2, GATED + 2):
        pruner = make_pruner(embeddings=True)
        pruning = PrunerCallback(pruner)
        checkpoint = pruning.resume(tmp_path / "a" / f"checkpoint-{stop}")
        args = arguments(tmp_path / "b", save_strategy="no")
        make_trainer(pruner, args, pruning=pruning).train(resume_from_checkpoint=checkpoint)
        assert same(pruner.model, straight.model), stop
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "end")
    ids = token_ids()
    assert torch.equal(loaded(input_ids=ids).logits, straight.model.eval()(input_ids=ids).logits)


class Watch(TrainerCallback):
    """What is true after every optimizer step."""

    def __init__(self, pruner: Pruner) -> None:
        self.pruner, self.seen = pruner, []

    def on_step_end(self, args, state, control, **kwargs):
        rates = [group["lr"] for group in kwargs["optimizer"].param_groups]
        self.seen.append((state.global_step, self.pruner.step_index, self.pruner.finished, rates))


@pytest.mark.parametrize("accumulation", [1, 3])
def test_one_step_of_the_pruner_per_optimizer_step(accumulation, tmp_path):
    pruner = make_pruner()
    watch = Watch(pruner)
    args = arguments(
        tmp_path, gradient_accumulation_steps=accumulation, save_strategy="no", warmup_steps=2
    )
    trainer = make_trainer(pruner, args, callbacks=[watch])
    trainer.train()
    steps = range(1, STEPS + 1)
    assert [each[0] for each in watch.seen] == list(steps)
    assert [each[1] for each in watch.seen] == [min(step, GATED) for step in steps]
    assert [each[2] for each in watch.seen] == [step >= GATED for step in steps]
    logged = [entry for entry in trainer.state.log_history if "density" in entry]
    assert [entry["step"] for entry in logged] == list(range(1, GATED))
    assert all(0 < entry["density"] <= 1 for entry in logged)


@pytest.mark.parametrize("kind", ["adaptive", "flop-l0"])
@pytest.mark.parametrize("clip", [0.0, 1e-3])
def test_it_is_the_loop_by_hand(kind, clip, tmp_path):
    """Same batches, same gates, clipped weights, a schedule that leaves the gates alone."""
    pruner = make_pruner(kind, dropout=0.0)
    args = arguments(
        tmp_path,
        max_grad_norm=clip,
        save_strategy="no",
        train_sampling_strategy="sequential",
        lr_scheduler_type="linear",
        max_steps=GATED,
    )
    gates = {}
    watched = make_pruner(kind, dropout=0.0)

    class Keep(TrainerCallback):
        def on_optimizer_step(self, args, state, control, **kwargs):
            if state.global_step == GATED - 1:
                gates.update({n: e.gate.parameter.clone() for n, e in pruner.layers.items()})

    make_trainer(pruner, args, callbacks=[Keep()]).train()

    watched.model.train()
    groups = watched.parameter_groups(args.learning_rate, args.weight_decay)
    optimizer = torch.optim.AdamW(groups)
    rows = data()
    for step in range(GATED):
        alone = {id(layer.gate.parameter) for layer in watched.layers.values()}
        weights = [p for p in watched.model.parameters() if id(p) not in alone]
        for group in groups[:2]:
            group["lr"] = args.learning_rate * (1 - step / GATED)
        for row in rows[2 * step : 2 * step + 2]:
            inputs = {name: value[None] for name, value in row.items()}
            # the Trainer counts all labels of the two rows
            watched.model(**inputs, num_items_in_batch=torch.tensor(16)).loss.backward()
        if clip:
            torch.nn.utils.clip_grad_norm_(weights, clip)
        if kind == "flop-l0":
            watched.penalty().backward()
        optimizer.step()
        optimizer.zero_grad()
        watched.step()
        if step < GATED - 1:
            watched.shrink(optimizer)
    assert gates.keys() == watched.layers.keys()
    for name, layer in watched.layers.items():
        assert torch.equal(gates[name], layer.gate.parameter), name
    small = watched.finish()
    assert same(pruner.model, small)


def test_closed_components_leave_while_it_trains(tmp_path):
    """As in the loop by hand with shrink(): the same model, in which gradients still flow."""
    widths: list[int] = []

    class Sizes(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            widths.append(sum(layer.num_components for layer in pruner.layers.values()))

    def make() -> Pruner:
        method = Adaptive(density=0.2, gated_steps=30, start="svd")
        return Pruner(tiny_gpt2(), method, exclude=EXCLUDE, seed=3)

    pruner = make()
    args = arguments(tmp_path, max_steps=33, save_steps=25, learning_rate=1e-3)
    make_trainer(pruner, args, callbacks=[Sizes()]).train()
    assert widths[28] < widths[0]
    assert pruner.finished

    again = make()
    pruning = PrunerCallback(again)
    checkpoint = pruning.resume(tmp_path / "checkpoint-25")
    assert sum(layer.num_components for layer in again.layers.values()) == widths[24]
    args = arguments(tmp_path / "b", max_steps=33, save_strategy="no", learning_rate=1e-3)
    make_trainer(again, args, pruning=pruning).train(resume_from_checkpoint=checkpoint)
    assert same(again.model, pruner.model)


def test_bfloat16_autocast_keeps_gates_and_small_model_in_float32(tmp_path):
    pruner = make_pruner("adaptive")
    trainer = make_trainer(pruner, arguments(tmp_path, bf16=True, save_strategy="no"))
    trainer.train()
    assert pruner.finished
    assert {p.dtype for p in pruner.model.parameters()} == {torch.float32}
    kept = {name: int(mask.sum()) for name, mask in pruner._keep.items()}
    costs = pruner.control.costs
    assert sum(costs[n].cost(k) for n, k in kept.items()) <= 0.4 * pruner.num_dense


def test_the_best_model_is_one_after_the_projection(tmp_path):
    """The gated model is the better one at first, and must not come back."""
    pruner = make_pruner()
    args = arguments(
        tmp_path, load_best_model_at_end=True, eval_strategy="steps", eval_steps=1, save_steps=1
    )
    trainer = make_trainer(pruner, args, eval_dataset=data(4))
    trainer.train()
    assert trainer.state.best_global_step >= GATED
    best = load_file(Path(trainer.state.best_model_checkpoint) / "model.safetensors")
    state = pruner.model.state_dict()
    assert all(torch.equal(state[name], value) for name, value in best.items())


def test_a_checkpoint_with_gates_is_no_model(tmp_path):
    make_trainer(make_pruner(), arguments(tmp_path)).train()
    gated, small = (tmp_path / f"checkpoint-{n}" for n in (GATED - 1, GATED))
    with pytest.raises(ValueError, match="lowrank-with-gates"):
        AutoModelForCausalLM.from_pretrained(gated)
    assert json.loads((small / "config.json").read_text())["model_type"] == "gpt2"
    AutoModelForCausalLM.from_pretrained(small)


def test_a_resumption_that_misses_the_pruner_is_refused(tmp_path):
    make_trainer(make_pruner(), arguments(tmp_path, max_steps=STEPS)).train()
    trainer = make_trainer(make_pruner(), arguments(tmp_path))
    with pytest.raises(LowRankError, match=r"from step 3, the pruner from step 0: .*resume\("):
        trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))


def test_resume_without_a_checkpoint_changes_nothing(tmp_path):
    pruning = PrunerCallback(make_pruner())
    assert pruning.resume(tmp_path / "nothing") is None
    assert pruning.resume(tmp_path) is None
    assert not pruning.pruner.finished


@pytest.fixture
def checkpoint(tmp_path):
    make_trainer(make_pruner(), arguments(tmp_path, save_steps=GATED + 1)).train()
    return tmp_path / f"checkpoint-{GATED + 1}"


def test_damaged_and_foreign_checkpoints_are_refused(checkpoint):
    with pytest.raises(LowRankError, match="it belongs to another model or method"):
        PrunerCallback(make_pruner("agp column")).resume(checkpoint)
    (checkpoint / STATE).write_bytes(b"x" * 20)
    with pytest.raises(ExportError, match=r"pruner.safetensors: not a whole safetensors file"):
        PrunerCallback(make_pruner()).resume(checkpoint)
    (checkpoint / STATE).unlink()
    with pytest.raises(ExportError, match="the checkpoint has no pruner in it"):
        PrunerCallback(make_pruner()).resume(checkpoint)


@pytest.mark.parametrize("stop", [2, GATED + 1])
def test_a_checkpoint_that_lacks_a_tensor_is_refused(stop, tmp_path):
    """The Trainer itself would go on with what the new model has."""
    make_trainer(make_pruner(), arguments(tmp_path)).train()
    checkpoint = tmp_path / f"checkpoint-{stop}"
    tensors = load_file(checkpoint / "model.safetensors")
    del tensors["transformer.ln_f.weight"]
    save_file(tensors, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"1 missing, such as \['transformer.ln_f.weight'\]"):
        PrunerCallback(make_pruner()).resume(checkpoint)


def test_experts_that_are_stored_one_by_one_are_refused(tmp_path):
    (row,) = [row for row in ARCHITECTURES if row.name == "Mixtral"]

    def make() -> Pruner:
        method = FlopL0(density=0.4, gated_steps=GATED)
        return Pruner(row.build(), method, exclude=row.exclude)

    make_trainer(make(), arguments(tmp_path, save_steps=3)).train()
    with pytest.raises(ExportError, match=r"6 missing, .*'model\.layers\.0\.mlp\.experts"):
        PrunerCallback(make()).resume(tmp_path / "checkpoint-3")


@pytest.mark.parametrize(
    ("fields", "options", "message"),
    [
        ({"max_steps": GATED - 1}, {}, "a training of 5 steps ends before the 6 gated steps"),
        ({}, {"optimizers": (None, None)}, r"pruner's parameter groups: pass optimizers=\("),
    ],
)
def test_what_cannot_work_is_refused_before_the_first_step(fields, options, message, tmp_path):
    trainer = make_trainer(make_pruner(), arguments(tmp_path, **fields), **options)
    with pytest.raises(LowRankError, match=message):
        trainer.train()


def test_another_model_is_refused(tmp_path):
    pruner = make_pruner()
    args = arguments(tmp_path)
    pruning = PrunerCallback(pruner)
    trainer = Trainer(tiny_gpt2(), args, train_dataset=data(), callbacks=[pruning])
    with pytest.raises(LowRankError, match="must be given the pruner's model"):
        trainer.train()


def test_a_second_training_is_an_ordinary_one(tmp_path):
    pruner = make_pruner()
    make_trainer(pruner, arguments(tmp_path / "a", save_strategy="no")).train()
    trainer = make_trainer(pruner, arguments(tmp_path / "b", save_strategy="no", max_steps=2))
    trainer.train()
    assert trainer.state.global_step == 2


def test_several_devices_and_loss_scaling_are_refused():
    """By the arguments' values alone: this machine need not have what they ask for."""
    pruning = PrunerCallback(make_pruner())

    class Arguments:
        world_size, n_gpu, fp16 = 1, 0, False

    class State:
        global_step, max_steps = 0, STEPS

    for field, value, message in [
        ("world_size", 2, "wrapper for several devices"),
        ("n_gpu", 2, "wrapper for several devices"),
        ("fp16", True, "use bf16, not fp16"),
    ]:
        args = type("Changed", (Arguments,), {field: value})()
        with pytest.raises(LowRankError, match=message):
            pruning._check(args, State())
