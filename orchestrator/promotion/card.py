"""The card of a model: what it is, what it shows, where it comes from, as Markdown with the front
matter that the Hugging Face hub reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.campaign_records import Promotion
from orchestrator.models import resolve_pretrained
from orchestrator.records import Densities, ModelRecord
from orchestrator.spec import CampaignSpec
from orchestrator.spec_tasks import AnyTask
from orchestrator.wording import count, metric_name, number, percent, ratio

if TYPE_CHECKING:
    from orchestrator.promotion import Case

PIPELINES = {
    "language-modelling": "text-generation",
    "classification": "text-classification",
    "regression": "text-classification",
}
"""The hub's names for what a model does."""

TEXT = """\
{front}
# {name}

{article} {kind} model, compressed to {density} of its pruned matrices by {method} in campaign
`{campaign}`. {why}

| | dense | this model | |
|---|---|---|---|
{rows}

Quality is measured on the test split, size is recounted from the exported files, speed is the
median of interleaved forward passes.{hardware}

## Use

```python
import lowrank.auto  # pip install lowrank-orchestrator
from transformers import {auto}

model = {auto}.from_pretrained("FOLDER")  # the folder with lowrank.json
```

Without the package, transformers refuses the folder; `lowrank export --form folded` writes one that
needs nothing.

## Checks

{checks}

## Where it comes from

| | |
|---|---|
{lineage}
"""

AUTO = {
    "text-generation": "AutoModelForCausalLM",
    "text-classification": "AutoModelForSequenceClassification",
}


def license_of(spec: CampaignSpec, task: AnyTask) -> str | None:
    """What the spec says, or the README of the pretrained model's folder."""
    if spec.promote.license is not None:
        return spec.promote.license
    pretrained = resolve_pretrained(task.model)
    if pretrained is None:
        return None
    return _license_in(Path(pretrained) / "README.md")


def _license_in(readme: Path) -> str | None:
    """Of a card's front matter; a card that cannot be read says nothing."""
    from huggingface_hub import metadata_load

    try:
        found = metadata_load(readme) or {}
    except (OSError, ValueError):
        return None
    said = found.get("license")
    return said if isinstance(said, str) else None


def model_card(case: Case, outcome: Promotion | None) -> str:
    """Markdown of a registered model.

    Args:
        case: The model, its dense reference, its campaign.
        outcome: Of its checks; None while they are to come.
    """
    record, task = case.record, case.task
    pipeline = PIPELINES[task.kind]
    fingerprint = record.speed[0].fingerprint if record.speed else {}
    checks = [
        f"- {'passed' if c['passed'] else '**failed**'}: {c['rule']} ({c['value']})"
        for c in (outcome.checks if outcome else [])
    ]
    densities = Densities.of(record.size, case.dense.size)
    return TEXT.format(
        front=_front_matter(case, pipeline),
        name=case.name,
        article="An" if task.kind[0] in "aeiou" else "A",
        kind=task.kind,
        density=percent(densities.prunable),
        method=record.config.get("kind", "no method"),
        campaign=case.spec.name,
        why=case.why,
        rows="\n".join(_rows(record, case.dense, densities)),
        hardware=f" On {fingerprint['cpu']}, {fingerprint['threads']} threads."
        if {"cpu", "threads"} <= fingerprint.keys()
        else "",
        auto=AUTO[pipeline],
        checks="\n".join(checks) or "To come.",
        lineage="\n".join(f"| {k} | `{v}` |" for k, v in case.lineage().items() if k != "why"),
    )


def _rows(record: ModelRecord, dense: ModelRecord, densities: Densities) -> list[str]:
    """Quality, size and speed beside the dense model's."""
    rows = [
        f"| {metric_name(name)} | {number(dense.test[name])} | {number(value)} | |"
        for name, value in record.test.items()
        if name in dense.test
    ]
    sizes = [
        ("parameters", dense.size.num_parameters, record.size.num_parameters, densities.parameters),
        ("weights file", dense.size.num_bytes, record.size.num_bytes, densities.bytes),
        (
            "multiply-accumulates per token",
            dense.size.macs_per_token,
            record.size.macs_per_token,
            densities.macs,
        ),
    ]
    for what, before, after, share in sizes:
        unit = "B" if what == "weights file" else ""
        rows.append(f"| {what} | {count(before, unit)} | {count(after, unit)} | {percent(share)} |")
    for row in record.speed:
        rows.append(
            f"| ms at batch {row.batch} x {row.length} | {row.dense_ms:.2f} | "
            f"{row.compressed_ms:.2f} | {ratio(row.speedup)} |"
        )
    return rows


def _front_matter(case: Case, pipeline: str) -> str:
    """Between the two lines of dashes, by the hub's own class."""
    from huggingface_hub import EvalResult, ModelCardData

    record, task = case.record, case.task
    known: dict[str, Any] = {
        "library_name": "transformers",
        "tags": ["lowrank", "low-rank-factorization", "pruning"],
        "pipeline_tag": pipeline,
    }
    if (license_ := license_of(case.spec, task)) is not None:
        known["license"] = license_
    base = getattr(task.model, "pretrained", None)
    if isinstance(base, str) and not Path(base).is_absolute():
        known["base_model"] = base
    data = ModelCardData(
        model_name=case.name,
        eval_results=[
            EvalResult(
                task_type=pipeline,
                dataset_type=task.name,
                dataset_name=task.name,
                dataset_split="test",
                metric_type=name,
                metric_value=round(value, 6),
            )
            for name, value in record.test.items()
        ],
        **known,
    )
    return f"---\n{data.to_yaml()}\n---\n"
