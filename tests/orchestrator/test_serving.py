"""Logged models: no pickle, the library inside, the same answers far from the repository."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow.models import Model

from lowrank.errors import ExportError
from lowrank.hf import load_pretrained, load_tokenizer
from orchestrator import flavor, serving
from orchestrator.errors import RegistryError
from orchestrator.tracking import RunWriter, Tracking
from tests.orchestrator.small import Family
from tests.orchestrator.tracking.server import free_port

PROMPTS = ["1 ab", "cab", "a" * 100]
"""The last is longer than the model's 32 positions."""
TEXTS = ["fine lovely great", "dull bleak", "kind " * 60]
ROWS = [[text] for text in TEXTS]
PAIRS = {
    "text": ["fine great kind", "dull poor bleak", "green " * 60],
    "text_pair": ["kind fine great", "green weird", "weird"],
}
NEW_TOKENS = 12

SERVE = """
import json, sys
import mlflow, pandas as pd
job = json.load(sys.stdin)
mlflow.set_tracking_uri(job["store"])
answers = {}
for name, uri, table, params in job["models"]:
    model = mlflow.pyfunc.load_model(uri)
    answers[name] = model.predict(pd.DataFrame(table), params=params).to_dict("list")
import lowrank
print(json.dumps({
    "answers": answers,
    "lowrank": lowrank.__file__,
    "ours": sorted({name.split(".")[0] for name in sys.modules} & {"orchestrator", "jobs", "ray"}),
}))
"""


@dataclass
class Served:
    family: Family
    uri: str
    files: list[Path]

    @property
    def folder(self) -> Path:
        return next(path.parent for path in self.files if path.name == "MLmodel")


@pytest.fixture
def served(store: str, tmp_path: Path, lm: Family, classes: Family, scores: Family) -> list[Served]:
    tracking = Tracking(store, "campaign", tmp_path / "artifacts")
    made = []
    for family in (lm, classes, scores):
        writer = RunWriter(store, tracking.model_run(family.task.name, "p", "n", {}, {}))
        uri = writer.model(family.trials[0], family.task.kind)
        root = tmp_path / "artifacts" / "campaign" / "models" / uri.removeprefix("models:/")
        files = [path for path in root.rglob("*") if path.is_file()]
        made.append(Served(family, uri, files))
    return made


def greedy(folder: str, prompt: str) -> str:
    """Continuation of a prompt, each token from a pass over what the model has room for."""
    model, tokenizer = load_pretrained(folder), load_tokenizer(folder)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"][-(32 - NEW_TOKENS) :]
    length = len(ids)
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return tokenizer.decode(ids[length:])


def classify(folder: str, text: str) -> tuple[str, float]:
    model, tokenizer = load_pretrained(folder), load_tokenizer(folder)
    ids = tokenizer(text)["input_ids"]
    # special tokens first and last, and no more in all than training saw
    ids = [*ids[: tokenizer.model_max_length - 1], ids[-1]] if len(ids) > 16 else ids
    with torch.no_grad():
        scores = model(input_ids=torch.tensor([ids])).logits[0].softmax(0)
    return model.config.id2label[int(scores.argmax())], float(scores.max())


def score(folder: str, first: str, second: str) -> float:
    model, tokenizer = load_pretrained(folder), load_tokenizer(folder)
    ids, types = [tokenizer.cls_token_id], [0]
    parts = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in (first, second)]
    # special tokens and the short text first, and no more in all than training saw
    parts[0] = parts[0][: 16 - 3 - len(parts[1])]
    for number, part in enumerate(parts):
        ids += [*part, tokenizer.sep_token_id]
        types += [number] * (len(part) + 1)
    with torch.no_grad():
        inputs = {"input_ids": torch.tensor([ids]), "token_type_ids": torch.tensor([types])}
        return float(model(**inputs).logits)


def test_logged_models_answer_far_from_the_repository(
    served: list[Served], store: str, tmp_path: Path, bare_environment: dict[str, str]
):
    language, classifier, regression = served
    job = {
        "store": store,
        "models": [
            ("lm", language.uri, {"prompt": PROMPTS}, {"max_new_tokens": NEW_TOKENS}),
            ("classes", classifier.uri, {"text": TEXTS}, None),
            ("scores", regression.uri, PAIRS, None),
        ],
    }
    (tmp_path / "elsewhere").mkdir()
    result = subprocess.run(
        [sys.executable, "-c", SERVE],
        input=json.dumps(job),
        cwd=tmp_path / "elsewhere",
        env=bare_environment | {"MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout.splitlines()[-1])
    # this interpreter knows an editable install; what it used is what travels with the model
    assert Path(found["lowrank"]).is_relative_to(language.folder / "code")
    assert found["ours"] == []

    folder = language.family.trials[0].export
    assert found["answers"]["lm"] == {"text": [greedy(folder, prompt) for prompt in PROMPTS]}
    folder = classifier.family.trials[0].export
    labels, scores = zip(*(classify(folder, text) for text in TEXTS), strict=True)
    assert found["answers"]["classes"]["label"] == list(labels)
    assert found["answers"]["classes"]["score"] == pytest.approx(scores, abs=1e-5)
    folder = regression.family.trials[0].export
    pairs = list(zip(PAIRS["text"], PAIRS["text_pair"], strict=True))
    wanted = [score(folder, *pair) for pair in pairs]
    assert found["answers"]["scores"] == {"score": pytest.approx(wanted, abs=1e-5)}
    assert max(wanted) - min(wanted) > 1e-3


def test_a_logged_model_holds_code_and_safetensors_but_no_pickle(served: list[Served]):
    for one in served:
        suffixes = {path.suffix for path in one.files}
        assert suffixes.isdisjoint({".pkl", ".pickle", ".pt", ".pth", ".bin"})
        names = {path.relative_to(one.folder).as_posix() for path in one.files}
        assert "code/lowrank/export.py" in names
        assert any(name.endswith("/model.safetensors") for name in names)
        assert not any("orchestrator" in name for name in names)


def test_our_flavour_gives_back_the_model_itself(served: list[Served], store: str):
    mlflow.set_tracking_uri(store)
    for one in served:
        export = one.family.trials[0].export
        loaded = flavor.load_model(one.uri)
        wanted, found = load_pretrained(export).state_dict(), loaded.model.state_dict()
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[name], wanted[name]) for name in wanted)
        assert not loaded.model.training
        assert loaded.tokenizer("fine")["input_ids"] == load_tokenizer(export)("fine")["input_ids"]

        entry = Model.load(str(one.folder)).flavors
        assert entry.keys() == {"python_function", flavor.FLAVOR_NAME}
        described = one.folder / entry[flavor.FLAVOR_NAME]["model"]
        assert (described / "lowrank.json").is_file()


def test_a_damaged_or_foreign_logged_model_is_refused(served: list[Served], tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(served[0].folder, copy)
    weights = next(copy.rglob("model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-64])
    with pytest.raises(ExportError, match=r"model\.safetensors"):
        flavor.load_model(str(copy))
    next(copy.rglob("lowrank.json")).unlink()
    with pytest.raises(RegistryError, match="must hold one exported model, found 0"):
        flavor.load_model(str(copy))


def test_requirements_are_exact_and_without_build_tags():
    wanted = serving.requirements()
    assert {line.split("==")[0] for line in wanted} == set(serving.RUNTIME_PACKAGES)
    assert all("+" not in line for line in wanted)


def test_signatures_name_their_columns():
    language = serving.signature("language-modelling")
    assert language.inputs.input_names() == ["prompt"]
    assert [param.name for param in language.params.params] == ["max_new_tokens"]
    classes = serving.signature("classification")
    assert classes.inputs.required_input_names() == ["text"]
    assert classes.inputs.optional_input_names() == ["text_pair"]
    assert classes.outputs.input_names() == ["label", "score"]
    scores = serving.signature("regression")
    assert scores.inputs == classes.inputs
    assert scores.outputs.input_names() == ["score"]


def test_a_logged_model_carries_what_a_client_needs(served: list[Served]):
    for one in served:
        example = json.loads((one.folder / "input_example.json").read_text())
        columns = serving.input_example(one.family.task.kind).columns.tolist()
        assert example["columns"] == columns
        names = serving.signature(one.family.task.kind).inputs.input_names()
        assert set(columns) <= set(names)
        required = (one.folder / "requirements.txt").read_text().split()
        assert set(serving.requirements()) <= set(required)
        assert "signature:" in (one.folder / "MLmodel").read_text()


@pytest.mark.slow
def test_a_server_answers_over_http_like_the_model_in_process(
    store: str, tmp_path: Path, classes: Family
):
    """`mlflow models serve` in this environment, on a port that is free."""
    tracking = Tracking(store, "campaign", tmp_path / "artifacts")
    writer = RunWriter(store, tracking.model_run("served", "p", "n", {}, {}))
    uri = writer.model(classes.trials[0], classes.task.kind)
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", uri]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port)]
    # the server finds its own programs by name
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "MLFLOW_TRACKING_URI": store, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "server.log").open("wb") as log:
        server = subprocess.Popen(
            command, stdout=log, stderr=log, env=environment, start_new_session=True
        )
        try:
            answer = ask(server, port, {"dataframe_split": {"columns": ["text"], "data": ROWS}})
        finally:
            # the server is a shell's child and has workers: the group that was started here
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(timeout=60)
    labels, scores = zip(*(classify(classes.trials[0].export, row[0]) for row in ROWS), strict=True)
    assert [row["label"] for row in answer["predictions"]] == list(labels)
    assert [row["score"] for row in answer["predictions"]] == pytest.approx(scores, abs=1e-5)


def ask(server: subprocess.Popen[bytes], port: int, question: Any) -> Any:
    """The answer to one request, once the server is up."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/invocations",
        data=json.dumps(question).encode(),
        headers={"Content-Type": "application/json"},
    )
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    deadline = time.monotonic() + 500
    while time.monotonic() < deadline:
        assert server.poll() is None, "the server has ended"
        try:
            with opener.open(request, timeout=120) as response:
                return json.load(response)
        except urllib.error.HTTPError as error:
            raise AssertionError(error.read().decode()) from error
        except (urllib.error.URLError, ConnectionError):
            time.sleep(1)
    raise AssertionError("the server did not answer")
