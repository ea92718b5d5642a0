"""Prepared data on disk: arrays that are mapped, not read, a tokenizer, and what they are.

A folder holds `data.json` (what it is, with size and SHA-256 of every other file), `tokenizer/`,
and per split `SPLIT.tokens.npy`, or `SPLIT.ids.npy`, `.offsets.npy`, `.type_ids.npy` and
`.labels.npy`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from lowrank.errors import first_line
from lowrank.plain_json import read_json
from orchestrator.data.splits import SPLITS
from orchestrator.errors import DataError
from orchestrator.wording import cut

INVENTORY = "data.json"

FORMAT = 1
"""Counts up when the same input would be prepared differently; part of every content hash."""

TOKENIZER = "tokenizer"

MAGIC = b"\x93NUMPY"

COUNTED_AT_ONCE = 2**22
"""Tokens of a mapped file that are in memory at a time, as int64: 32 MiB."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Examples:
    """Encoded examples of a split of labelled texts, one after the other."""

    ids: np.ndarray
    """[num_tokens], example i is `ids[offsets[i]:offsets[i + 1]]`; special tokens included."""
    offsets: np.ndarray
    """[num_examples + 1], int64."""
    type_ids: np.ndarray
    """[num_tokens], uint8: 1 in the second text of a pair, else 0."""
    labels: np.ndarray
    """[num_examples], int64: positions in `PreparedData.label_names`; or float64: scores."""

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray, int | float]:
        """Token ids, type ids and label of one example."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"0 <= index < {len(self)} must hold, got {index}")
        index %= len(self)
        place = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        return self.ids[place], self.type_ids[place], self.labels[index].item()

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, int | float]]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True, kw_only=True, slots=True)
class PreparedData:
    """Tokenized splits in a folder. The same content hash means the same data."""

    folder: Path
    content_hash: str
    """16 hex digits over the texts, the labels and everything that decides the ids."""
    info: dict[str, Any]
    """What was prepared, as JSON. `splits` counts per split: for language modelling
    `num_documents`, `num_tokens`, and of the very text that these tokens cover `num_characters`,
    `num_words` and `num_newlines`; so nats per token times `num_tokens / num_words` are nats per
    word. At level `word` every line break is a token, `<eos>`, and counts as a word."""

    @classmethod
    def open(cls, folder: Path, *, verify: bool = False) -> PreparedData:
        """Open a prepared folder.

        Args:
            folder: As `prepare_data` left it.
            verify: Also read every file and compare its SHA-256.

        Raises:
            DataError: When a file is missing or damaged.
        """
        inventory = _read_inventory(folder / INVENTORY)
        for name, expected in inventory["files"].items():
            _check_file(folder, name, expected, verify)
        for path in [*folder.glob("*.npy"), *(folder / TOKENIZER).glob("*")]:
            if path.relative_to(folder).as_posix() not in inventory["files"]:
                raise _damaged(path, f"{INVENTORY} does not name it")
        return cls(folder=folder, content_hash=inventory["content_hash"], info=inventory["info"])

    @property
    def tokenizer_folder(self) -> Path:
        """For `AutoTokenizer.from_pretrained`."""
        return self.folder / TOKENIZER

    @property
    def vocab_size(self) -> int:
        """Rows that an embedding needs."""
        return self.info["vocab_size"]

    @property
    def pad_token_id(self) -> int | None:
        """None only for a pretrained language model whose tokenizer has no end token either."""
        return self.info["pad_token_id"]

    @property
    def label_names(self) -> list[str]:
        """Names of the classes by number; empty where there are none."""
        return list(self.info["label_names"])

    def tokens(self, split: str) -> np.ndarray:
        """Language modelling: the ids of a split, [num_tokens], integers, mapped read-only."""
        return self._array(split, "tokens")

    def examples(self, split: str) -> Examples:
        """Labelled texts: the examples of a split, mapped read-only."""
        parts = ("ids", "offsets", "type_ids", "labels")
        return Examples(**{part: self._array(split, part) for part in parts})

    def token_counts(self, split: str) -> np.ndarray:
        """How often each token occurs in a split, special tokens included; int64 [vocab_size]."""
        task = self.info["kind"]
        tokens = self.examples(split).ids if task == "classification" else self.tokens(split)
        counts = np.zeros(self.vocab_size, dtype=np.int64)
        for start in range(0, len(tokens), COUNTED_AT_ONCE):
            part = tokens[start : start + COUNTED_AT_ONCE]
            counts += np.bincount(part, minlength=self.vocab_size)
        return counts

    def _array(self, split: str, part: str) -> np.ndarray:
        path = self.folder / array_name(split, part)
        if split not in SPLITS or not path.exists():
            raise DataError(
                f"no {part} of split {split!r} in {self.folder}, which holds "
                f"{self.info['kind']} data of {', '.join(SPLITS)}"
            )
        try:
            with path.open("rb") as file:
                if file.read(len(MAGIC)) != MAGIC:  # NumPy would advise to unpickle it
                    raise _damaged(path, "it is no NumPy array")
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except DataError:
            raise
        except Exception as error:  # NumPy reads the header as Python's parts read Python
            raise _damaged(path, first_line(error)) from error


def describe(prepared: PreparedData) -> str:
    """One line for the terminal: source, vocabulary and size of the splits."""
    info = prepared.info
    if info["kind"] == "classification":
        what, unit = f"{len(info['label_names'])} classes", "examples"
    elif info["kind"] == "regression":
        scores = info["splits"]["train"]["scores"]
        what, unit = f"scores from {scores['min']:g} to {scores['max']:g}", "examples"
    else:
        what, unit = f"{info['level']} level", "tokens"
    sizes = ", ".join(f"{split} {info['splits'][split][f'num_{unit}']:,}" for split in SPLITS)
    dropped = sum(info["dropped"].values())
    note = f"; {dropped:,} dropped as duplicate or empty" if dropped else ""
    return (
        f"{info['source']}, {what}, vocabulary {info['vocab_size']:,}; "
        f"{unit}: {sizes}{note} [{prepared.content_hash}]"
    )


def array_name(split: str, part: str) -> str:
    return f"{split}.{part}.npy"


def write_inventory(folder: Path, content_hash: str, info: Mapping[str, Any]) -> None:
    """Write `data.json` over the files that are in the folder now."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files = {
        path.relative_to(folder).as_posix(): {
            "size": path.stat().st_size,
            "sha256": _sha256(path),
        }
        for path in paths
    }
    info = json.loads(json.dumps(info))  # as it will be read
    inventory = {
        "format": FORMAT,
        "content_hash": content_hash,
        "info_sha256": _digest(info),
        "info": info,
        "files": files,
    }
    text = json.dumps(inventory, indent=1, ensure_ascii=False, allow_nan=False)
    (folder / INVENTORY).write_text(text + "\n", encoding="utf-8")


def _read_inventory(path: Path) -> dict[str, Any]:
    try:
        inventory = read_json(path)
    except FileNotFoundError as error:
        raise DataError(f"no prepared data in {path.parent}: {path.name} is missing") from error
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(inventory, dict) or not {"content_hash", "info", "files"} <= set(inventory):
        raise _damaged(path, "it must be an object with content_hash, info and files")
    if inventory.get("format") != FORMAT:
        raise _damaged(path, f"format must be {FORMAT}, got {inventory.get('format')!r:.60}")
    for key, wanted in (("content_hash", str), ("info", dict), ("files", dict)):
        if not isinstance(inventory[key], wanted):
            raise _damaged(path, f"{key} must be of type {wanted.__name__}")
    # those of earlier versions have no digest of their info
    digest = _digest(inventory["info"])
    if inventory.get("info_sha256", digest) != digest:
        raise _damaged(path, "its info is not what was written")
    _check_info(path, inventory["info"])
    return inventory


def _digest(info: Any) -> str:
    return hashlib.sha256(json.dumps(info, sort_keys=True).encode()).hexdigest()


def _check_info(path: Path, info: Mapping[str, Any]) -> None:
    """Raise DataError unless everything is there that its readers take for granted."""
    absent = {"kind", "vocab_size", "pad_token_id", "label_names", "splits"} - info.keys()
    if absent:
        raise _damaged(path, f"info must have {', '.join(sorted(absent))}")
    size, splits = info["vocab_size"], info["splits"]
    if type(size) is not int or size < 1:
        raise _damaged(path, f"vocab_size >= 1 must hold, got {size!r:.60}")
    if not isinstance(info["label_names"], list):
        raise _damaged(path, f"label_names must be a list, got {info['label_names']!r:.60}")
    if not isinstance(splits, dict) or not all(isinstance(splits.get(s), dict) for s in SPLITS):
        raise _damaged(path, f"splits must describe {', '.join(SPLITS)}")


def _check_file(folder: Path, name: str, expected: Any, verify: bool) -> None:
    path = folder / name
    place = PurePosixPath(name)
    if place.is_absolute() or ".." in place.parts or "\0" in name:
        raise _damaged(folder / INVENTORY, f"files must lie in its folder, got {cut(name)!r}")
    match expected:
        case {"size": int(), "sha256": str()}:
            pass
        case _:
            raise _damaged(folder / INVENTORY, f"{cut(name)} must have a size and a sha256")
    if not path.is_file():
        raise _damaged(path, "it is missing")
    size = path.stat().st_size
    if size != expected["size"]:
        raise _damaged(path, f"it must have {expected['size']} bytes, got {size}")
    if verify and _sha256(path) != expected["sha256"]:
        raise _damaged(path, "its SHA-256 is not the one in data.json")


def _damaged(path: Path, reason: str) -> DataError:
    return DataError(
        f"{path} is damaged: {reason}; delete its folder to have the data prepared again"
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
