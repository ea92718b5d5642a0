"""YAML in, a checked `CampaignSpec` out: the one place where a spec enters the program."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from orchestrator.errors import redact_uri
from orchestrator.spec import CampaignSpec
from orchestrator.spec_elsewhere import left_to_the_cluster, problems_elsewhere
from orchestrator.spec_errors import explain, spec_error
from orchestrator.spec_overrides import apply_overrides
from orchestrator.spec_paths import resolve_inputs, resolve_outputs
from orchestrator.spec_yaml import dump, read_document

__all__ = ["dump_spec", "json_schema", "load_spec", "redact_uri"]


def load_spec(
    path: str | Path, overrides: Sequence[str] = (), *, elsewhere: bool = False
) -> CampaignSpec:
    """Read, override and check a spec file; every path in the result is absolute.

    Args:
        path: A YAML file.
        overrides: `PATH=VALUE`, applied in order (`spec_overrides`).
        elsewhere: Other machines will run it: absolute paths need not exist here, what is written
            goes to one, and passwords are refused (`spec_elsewhere`).

    Raises:
        SpecError: With every problem found, each with its line, its place and the broken rule.
    """
    document = read_document(path)
    apply_overrides(document, overrides)
    problems = resolve_inputs(document)
    if elsewhere:
        problems = left_to_the_cluster(document, problems)
    try:
        spec = CampaignSpec.model_validate(document.data)
    except ValidationError as error:
        raise spec_error(problems + explain(error, document), document) from None
    if elsewhere:
        problems += problems_elsewhere(document, spec)
    if problems:
        raise spec_error(problems, document)
    return resolve_outputs(spec)


def dump_spec(spec: CampaignSpec, *, redact: bool = False) -> str:
    """YAML of the whole spec, defaults included; loads back equal.

    Args:
        redact: Hide passwords in the tracking URIs, for a copy that others may read.
    """
    values = spec.model_dump(mode="json")
    if redact:
        tracking = values["tracking"]
        for name in ("uri", "registry"):
            tracking[name] = tracking[name] and redact_uri(tracking[name])
    return dump(values)


def json_schema() -> dict[str, Any]:
    """JSON schema of a spec file, for editors that complete and check while one types."""
    schema = CampaignSpec.model_json_schema()
    for task in ("LanguageModelling", "Classification", "Regression"):
        fields = schema["$defs"][task]["properties"]
        fields["method"] = {"$ref": "#/$defs/MethodSpec"}
        fields["resources"] = {"$ref": "#/$defs/Resources"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **schema}
