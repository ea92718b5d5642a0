"""Small tasks and the files that they read."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from orchestrator.spec_tasks import Classification, Files, LanguageModelling, Regression

MODEL = {"type": "gpt2"}
DENSE = {"steps": 1, "learning_rate": 0.1}


def language_task(data: Any, **fields: Any) -> LanguageModelling:
    fields = {"name": "lm", "context": 4, "model": MODEL, "dense": DENSE} | fields
    return LanguageModelling(kind="language-modelling", data=data, **fields)


def classification_task(data: Any, **fields: Any) -> Classification:
    fields = {"name": "cls", "max_length": 16, "model": MODEL, "dense": DENSE} | fields
    return Classification(kind="classification", data=data, **fields)


def regression_task(data: Any, **fields: Any) -> Regression:
    fields = {"name": "reg", "max_length": 16, "model": MODEL, "dense": DENSE} | fields
    return Regression(kind="regression", data=data, **fields)


def text_files(folder: Path, **texts: str) -> Files:
    """Write `train`, and `validation` and `test` if given, as text files."""
    return Files(source="files", **_written(folder, ".txt", texts))


def table_files(folder: Path, text: list[str] | None = None, **tables: str) -> Files:
    """Write tables; their columns are `sentence` and `label` unless `text` says otherwise."""
    return Files(source="files", text=text or ["sentence"], **_written(folder, ".tsv", tables))


def table(*rows: tuple[str, ...], header: str = "sentence\tlabel") -> str:
    return "".join(line + "\n" for line in (header, *("\t".join(row) for row in rows)))


def prose(num_paragraphs: int, seed: int = 0) -> str:
    """Paragraphs of made-up words, all different."""
    draw = random.Random(seed)
    words = ["".join(draw.choices("abcdeé", k=draw.randint(1, 6))) for _ in range(60)]
    lines = (" ".join(draw.choices(words, k=12)) for _ in range(num_paragraphs))
    return "".join(f"{number} {line}\n\n" for number, line in enumerate(lines))


def opinions(num_rows: int, seed: int = 0) -> list[tuple[str, str]]:
    draw = random.Random(seed)
    words = {"good": ["fine", "great", "warm"], "bad": ["dull", "cold", "poor"]}
    labels = [draw.choice(["good", "bad"]) for _ in range(num_rows)]
    return [
        (f"a {draw.choice(words[label])} film number {number} of {seed}", label)
        for number, label in enumerate(labels)
    ]


def _written(folder: Path, suffix: str, contents: dict[str, str]) -> dict[str, str]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = {split: folder / (split + suffix) for split in contents}
    for split, path in paths.items():
        path.write_bytes(contents[split].encode())
    return {split: str(path) for split, path in paths.items()}
