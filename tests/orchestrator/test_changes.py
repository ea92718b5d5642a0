"""A spec that changes under a campaign's name: more may be asked for, less is not done silently."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.campaign import Campaign
from orchestrator.changes import SpecChangedError, check_change, compare
from orchestrator.layout import Layout
from orchestrator.spec import CampaignSpec
from orchestrator.spec_io import dump_spec
from tests.orchestrator.small import GPT2

TASK: dict[str, Any] = {
    "name": "lm",
    "kind": "language-modelling",
    "data": {"source": "python-docs"},
    "model": GPT2,
    "dense": {"steps": 10, "learning_rate": 1e-3},
}
SPEC: dict[str, Any] = {
    "name": "changing",
    "tasks": [TASK],
    "method": {"kind": "flop-l0", "steps": 25},
    "search": {"density": [0.5], "trials_per_density": 2, "penalty_lr": {"uniform": [0.1, 1]}},
}
REPEATS = {"density": [0.5], "repeats": 3}


def spec_with(**changes: Any) -> CampaignSpec:
    return CampaignSpec.model_validate(SPEC | changes)


def task_with(**changes: Any) -> dict[str, Any]:
    return {"tasks": [TASK | changes]}


class TestCompare:
    @pytest.mark.parametrize(
        ("before", "after", "differences"),
        [
            ({}, {"search": SPEC["search"] | {"trials_per_density": 3}}, 1),
            ({"search": REPEATS}, {"search": REPEATS | {"repeats": 5}}, 1),
            ({"search": REPEATS}, {"search": REPEATS | {"density": [0.5, 0.2]}}, 1),
            ({}, {"tasks": [TASK | {"name": "first"}, TASK]}, None),
            ({}, {"select": {"then": "fastest"}, "promote": {"gates": ["bytes <= 90%"]}}, 2),
            ({}, {"measure": {"repeats": 99}, "resources": {"concurrent_trials": 4}}, 2),
            ({}, {"storage": "/elsewhere", "tracking": {"uri": "http://user:secret@host"}}, 0),
            ({}, {}, 0),
        ],
    )
    def test_what_asks_for_more_keeps_what_is_there(
        self, before: dict[str, Any], after: dict[str, Any], differences: int | None
    ):
        change = compare(spec_with(**before), spec_with(**after))
        assert change.dropped == []
        assert differences is None or len(change.differences) == differences

    @pytest.mark.parametrize(
        ("after", "difference", "dropped"),
        [
            ({"method": {"kind": "flop-l0", "steps": 50}}, "method.steps: 25 -> 50", 2),
            ({"method": {"kind": "np-l0", "steps": 25}}, "method.kind: flop-l0 -> np-l0", 2),
            ({"seed": 4}, "seed: 0 -> 4", 3),
            (task_with(evaluate_every=7), "tasks.lm.evaluate_every: 100 -> 7", 3),
            (
                task_with(data={"source": "files", "train": "/a.txt"}),
                "tasks.lm.data.train: none -> /a.txt",
                3,
            ),
            (
                {"search": SPEC["search"] | {"trials_per_density": 1}},
                "search.trials_per_density: 2 -> 1",
                1,
            ),
            (
                {"search": SPEC["search"] | {"density": [0.4]}},
                "search.density: [0.5] -> [0.4]",
                2,
            ),
        ],
    )
    def test_what_asks_for_something_else_is_told_with_its_cost(
        self, after: dict[str, Any], difference: str, dropped: int
    ):
        change = compare(spec_with(), spec_with(**after))
        assert difference in change.differences
        assert len(change.dropped) == dropped
        assert change.num_models == 3

    def test_a_long_value_and_a_long_list_are_cut(self):
        change = compare(
            spec_with(), spec_with(**task_with(model=GPT2 | {"config": {"x": "y" * 500}}))
        )
        assert max(len(line) for line in change.text.splitlines()) < 200
        many = {f"method-{i}": {"kind": "adaptive"} for i in range(60)}
        change = compare(spec_with(), spec_with(search={"density": [0.5], "methods": many}))
        assert len(change.text.splitlines()) == 21
        assert "and 4" in change.text.splitlines()[-1]


class TestCheck:
    @pytest.fixture
    def layout(self, tmp_path: Path) -> Layout:
        """Of a campaign that has begun with SPEC and has a model."""
        layout = Layout(tmp_path, "changing")
        layout.create()
        layout.spec.write_text(dump_spec(spec_with(), redact=True))
        layout.model("0123456789abcdef").mkdir()
        layout.record("0123456789abcdef").write_text("{}")
        return layout

    def test_it_is_refused_before_anything_is_written(self, layout: Layout):
        before = layout.spec.read_bytes()
        changed = spec_with(seed=4, storage=str(layout.storage))
        with pytest.raises(SpecChangedError, match="3 of its 3 models") as caught:
            Campaign(changed, lambda text: None).run()
        assert "  seed: 0 -> 4" in str(caught.value)
        assert "--changed" in str(caught.value)
        assert caught.value.exit_code == 2
        assert layout.spec.read_bytes() == before
        assert not (layout.storage / "mlflow.db").exists()

    def test_who_asks_for_it_gets_it(self, layout: Layout):
        said: list[str] = []
        check_change(layout, spec_with(seed=4), True, said.append)
        assert said == ["the spec has changed, 3 models are left behind:\n  seed: 0 -> 4"]

    def test_more_is_said_and_done(self, layout: Layout):
        said: list[str] = []
        check_change(layout, spec_with(select={"then": "fastest"}), False, said.append)
        assert said[0].startswith("the spec has changed, all models stay:\n  select.then: ")

    def test_the_same_again_says_nothing(self, layout: Layout):
        check_change(layout, spec_with(), False, pytest.fail)

    def test_without_a_model_any_change_will_do(self, layout: Layout):
        layout.record("0123456789abcdef").unlink()
        check_change(layout, spec_with(seed=4), False, pytest.fail)

    def test_a_spec_of_before_that_cannot_be_read_stops_nobody(self, layout: Layout):
        layout.spec.write_text("name: changing\nmethodd: {}\n")
        said: list[str] = []
        check_change(layout, spec_with(seed=4), False, said.append)
        assert "cannot be compared" in said[0]
