"""Results as tables of text, which a terminal and a page of Markdown show alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from lowrank.benchmark.results import work_name

MIB = 1024 * 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class TextTable:
    """Headings and cells; a `note` stands below."""

    title: str
    headings: list[str]
    rows: list[list[str]]
    note: str = ""

    def markdown(self) -> str:
        lines = [f"### {self.title}", ""]
        for row in (self.headings, ["---"] * len(self.headings), *self.rows):
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |")
        return "\n".join([*lines, *(["", self.note] if self.note else [])])


def all_tables(result: dict[str, Any]) -> list[TextTable]:
    """Everything that a result holds, subject by subject."""
    tables = []
    for subject in result["subjects"]:
        tables.append(speed_table(subject))
        for cell in subject["cells"]:
            tables += [layer_table(subject, cell), operator_table(subject, cell)]
        if "resources" in subject:
            tables.append(resource_table(subject))
    return tables


def page(result: dict[str, Any], title: str = "Benchmark") -> str:
    """A page of Markdown: what was measured where, then the tables."""
    facts = "; ".join(f"{key} {value}" for key, value in result["fingerprint"].items())
    settings = result["settings"]
    intro = (
        f"Measured with: {facts}.\n\nMedian of {settings['repeats']} interleaved rounds; speed-up "
        "is the median of paired ratios against the dense model in eager mode, with its 95 % "
        f"bootstrap interval (seed {settings['seed']})."
    )
    return "\n\n".join([f"# {title}", intro, *(t.markdown() for t in all_tables(result))]) + "\n"


def speed_table(subject: dict[str, Any]) -> TextTable:
    """A row per cell and form. What is not faster is marked, not left out."""
    rows = []
    for cell in subject["cells"]:
        for row in cell["rows"]:
            names = [work_name(cell), row["side"], row["form"]]
            rows.append([*names, *_figures(row)])
        best = cell["best"]
        name = f"{best['compressed']} against dense {best['dense']}"
        figures = _promise(best["speedup"], cell["promised"])
        rows.append([work_name(cell), "best of both", name, "", "", *figures, ""])
        rows[-1].append(mark(best["speedup"]))
    sizes = subject["sizes"]
    note = (
        f"{sizes['dense_parameters']:,} parameters dense, {sizes['compressed_parameters']:,} "
        f"compressed; {sizes['compressed_layers']} compressed layers hold "
        f"{sizes['density_of_these']:.2%} of their matrices. Promised: the ratio of "
        "multiply-accumulates; attained: measured over promised."
    )
    for reason in subject["left_out"]:
        note += f" Left out: {reason}."
    headings = ["work", "model", "form", "ms", "tokens/s", "speed-up", "interval", "promised"]
    headings += ["attained", "deviation", ""]
    return TextTable(title=f"{subject['name']}: speed", headings=headings, rows=rows, note=note)


def layer_table(subject: dict[str, Any], cell: dict[str, Any]) -> TextTable:
    """Every kind of compressed layer alone, and what is left of the pass."""
    rows = []
    for kind in cell["layers"]:
        row = [f"{kind['out_features']} x {kind['in_features']}", kind["form"]]
        row += ["" if kind["rank"] is None else str(kind["rank"])]
        row += [str(kind["count"]), str(kind["rows"])]
        row += [f"{kind['dense_ms']:.3f}", f"{kind['compressed_ms']:.3f}"]
        row += _promise(kind["speedup"], kind["promised"])
        rows.append([*row, mark(kind["speedup"])])
    rest = cell["rest"]
    parts = [
        f"{side}: {part['pass_ms']:.2f} ms, of which {part['outside_ms']:.2f} ms "
        f"({part['outside_share']:.0%}) outside of these layers"
        for side, part in rest.items()
    ]
    headings = ["matrix", "form", "rank", "layers", "rows", "dense ms", "compressed ms"]
    headings += ["speed-up", "interval", "promised", "attained", ""]
    return TextTable(
        title=f"{subject['name']}: layers alone, {work_name(cell)}",
        headings=headings,
        rows=rows,
        note="One eager pass, " + "; ".join(parts) + ".",
    )


def operator_table(subject: dict[str, Any], cell: dict[str, Any]) -> TextTable:
    """Shares of the time by operator, of both models."""
    sides = cell["operators"]
    shares = {
        side: {op["name"]: op["share"] for op in found["operators"]}
        for side, found in sides.items()
    }
    names = dict.fromkeys([*shares["dense"], *shares["compressed"]])
    rows = [[name, *(_share(shares[side].get(name)) for side in shares)] for name in names]
    for group in ("matrix", "attention", "other"):
        rows.append([f"all of {group}", *(_share(sides[side]["groups"][group]) for side in shares)])
    return TextTable(
        title=f"{subject['name']}: operators, {work_name(cell)}",
        headings=["operator", "dense", "compressed"],
        rows=rows,
        note="Shares of the operators' own time under torch's profiler, eager mode.",
    )


def resource_table(subject: dict[str, Any]) -> TextTable:
    """File, load time and memory."""
    rows = [
        [
            form,
            _mib(found.get("file_bytes")),
            f"{found['load_s']:.2f}" if "load_s" in found else "",
            *(_mib(found.get(key)) for key in ("start_bytes", "load_peak_bytes", "peak_bytes")),
            _mib(found.get("device_peak_bytes")),
            found.get("reason", ""),
        ]
        for form, found in subject["resources"].items()
    ]
    headings = ["form", "file MiB", "load s", "MiB before", "peak MiB loaded", "peak MiB run"]
    return TextTable(
        title=f"{subject['name']}: memory and load time",
        headings=[*headings, "peak MiB on GPU", ""],
        rows=rows,
        note="Each in a fresh process through `from_pretrained`; resident memory of the process, "
        "the libraries' own included (before).",
    )


def comparison_table(rows: list[dict[str, Any]]) -> TextTable:
    """What `results.compare` found."""
    cells = []
    for row in rows:
        cell = [row["subject"], row["work"], row["side"], row["form"]]
        cell += [_number(row["first_ms"]), _number(row["second_ms"])]
        cells.append([*cell, "" if row["ratio"] is None else f"{row['ratio']:.2f}x"])
    headings = ["subject", "work", "model", "form", "first ms", "second ms", "first / second"]
    return TextTable(title="Two runs, same fingerprint", headings=headings, rows=cells)


def mark(ratio: dict[str, float] | None) -> str:
    """Says so where the interval does not lie above 1."""
    if ratio is None or ratio["low"] > 1:
        return ""
    return "slower" if ratio["high"] < 1 else "no speed-up"


def _figures(row: dict[str, Any]) -> list[str]:
    """What stands behind the names of a row of the speed table."""
    if row["median_ms"] is None:
        return [""] * 7 + [f"not available: {row['reason']}"]
    timed = [f"{row['median_ms']:.2f}", f"{row['tokens_per_s']:,.0f}"]
    if (row["side"], row["form"]) == ("dense", "eager"):
        return [*timed, "1.00x", *[""] * 5]
    deviation = "" if row["form"] == "eager" else f"{row['deviation']:.1e}"
    figures = _promise(row["speedup"], row["promised"])
    return [*timed, *figures, deviation, mark(row["speedup"])]


def _promise(ratio: dict[str, float], promised: float | None) -> list[str]:
    """Speed-up, interval, promised and attained."""
    if promised is None:
        return [*_speedup(ratio), "", ""]
    return [*_speedup(ratio), f"{promised:.2f}x", f"{ratio['median'] / promised:.0%}"]


def _speedup(ratio: dict[str, float]) -> list[str]:
    return [f"{ratio['median']:.2f}x", f"{ratio['low']:.2f}-{ratio['high']:.2f}"]


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"


def _mib(value: float | None) -> str:
    return "" if value is None else f"{value / MIB:,.1f}"


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
