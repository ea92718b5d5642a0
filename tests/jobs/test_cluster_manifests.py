"""jobs/cluster: valid by the custom resources' schema, and in step with the code and its pins."""

from __future__ import annotations

import copy
import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from ray.train.v2._internal import constants as ray_train

from jobs.__main__ import app
from orchestrator.bucket.uri import WORK_ENV
from orchestrator.cluster import ENVIRONMENT, OBJECT_STORE_BYTES
from orchestrator.machines import CAPACITY_ENV, capacity
from orchestrator.room import DRIVER, LOCAL_DRIVERS
from orchestrator.submission import STOP_ENV, STOP_S

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "jobs" / "cluster"
MANIFESTS = sorted(path.name for path in FOLDER.glob("*.yaml"))
SCHEMA = yaml.safe_load((Path(__file__).parent / "kuberay_schema.yaml").read_text())
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
CONSTRAINTS = (ROOT / "constraints.txt").read_text()
KINDS = ["raycluster.yaml", "rayjob.yaml"]


def read(name: str) -> dict[str, Any]:
    return yaml.safe_load((FOLDER / name).read_text())


def cluster_spec(name: str) -> dict[str, Any]:
    spec = read(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def groups(name: str) -> list[dict[str, Any]]:
    spec = cluster_spec(name)
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def container(group: dict[str, Any]) -> dict[str, Any]:
    (only,) = group["template"]["spec"]["containers"]
    return only


def variables(group: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {each["name"]: each for each in container(group)["env"]}


def problems(manifest: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(SCHEMA).iter_errors(manifest)]


def pin(package: str) -> str:
    (version,) = re.findall(rf"(?m)^{package}==(\S+)$", CONSTRAINTS)
    return version


class TestSchema:
    def test_it_is_one(self):
        Draft202012Validator.check_schema(SCHEMA)

    def test_there_is_a_manifest_of_each_kind(self):
        assert MANIFESTS == ["raycluster.yaml", "rayjob.yaml", "shared.yaml"]

    @pytest.mark.parametrize("name", MANIFESTS)
    def test_manifests_are_valid(self, name: str):
        assert problems(read(name)) == []

    @pytest.mark.parametrize("name", KINDS)
    def test_every_block_is_closed(self, name: str):
        """A field that the resource does not have is found wherever it stands."""
        blocks = 0
        free = ("rayStartParams", "limits", "requests", "nodeSelector")

        def visit(value: Any, whole: Any, key: str = "") -> None:
            nonlocal blocks
            items = value.items() if isinstance(value, dict) else enumerate(value)
            for inner, item in list(items):
                if isinstance(item, dict | list):
                    visit(item, whole, str(inner))
            if isinstance(value, dict) and key not in free:
                value["replica"] = 1
                assert problems(whole), f"{key or 'the manifest'} takes any field"
                del value["replica"]
                blocks += 1

        manifest = json.loads(json.dumps(read(name)))  # without what aliases share
        visit(manifest, manifest)
        assert blocks > 30

    @pytest.mark.parametrize(
        ("path", "value"),
        [
            (["workerGroupSpecs", 0, "maxReplicas"], "4"),
            (["workerGroupSpecs", 0, "groupName"], None),
            (["headGroupSpec", "rayStartParams", "num-cpus"], 0),
            (["headGroupSpec", "template", "spec", "containers"], []),
            (["autoscalerOptions", "upscalingMode"], "Slow"),
            (["authOptions", "mode"], "on"),
        ],
    )
    def test_wrong_values_are_found(self, path: list[Any], value: Any):
        manifest = json.loads(json.dumps(read("raycluster.yaml")))
        *above, last = path
        block = manifest["spec"]
        for key in above:
            block = block[key]
        if value is None:
            del block[last]
        else:
            block[last] = value
        assert problems(manifest)


@pytest.mark.parametrize("name", KINDS)
class TestCluster:
    def test_the_version_of_ray_is_the_pinned_one(self, name: str):
        assert cluster_spec(name)["rayVersion"] == pin("ray")

    def test_the_head_has_what_trial_drivers_take_and_trains_nothing(self, name: str):
        head, *workers = groups(name)
        # KubeRay writes the value into a shell's command line
        (word,) = shlex.split(head["rayStartParams"]["resources"])
        assert json.loads(word) == {DRIVER: LOCAL_DRIVERS}
        assert head["rayStartParams"]["num-cpus"] == "0"
        assert all("resources" not in group["rayStartParams"] for group in workers)

    def test_the_object_store_is_as_small_as_on_one_machine(self, name: str):
        for group in groups(name):
            assert int(group["rayStartParams"]["object-store-memory"]) == OBJECT_STORE_BYTES

    def test_the_capacity_is_that_of_all_groups_grown(self, name: str, monkeypatch):
        _, *workers = groups(name)
        most = {"CPU": 0, "GPU": 0}
        for group in workers:
            limits = container(group)["resources"]["limits"]
            most["CPU"] += group["maxReplicas"] * int(limits["cpu"])
            most["GPU"] += group["maxReplicas"] * int(limits.get("nvidia.com/gpu", 0))
        for group in groups(name):
            monkeypatch.setenv(CAPACITY_ENV, variables(group)[CAPACITY_ENV]["value"])
            assert capacity({"CPU": 8.0}) == most

    def test_a_machine_to_measure_speed_on_stays(self, name: str):
        _, *workers = groups(name)
        assert any(group["minReplicas"] >= 1 for group in workers)
        for group in workers:
            assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]

    def test_variables_are_known_to_somebody(self, name: str):
        known = {
            CAPACITY_ENV,
            ray_train.WORKER_GROUP_START_TIMEOUT_S_ENV_VAR,
            "MLFLOW_TRACKING_USERNAME",
            "MLFLOW_TRACKING_PASSWORD",
            "HF_HOME",
        }
        for group in groups(name):
            assert set(variables(group)) == known
            assert not set(variables(group)) & set(ENVIRONMENT)

    def test_no_secret_stands_in_a_manifest(self, name: str):
        for group in groups(name):
            for variable, each in variables(group).items():
                assert ("valueFrom" in each) == ("PASSWORD" in variable or "USERNAME" in variable)
        assert cluster_spec(name)["authOptions"] == {"mode": "token"}

    def test_all_nodes_see_the_shared_storage_at_the_same_place(self, name: str):
        claim = read("shared.yaml")
        assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
        for group in groups(name):
            volumes = {each["name"]: each for each in group["template"]["spec"]["volumes"]}
            mounts = {each["name"]: each for each in container(group)["volumeMounts"]}
            assert set(volumes) == set(mounts)
            source = volumes["shared"]["persistentVolumeClaim"]["claimName"]
            assert source == claim["metadata"]["name"]
            assert mounts["shared"] == {"name": "shared", "mountPath": "/shared"}

    def test_the_variant_with_a_bucket_is_valid(self, name: str):
        _, _, variant = (FOLDER / name).read_text().partition("# A bucket instead")
        lines = [line[4:] for line in variant.splitlines() if line.startswith("#   ")]
        instead = yaml.safe_load("\n".join(line for line in lines if line.startswith("vol")))
        added = yaml.safe_load("\n".join(line for line in lines if not line.startswith("vol")))
        manifest = json.loads(json.dumps(read(name)))  # without what aliases share
        cluster = manifest["spec"].get("rayClusterSpec", manifest["spec"])
        for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
            group["template"]["spec"]["volumes"] = instead["volumes"]
            container(group)["volumeMounts"] = instead["volumeMounts"]
            container(group)["env"] += added
        assert problems(manifest) == []
        assert {each["name"] for each in added} > {WORK_ENV, "AWS_SECRET_ACCESS_KEY"}

    def test_nobody_is_root(self, name: str):
        user, group_id = re.findall(r"(?m)^USER (\d+):(\d+)$", DOCKERFILE)[-1]
        for group in groups(name):
            pod = group["template"]["spec"]["securityContext"]
            assert pod["runAsNonRoot"] is True
            assert (pod["runAsUser"], pod["runAsGroup"]) == (int(user), int(group_id))
            assert container(group)["securityContext"]["allowPrivilegeEscalation"] is False

    def test_images_are_those_that_the_dockerfile_tells_of(self, name: str):
        for group in groups(name):
            image, has_gpu = container(group)["image"], "gpu" in group.get("groupName", "")
            assert image.endswith("-gpu" if has_gpu else "-cpu")
            assert f"-t {image} " in DOCKERFILE
            limits = container(group)["resources"]["limits"]
            assert ("nvidia.com/gpu" in limits) == has_gpu

    def test_a_node_that_is_taken_away_tells_before_its_time_is_over(self, name: str):
        spot = [g for g in groups(name) if "spot" in g.get("groupName", "")]
        assert spot
        for group in spot:
            python, dash_m, module, *options = container(group)["lifecycle"]["preStop"]["exec"][
                "command"
            ]
            assert (python, dash_m) == ("python", "-m")
            assert find_spec(module) is not None
            assert options[0] == "--seconds"
            assert int(options[1]) < group["template"]["spec"]["terminationGracePeriodSeconds"]


def test_a_jobs_cluster_is_the_cluster_with_the_spec_on_it():
    job = copy.deepcopy(cluster_spec("rayjob.yaml"))
    name = read("rayjob.yaml")["metadata"]["name"]
    for group in [job["headGroupSpec"], *job["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        pod["volumes"] = [each for each in pod["volumes"] if each["name"] != "spec"]
        mounts = container(group)["volumeMounts"]
        container(group)["volumeMounts"] = [each for each in mounts if each["name"] != "spec"]
    assert job == cluster_spec("raycluster.yaml")
    volumes = cluster_spec("rayjob.yaml")["headGroupSpec"]["template"]["spec"]["volumes"]
    assert {"name": "spec", "configMap": {"name": name}} in volumes


def test_a_jobs_command_exists_and_is_given_time_to_end():
    spec = read("rayjob.yaml")["spec"]
    program, command, path = shlex.split(spec["entrypoint"])
    assert program == "lowrank"
    assert command in {each.callback.__name__ for each in app.registered_commands}
    mounts = container(groups("rayjob.yaml")[0])["volumeMounts"]
    (mounted,) = [each["mountPath"] for each in mounts if each["name"] == "spec"]
    assert path == f"{mounted}/spec.yaml"
    assert "--from-file=spec.yaml=SPEC" in (FOLDER / "rayjob.yaml").read_text()
    assert yaml.safe_load(spec["runtimeEnvYAML"]) == {"env_vars": {STOP_ENV: str(STOP_S)}}
    # what `lowrank job` looks for
    assert re.fullmatch(re.escape(read("rayjob.yaml")["metadata"]["name"]) + r"-\d+", spec["jobId"])


class TestDockerfile:
    def test_python_is_the_one_that_the_pins_were_tested_with(self):
        (tested,) = re.findall(r"on Python (\d+\.\d+)$", CONSTRAINTS.splitlines()[0])
        assert f"ARG BASE=python:{tested}-slim" in DOCKERFILE
        assert "FROM ${BASE}" in DOCKERFILE

    def test_everything_is_installed_under_the_constraints(self):
        installs = re.findall(r"pip install(.*?)(?:&&|\n\n|$)", DOCKERFILE, re.DOTALL)
        assert len(installs) == 2
        assert all("-c constraints.txt" in each for each in installs)

    def test_what_it_sets_is_what_the_code_would(self):
        block = re.search(r"^ENV (.*?[^\\])$", DOCKERFILE, re.DOTALL | re.MULTILINE)
        assert block is not None
        found = dict(re.findall(r"(\w+)=(\S+)", block[1]))
        ours = {name: value for name, value in found.items() if name in ENVIRONMENT}
        assert ours == {name: ENVIRONMENT[name] for name in ours}
        assert len(ours) == 4
        assert set(found) - set(ours) == {
            "PYTHONUNBUFFERED",
            "PIP_NO_CACHE_DIR",
            "PIP_DISABLE_PIP_VERSION_CHECK",
        }

    def test_what_it_copies_is_sent_to_the_builder(self):
        copied = {
            name for line in re.findall(r"(?m)^COPY (.*) \S+$", DOCKERFILE) for name in line.split()
        }
        ignore = (FOLDER / "Dockerfile.dockerignore").read_text().splitlines()
        assert ignore[1] == "*"
        assert {line[1:] for line in ignore if line.startswith("!")} == copied
        assert all((ROOT / name).exists() for name in copied)
        packages = re.search(r"(?m)^include = \[(.*)\]$", (ROOT / "pyproject.toml").read_text())
        assert packages is not None
        assert set(re.findall(r'"(\w+)\*"', packages[1])) <= copied

    @pytest.mark.parametrize("path", sorted(FOLDER.iterdir()), ids=lambda path: path.name)
    def test_no_host_is_named(self, path: Path):
        text = path.read_text()
        hosts = re.findall(r"(?:[\w-]+\.)+(?:io|com|org|dev|net|ai)\b", text)
        # an API group and labels, which look like hosts
        labels = {"ray.io", "nvidia.com", "cloud.google.com", "eks.amazonaws.com"}
        assert set(hosts) <= labels
        assert set(re.findall(r"https?://([^\s/]+)", text)) <= {"127.0.0.1:8265"}
        assert not re.search(r"(?m)^\s*image: .*[/@]", text)

    def test_the_last_user_is_not_root(self):
        users = re.findall(r"(?m)^USER (\S+)$", DOCKERFILE)
        assert users
        assert users[-1] == "1000:1000"
