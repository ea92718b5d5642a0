"""pydantic's findings as sentences: where in the file, which rule, which value.

`campaign.yaml:14: search.density[2]: must be > 0 and <= 1, got 1.7`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import annotated_types as limits
from pydantic import BaseModel, ValidationError

from orchestrator.errors import SpecError, redact_uri
from orchestrator.spec import CampaignSpec
from orchestrator.spec_block import PlacedErrors
from orchestrator.spec_search import ComparedMethod, SearchSpec
from orchestrator.spec_tasks import ModelSpec
from orchestrator.spec_values import CHANGEABLE, SEARCHABLE
from orchestrator.spec_walk import Walk, walk
from orchestrator.spec_yaml import Document, Place

MAX_SHOWN = 60
"""Characters of a wrong value in a message."""

MOST_SHOWN = 50
"""Problems in a message: more than anybody mends at once."""

_TYPES = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_parsing_size": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "dict_type": "must be a block of keys and values",
    "model_type": "must be a block of keys and values",
    "model_attributes_type": "must be a block of keys and values",
}
_BOUNDS = {"greater_than", "greater_than_equal", "less_than", "less_than_equal"}
_NUMBER_OR_TEXT = {"int_type", "float_type", "string_type"}


@dataclass(frozen=True)
class Problem:
    """One broken rule, at a place in the spec."""

    place: Place
    message: str

    def sentence(self, document: Document) -> str:
        parts = [document.locate(self.place), place_text(self.place), self.message]
        if not parts[1] or parts[0] == f"--set {parts[1]}":
            del parts[1]
        return ": ".join(parts)


def spec_error(problems: Sequence[Problem], document: Document) -> SpecError:
    """All problems as one error, in the order of the file."""
    ordered = sorted(problems, key=lambda problem: document.line(problem.place) or 0)
    sentences = list(dict.fromkeys(problem.sentence(document) for problem in ordered))
    if len(sentences) > MOST_SHOWN:
        more = f"{document.path}: and {len(sentences) - MOST_SHOWN:,} more"
        sentences = [*sentences[:MOST_SHOWN], more]
    return SpecError(document.path, document.line(ordered[0].place), sentences)


def explain(error: ValidationError, document: Document) -> list[Problem]:
    """Every finding of pydantic as a problem at the place that the person wrote."""
    findings: dict[Place, list[_Finding]] = {}
    for finding in _flatten(error.errors(include_url=False), (), CampaignSpec):
        findings.setdefault(_as_written(finding.place, document), []).append(finding)
    return [Problem(place, _message(found)) for place, found in findings.items()]


def place_text(place: Place) -> str:
    """`tasks[0].model.n_layer`."""
    parts = [f"[{part}]" if isinstance(part, int) else f".{part}" for part in place]
    return "".join(parts).removeprefix(".")


def show(value: Any) -> str:
    """A value in a message: short, and without passwords."""
    if value is None:
        return "nothing"
    text = repr(redact_uri(value) if isinstance(value, str) else value)
    if isinstance(value, dict | list) and value:
        kind = "key" if isinstance(value, dict) else "item"
        text = redact_uri(text)
        if len(text) > MAX_SHOWN:
            return f"{len(value)} {kind}{'s' if len(value) > 1 else ''}"
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """`did you mean x? allowed: x, y`, the question only where one comes close."""
    close = difflib.get_close_matches(word, known, n=1)
    question = f"did you mean `{close[0]}`? " if close else ""
    return f"{question}allowed: {', '.join(known)}"


# --------------------------------------------------------------------------- findings


@dataclass(frozen=True)
class _Finding:
    """An error of pydantic with the place that its types lead to."""

    kind: str
    place: Place
    text: str
    value: Any
    context: dict[str, Any]
    walk: Walk


def _flatten(errors: Sequence[Any], prefix: Place, model: type[BaseModel]) -> Iterator[_Finding]:
    for error in errors:
        if error["type"] == "missing" and isinstance(error["loc"][-1], int):
            error = _too_short(error)
        context = error.get("ctx", {})
        cause = context.get("error")
        found = walk(error["loc"], model)
        if isinstance(cause, PlacedErrors):
            yield from _flatten(cause.errors, prefix + found.place, cause.model)
            continue
        place = prefix + found.place + _below(error)
        if "field" in error:  # a searched value has the limits of the field that it is for
            found = walk((error["field"],), model)
        text = error["msg"] if cause is None else str(cause)
        yield _Finding(error["type"], place, text, error["input"], context, found)


def _too_short(error: Any) -> dict[str, Any]:
    """A pair with one value: pydantic blames the absent second one."""
    *loc, index = error["loc"]
    return {**error, "type": "too_short", "loc": tuple(loc), "ctx": {"min_length": index + 1}}


def _below(error: Any) -> Place:
    """The key that a union looked for, where pydantic blames the block around it."""
    kind, name = error["type"], str(error.get("ctx", {}).get("discriminator", ""))
    if kind.startswith("union_tag_") and name.startswith("'"):
        return (name.strip("'"),)
    return ()


def _as_written(place: Place, document: Document) -> Place:
    """`search.penalty_lr` where the person did not write `search.fields.penalty_lr`, and the same
    of campaigns that are a list."""
    if place[:3] == ("search", "warm_start", "campaigns"):
        is_list = isinstance(document.data["search"]["warm_start"], list)
        return (*place[:2], *place[3:]) if is_list else place
    depth = 3 if place[:2] == ("search", "methods") else 1
    direct = (*place[:depth], *place[depth + 1 :])
    if place[:1] + place[depth : depth + 1] == ("search", "fields") and len(place) > depth + 1:
        return direct if direct[: depth + 1] in document.origins else place
    return place


# --------------------------------------------------------------------------- rules


def _message(findings: Sequence[_Finding]) -> str:
    if len(findings) > 1 and {finding.kind for finding in findings} <= _NUMBER_OR_TEXT:
        return f"must be a number or text, got {show(findings[0].value)}"
    return "; ".join(dict.fromkeys(_sentence(finding) for finding in findings))


def _sentence(finding: _Finding) -> str:
    kind = finding.kind
    if kind in ("rule", "value_error"):
        return finding.text
    if kind == "extra_forbidden":
        return _unknown_key(finding)
    if kind == "missing":
        return "required key is missing"
    if kind == "union_tag_not_found":
        return _no_tag(finding)
    rule = _rule(finding)
    hint = " (put it in quotes)" if kind == "string_type" and _is_number(finding.value) else ""
    value = finding.context["tag"] if kind == "union_tag_invalid" else finding.value
    return f"{rule}, got {show(value)}{hint}"


def _rule(finding: _Finding) -> str:
    kind, context = finding.kind, finding.context
    if kind in _BOUNDS:
        return f"must be {_bounds(finding.walk.limits)}"
    if kind in ("too_short", "too_long"):
        side, count = (
            ("at least", "min_length") if kind == "too_short" else ("at most", "max_length")
        )
        return f"must have {side} {context[count]} item{'s' if context[count] > 1 else ''}"
    if kind == "string_too_long":
        return f"must have at most {context['max_length']} characters"
    if kind == "literal_error":
        return f"must be one of {context['expected'].replace(chr(39), '').replace(' or ', ', ')}"
    if kind == "union_tag_invalid":
        return f"must be one of {', '.join(finding.walk.tags)}"
    if kind == "string_pattern_mismatch":
        return f"must be {finding.walk.description or context['pattern']}"
    return _TYPES.get(kind, finding.text)


def _unknown_key(finding: _Finding) -> str:
    block, key = finding.walk.block, str(finding.place[-1])
    known = list(block.model_fields) if block else []
    known += SEARCHABLE if block is SearchSpec else CHANGEABLE if block is ComparedMethod else []
    hint = did_you_mean(key, known)
    if block is ModelSpec and not hint.startswith("did"):
        hint += "; what the transformers config holds stands under `config`"
    return f"unknown key; {hint}"


def _no_tag(finding: _Finding) -> str:
    if finding.place[:2] == ("search", "fields"):
        forms = "a list of values, {log_uniform: [low, high]} or {uniform: [low, high]}"
        return f"must be {forms}, got {show(finding.value)}"
    return f"required key is missing, one of {', '.join(finding.walk.tags)}"


def _bounds(found: Sequence[Any]) -> str:
    """`> 0 and <= 1`: both sides, whichever was broken."""
    sides = []
    for limit in found:
        for kind, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
            if isinstance(limit, getattr(limits, kind.capitalize())):
                sides.append(f"{sign} {getattr(limit, kind)}")
    return " and ".join(sides)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float)
