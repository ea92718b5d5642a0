"""Write docs/spec.md, the list of every field of a spec, from the classes that read it.

python tools/spec_reference.py          write the file
python tools/spec_reference.py --check  exit 1 if the file is not what would be written
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

from orchestrator.spec import CampaignSpec, Resources, TrackingSpec
from orchestrator.spec_after import MeasureSpec, PromoteSpec, SelectSpec
from orchestrator.spec_block import Block
from orchestrator.spec_glue import Glue
from orchestrator.spec_ladder import LadderSpec
from orchestrator.spec_method import MethodSpec
from orchestrator.spec_retention import RetentionSpec
from orchestrator.spec_search import ComparedMethod, SearchSpec
from orchestrator.spec_stopping import StoppingSpec
from orchestrator.spec_tasks import (
    Classification,
    DenseSpec,
    Files,
    HubDataset,
    LanguageModelling,
    ModelSpec,
    PythonDocs,
    Regression,
)
from orchestrator.spec_values import Distribution
from orchestrator.spec_warm import WarmStart

TARGET = Path(__file__).parent.parent / "docs" / "spec.md"

SECTIONS: list[tuple[str, type[Block]]] = [
    ("The file", CampaignSpec),
    ("resources", Resources),
    ("tracking", TrackingSpec),
    ("tasks: kind language-modelling", LanguageModelling),
    ("tasks: kind classification", Classification),
    ("tasks: kind regression", Regression),
    ("data: source python-docs", PythonDocs),
    ("data: source files", Files),
    ("data: source datasets", HubDataset),
    ("data: source glue", Glue),
    ("model", ModelSpec),
    ("dense", DenseSpec),
    ("method", MethodSpec),
    ("search", SearchSpec),
    ("search.ladder", LadderSpec),
    ("search.warm_start", WarmStart),
    ("search.stopping", StoppingSpec),
    ("a method in search.methods", ComparedMethod),
    ("a range in search", Distribution),
    ("measure", MeasureSpec),
    ("select", SelectSpec),
    ("promote", PromoteSpec),
    ("retention", RetentionSpec),
]

HEAD = """# Fields of a spec

Written by `python tools/spec_reference.py` from the classes that read the file. A field without a
default must be given. `--set path.to.field=value` on the command line overrides any of them.
Rules in `select.require` and `promote.gates` read `FIELD OP NUMBER`, such as `quality_drop <= 2%`
or `speedup >= 1.2 @ batch 32`; fields are quality_drop, density, parameters, bytes, macs, speedup
and latency_ms. Paths of data and models are looked for beside the spec first, then from where you
are.
"""


def reference() -> str:
    """The whole page."""
    parts = [HEAD]
    for title, block in SECTIONS:
        parts.append(f"\n## {title}\n\n{inspect.getdoc(block)}\n\n")
        parts.append("| field | type | default | |\n|---|---|---|---|\n")
        schema = block.model_json_schema()
        for name, field in block.model_fields.items():
            described = schema["properties"].get(name, {})
            cells = (f"`{name}`", _type(described), _default(field), _text(field.description))
            parts.append("| " + " | ".join(cells) + " |\n")
    return "".join(parts)


def _type(schema: dict[str, Any]) -> str:
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{value}`" for value in schema["enum"])
    options = schema.get("anyOf") or schema.get("oneOf")
    if options:
        return " or ".join(dict.fromkeys(_type(option) for option in options))
    if "$ref" in schema:
        return "block"
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}" if schema.get("items") else "list"
    kind = {
        "object": "mapping",
        "null": "null",
        "integer": "integer",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
    }.get(schema.get("type", ""), "any")
    bounds = [
        f"{sign} {schema[key]:g}"
        for key, sign in (
            ("minimum", "≥"),
            ("exclusiveMinimum", ">"),
            ("maximum", "≤"),
            ("exclusiveMaximum", "<"),
        )
        if key in schema
    ]
    return " ".join([kind, ", ".join(bounds)]).strip()


def _default(field: Any) -> str:
    if field.is_required():
        return ""
    value = field.get_default(call_default_factory=True)
    return "see below" if isinstance(value, Block) else f"`{value}`"


def _text(description: str | None) -> str:
    return " ".join((description or "").split())


def main() -> int:
    page = reference()
    if "--check" in sys.argv:
        current = TARGET.read_text(encoding="utf-8") if TARGET.exists() else ""
        if current != page:
            print("docs/spec.md is out of date: python tools/spec_reference.py", file=sys.stderr)
            return 1
        return 0
    TARGET.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
