"""What a results page says first and last: what ran, and what is not there."""

from __future__ import annotations

from datetime import UTC, datetime

from orchestrator import wording
from orchestrator.method_search import TrialPlan
from orchestrator.report_trials import stops_of
from orchestrator.results.read import Results
from orchestrator.results.text import Pictures, free, picture, seconds, table
from orchestrator.wording import metric_name, number, plural


def setting(results: Results, pictures: Pictures) -> list[str]:
    """What ran, on what, from which parent."""
    facts = {
        "campaign": f"`{results.spec.name}`, task `{results.task.name}`",
        "spec": _digest(results),
        "trials": _trials(results),
        "dates": _dates(results),
        "hardware": free(wording.facts(results.hardware)),
        "workers": _workers(results),
        "versions": ", ".join(f"{k} {' and '.join(v)}" for k, v in results.versions.items()),
        "data": _data(results),
        "model": _model(results),
        "parent": _parent(results),
        "methods": _methods(results),
    }
    rows = [(name, text) for name, text in facts.items() if text]
    return [table(("", ""), rows), *picture(pictures, "parent")]


def _digest(results: Results) -> str:
    digest, recorded = results.spec.digest(), results.recorded_digest
    text = f"digest `{digest}`"
    return text if recorded in ("", digest) else f"{text}; the last run had `{recorded}`"


def _trials(results: Results) -> str:
    parts = [f"{len(results.finished)} finished"]
    if failed := len(results.result.failed):
        parts.append(f"{failed} failed")
    if results.result.stopped:
        parts.append(stops_of(results.result))
    if missing := len(results.missing) + results.to_come:
        parts.append(f"{missing} missing")
    seeds = sorted({trial.seed for trial in results.result.trials})
    if seeds:
        parts.append(f"{'seed' if len(seeds) == 1 else 'seeds'} {', '.join(map(str, seeds))}")
    return ", ".join(parts)


def _dates(results: Results) -> str:
    first, last = (datetime.fromtimestamp(t, UTC).date() for t in (results.began, results.ended))
    return f"{first}" if first == last else f"{first} to {last}"


def _workers(results: Results) -> str:
    resources = results.spec.resources_of(results.task)
    workers = f"{resources.workers_in_words} worker{'' if resources.workers == 1 else 's'}"
    share = [f"{resources.cpus_per_worker:g} CPU"]
    share += [f"{resources.gpus_per_worker:g} GPU"] if resources.gpus_per_worker else []
    return (
        f"{workers} of {' and '.join(share)} per training, up to "
        f"{plural(resources.concurrent_trials, 'trial')} side by side"
    )


def _data(results: Results) -> str:
    info = results.result.data
    parts = [free(info["source"])] if "source" in info else []
    for split, counts in info.get("splits", {}).items():
        units = ("num_examples",) if "num_examples" in counts else ("num_tokens", "num_characters")
        sizes = [f"{counts[u]:,} {u.removeprefix('num_')}" for u in units if u in counts]
        more = f" ({sizes[1]})" if len(sizes) > 1 else ""
        parts.append(f"{split} {sizes[0]}{more}" if sizes else split)
    if labels := info.get("label_names"):
        parts.append(f"{len(labels)} classes")
    if scores := info.get("splits", {}).get("train", {}).get("scores"):
        parts.append(f"scores from {scores['min']:g} to {scores['max']:g}")
    if split := info.get("split_used_as_test"):
        parts.append(f"test is its split {free(split)}")
    parts += [f"hash `{results.data_hash}`"] if results.data_hash else []
    return "; ".join(parts)


def _model(results: Results) -> str:
    model, size = results.task.model, results.dense.size
    name = free(model.pretrained or model.type)
    config = f" ({free(wording.settings(model.config, model.config))})" if model.config else ""
    ranks = next((trial.ranks for trial in results.result.trials if trial.ranks), {})
    where = f" in {len(ranks)} matrices" if ranks else ""
    return (
        f"{name}{config}: {size.num_parameters:,} parameters, {size.num_prunable:,} of them "
        f"prunable{where}"
    )


def _methods(results: Results) -> str:
    """Names, and in what each differs from the spec's `method`; nothing of a single one."""
    methods = results.spec.search.methods
    parts = []
    for name, method in methods.items():
        given = [f"{field} {wording.short(value)}" for field, value in method.changes.items()]
        given += [f"{field} searched" for field in method.searched]
        parts.append(f"{name} ({', '.join(given)})" if given else name)
    return free("; ".join(parts))


def _parent(results: Results) -> str:
    dense, spec = results.dense, results.task.dense
    trained = (
        f"{spec.steps:,} steps of {spec.batch} sequences in {seconds(dense.train_seconds)}, "
        f"seed {dense.seed}"
        if spec.steps
        else "taken as it is"
    )
    return (
        f"{trained}; {metric_name(results.metric)}: validation {number(dense.quality)}, "
        f"test {number(dense.test[results.metric])}"
    )


def _missing(results: Results) -> list[list[str]]:
    """A row per method and state: a campaign that has just begun lacks hundreds of trials."""
    groups: dict[tuple[str, str], list[TrialPlan]] = {}
    for plan, state in results.missing:
        groups.setdefault((plan.method_name, state), []).append(plan)
    return [
        [
            free(method),
            _listed({plan.method.density for plan in plans}),
            _listed({plan.seed for plan in plans}),
            state,
            free(plans[0].name) if len(plans) == 1 else f"{len(plans)} trials",
        ]
        for (method, state), plans in groups.items()
    ]


def _listed(values: set[float]) -> str:
    return ", ".join(f"{value:g}" for value in sorted(values))


def failed_and_missing(results: Results, pictures: Pictures) -> list[str]:
    """Trials without a result, and runs that were not used."""
    body = [
        [free(f.method_name), f"{f.config['density']:g}", str(f.seed), "failed", free(f.reason)]
        for f in results.result.failed
    ]
    body += [
        [
            free(s.method_name),
            f"{s.config['density']:g}",
            str(s.seed),
            f"stopped at rung {s.rung:g}",
            free(s.reason),
        ]
        for s in results.result.stopped
    ]
    body += _missing(results)
    blocks = [table(("method", "density", "seed", "state", ""), body)] if body else []
    if results.to_come:
        blocks.append(
            f"{plural(results.to_come, 'trial')} of later rounds: which values they have is "
            "decided when the draws have ended."
        )
    if results.left_out:
        blocks.append(
            f"{plural(results.left_out, 'finished run')} of this task left out: the spec does not "
            "ask for them."
        )
    if results.matched:
        blocks.append(
            f"{plural(results.matched, 'run')} found by settings, not by key: they were recorded "
            "under another version of the spec or of the code."
        )
    return blocks
