"""Which fields belong to which kind, how methods are merged, how steps are divided."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.spec_block import errors_of
from orchestrator.spec_method import (
    GATED_FRACTION,
    NOT_COMMON,
    OWN_FIELDS,
    OWN_SCALE,
    Kind,
    MethodSpec,
    fields_of,
    merge_method,
)
from tests.orchestrator.small import OTHER_VALUES

KINDS = get_args(Kind)
COMMON = {"density": 0.2, "steps": 90, "distill": 0.1, "include": ["a"], "max_grad_norm": 2.0}


def _ranked(kind: str) -> bool:
    return "rank_multiple" in fields_of(kind)


def refusals(**fields: Any) -> dict[str, str]:
    """Messages by the field they stand at."""
    return {".".join(map(str, e["loc"])): e["msg"] for e in errors_of(MethodSpec, fields)}


def test_the_tables_know_every_kind_and_every_field():
    assert set(OWN_FIELDS) == set(GATED_FRACTION) == set(KINDS)
    assert set(NOT_COMMON) == set(OTHER_VALUES) < set(MethodSpec.model_fields)
    for name, value in OTHER_VALUES.items():
        assert MethodSpec.model_fields[name].default != value


class TestEmbeddings:
    @pytest.mark.parametrize("kind", KINDS)
    def test_are_pruned_by_the_kinds_that_prune_ranks(self, kind: str):
        found = refusals(kind=kind, embeddings=True)
        if kind in ("agp", "np-l0", "heads-ffn"):
            assert found == {"embeddings": f"kind {kind!r} prunes no embeddings"}
        else:
            assert found == {}
            assert MethodSpec(kind=kind, embeddings=True).model_dump()["embeddings"] is True

    def test_have_no_latency(self):
        message = "cannot be pruned under `budget: latency`, which times matrices only"
        assert refusals(embeddings=True, budget="latency") == {"embeddings": message}

    def test_are_no_part_of_what_is_written_when_they_are_not_pruned(self):
        """Keys of trials are hashes of it: those of campaigns without embeddings stay."""
        for mode in ("json", "python"):
            written = MethodSpec(embeddings=False).model_dump(mode=mode)
            assert set(written) == set(MethodSpec.model_fields) - {"embeddings"}
        assert MethodSpec(**written) == MethodSpec()

    def test_are_kept_when_methods_are_merged(self):
        merged = merge_method({"embeddings": True}, {"kind": "low-rank"})
        assert merged == {"embeddings": True, "kind": "low-rank"}


@pytest.mark.parametrize("kind", KINDS)
class TestEveryKind:
    def test_defaults_pass(self, kind: str):
        method = MethodSpec(kind=kind)
        assert method.kind == kind
        # and what is written out in full, as jobs travel
        assert MethodSpec(**method.model_dump()) == method

    def test_its_own_fields_pass(self, kind: str):
        own = {name: OTHER_VALUES[name] for name in OWN_FIELDS[kind]}
        method = MethodSpec(kind=kind, **own, **COMMON)
        assert {name: getattr(method, name) for name in own} == own

    def test_every_other_field_is_refused(self, kind: str):
        others = {
            name: value for name, value in OTHER_VALUES.items() if name not in fields_of(kind)
        }
        found = refusals(kind=kind, **others)
        assert set(found) == set(others)
        for name, message in found.items():
            start, listed = message.split(", which has ")
            assert start == f"is not a field of kind {kind!r}"
            assert listed.split(", ") == fields_of(kind)
            assert name not in listed.split(", ")

    def test_a_default_that_is_written_out_is_no_setting(self, kind: str):
        defaults = {name: MethodSpec.model_fields[name].default for name in OTHER_VALUES}
        assert MethodSpec(kind=kind, **defaults) == MethodSpec(kind=kind)

    def test_fields_are_common_or_its_own(self, kind: str):
        fields = fields_of(kind)
        assert fields == [name for name in MethodSpec.model_fields if name in fields]
        assert set(fields) & set(NOT_COMMON) == set(OWN_FIELDS[kind])
        assert {"kind", *COMMON} < set(fields)

    def test_merging_drops_what_it_does_not_have_and_keeps_the_rest(self, kind: str):
        everything = COMMON | OTHER_VALUES
        merged = merge_method(everything, {"kind": kind})
        kept = set(fields_of(kind)) - set(OWN_SCALE)
        wanted = {name: value for name, value in everything.items() if name in kept}
        assert merged == wanted | {"kind": kind}
        assert MethodSpec(**merged).kind == kind

    def test_without_multiples_it_is_decided_by_what_was_written_before_there_were_any(
        self, kind: str
    ):
        method = MethodSpec(kind=kind, **({"rank_multiple": 1} if _ranked(kind) else {}))
        before = method.model_dump(mode="json", exclude={"rank_multiple"})
        assert method.deciding() == before
        if _ranked(kind):
            assert MethodSpec(kind=kind).deciding() == before | {"rank_multiple": None}
            assert MethodSpec(kind=kind, rank_multiple=4).deciding()["rank_multiple"] == 4

    @given(steps=st.integers(1, 10_000), fraction=st.none() | st.floats(0, 1))
    def test_stages_add_up(self, kind: str, steps: int, fraction: float | None):
        given_fraction = {"gated_fraction": fraction} if "gated_fraction" in fields_of(kind) else {}
        method = MethodSpec(kind=kind, steps=steps, **given_fraction)
        assert method.gated_steps + method.finetune_steps == steps
        least = 1 if GATED_FRACTION[kind] else 0
        assert method.gated_steps >= least
        assert method.finetune_steps >= 0
        share = given_fraction.get("gated_fraction")
        share = GATED_FRACTION[kind] if share is None else share
        assert method.gated_steps == pytest.approx(max(share * steps, least), abs=0.5)

    def test_without_steps_nothing_is_chosen_by_training(self, kind: str):
        if GATED_FRACTION[kind]:
            message = f"steps >= 1 must hold for kind {kind!r}, got 0"
            assert refusals(kind=kind, steps=0) == {"steps": message}
        else:
            method = MethodSpec(kind=kind, steps=0)
            assert (method.gated_steps, method.finetune_steps) == (0, 0)

    def test_latency_is_for_ranks(self, kind: str):
        found = errors_of(MethodSpec, {"kind": kind, "budget": "latency"})
        if kind in ("adaptive", "low-rank", "flop-l0", "flop-agp"):
            assert found == []
        else:
            (error,) = found
            assert error["loc"] == ("budget",)
            has_budgets = kind in ("agp", "np-l0", "heads-ffn")
            message = "needs a kind that prunes ranks" if has_budgets else "is not a field of kind"
            assert message in error["msg"]


def test_adaptive_keeps_some_of_the_gated_steps_for_hardening():
    message = "anneal_fraction < 1 must hold for kind 'adaptive', whose gates then harden, got 1"
    assert refusals(kind="adaptive", anneal_fraction=1) == {"anneal_fraction": message}
    assert refusals(kind="flop-l0", anneal_fraction=1) == {}


class TestHiddenStates:
    def test_a_narrower_model_has_none_to_compare(self):
        found = refusals(kind="from-scratch", form="width", distill_hidden=0.5)
        assert set(found) == {"distill_hidden"}
        assert "compares hidden states of one width" in found["distill_hidden"]

    @pytest.mark.parametrize("kind", KINDS)
    def test_every_other_model_has(self, kind: str):
        form = {"form": "low-rank"} if kind == "from-scratch" else {}
        assert MethodSpec(kind=kind, distill_hidden=0.5, **form).distill_hidden == 0.5


class TestMerging:
    def test_later_changes_win(self):
        merged = merge_method({"steps": 1, "density": 0.5}, {"steps": 2}, {"steps": 3})
        assert merged == {"steps": 3, "density": 0.5}

    def test_the_same_kind_again_drops_nothing(self):
        first = {"kind": "agp", "block": 8}
        assert merge_method(first, {"kind": "agp", "movement": True}) == first | {"movement": True}

    def test_what_comes_with_the_kind_stays_and_may_be_refused(self):
        """Only what was said before, for another kind, is left behind in silence."""
        merged = merge_method({"penalty_lr": 0.5}, {"kind": "agp", "start": "svd"})
        assert merged == {"kind": "agp", "start": "svd"}
        assert set(refusals(**merged)) == {"start"}

    def test_a_field_that_was_dropped_does_not_come_back(self):
        merged = merge_method({"start": "svd"}, {"kind": "agp"}, {"kind": "flop-l0"})
        assert merged == {"kind": "flop-l0"}

    def test_an_unknown_kind_drops_nothing_and_is_refused(self):
        merged = merge_method({"start": "svd"}, {"kind": "magic"})
        assert merged == {"start": "svd", "kind": "magic"}
        assert "kind" in refusals(**merged)

    def test_the_changes_themselves_stay(self):
        first, second = {"start": "svd"}, {"kind": "agp"}
        merge_method(first, second)["steps"] = 1
        assert (first, second) == ({"start": "svd"}, {"kind": "agp"})


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": -1},
        {"gated_fraction": 1.1},
        {"anneal_fraction": -0.1},
        {"density": 0},
        {"distill_hidden": -1},
        {"kind": "prune"},
        {"anneal_steps": 5},
        {"finetune_steps": 5},
    ],
)
def test_values_out_of_range_and_names_of_old_are_refused(fields: dict[str, Any]):
    assert set(refusals(**fields)) == set(fields)
