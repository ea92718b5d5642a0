"""What can go wrong in a campaign, in words for the person who started it.

Everything that the command line turns into one sentence and an exit code is a `CampaignError`;
any other exception is a defect of ours and keeps its traceback. The errors cross process borders
(Ray pickles what a worker raises), so a class with more fields than its message says how to
rebuild itself.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

# lengths are bounded, or a long text without spaces would take minutes; the longest tokens have
# some thousand characters
_CREDENTIALS = re.compile(
    r"""(?P<begin>://)
    (?: [^/?\#\s'"]{0,4000}@         # user, or user:password as it should be written
      | [^/?\#\s'":@]{1,4000}:(?!\d+[/?\#\s'"]|\d+$)[^\s'"]{0,4000}@ )  # with a bare / or ?
    """,
    re.IGNORECASE | re.VERBOSE,
)
_SECRET_QUERY = re.compile(
    r"(?P<key>[?&;][^=&;\s]{0,200}?"
    r"(?:password|passwd|pwd|secret|token|signature|credential|api_?key)"
    r"[^=&;\s]{0,200}=)[^&;#\s]*",
    re.IGNORECASE,
)


class CampaignError(Exception):
    """Root of the errors that are explained, not traced."""

    exit_code: int = 1
    """What the command line exits with: 2 when the person's input is at fault, else 1."""


class SpecError(CampaignError):
    """The spec cannot be read or breaks a rule.

    Args:
        path: The file as the person named it.
        line: Where the first problem stands, from 1; None when no line is to blame.
        problems: Every problem, each one sentence that starts with where it is.
    """

    exit_code = 2

    def __init__(self, path: str, line: int | None, problems: Sequence[str]) -> None:
        self.path = path
        self.line = line
        self.problems = list(problems)
        super().__init__("\n".join(self.problems))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.line, self.problems)


class DataError(CampaignError):
    """A data set is missing, empty or not in the form that its task needs."""

    exit_code = 2


class ModelError(CampaignError):
    """A model cannot be built, loaded or compressed as asked."""

    exit_code = 2


class TrackingError(CampaignError):
    """The tracking store cannot be reached, or does not hold what it should."""


class StorageError(CampaignError):
    """The campaign's folder cannot be written: permission, disk full, not a folder."""


class ClusterError(CampaignError):
    """A cluster's job server does not answer or refuses what it is asked, or Ray does not start."""


class TrialError(CampaignError):
    """One trial failed; the campaign may go on without it.

    Args:
        reason: One sentence on what happened.
        key: The trial's key, when it is known.
    """

    def __init__(self, reason: str, key: str | None = None) -> None:
        self.reason = reason
        self.key = key
        super().__init__(reason if key is None else f"trial {key}: {reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.key)


class DivergedError(TrialError):
    """The loss is no longer finite, on all workers at the same step."""


class StoppedError(CampaignError):
    """A training was stopped because others are ahead of it; no failure.

    Args:
        rung: Part of its steps at which it was judged.
        reason: In words, with the numbers.
        step: After which it stopped.
    """

    def __init__(self, rung: float, reason: str, step: int) -> None:
        self.rung, self.reason, self.step = rung, reason, step
        super().__init__(f"stopped at rung {rung:g}, step {step}: {reason}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.rung, self.reason, self.step)

    @property
    def facts(self) -> dict[str, Any]:
        """The arguments by name."""
        return {"rung": self.rung, "reason": self.reason, "step": self.step}


class RegistryError(CampaignError):
    """The model registry refused, or does not hold the named model or alias."""


class PromotionError(RegistryError):
    """A candidate may not become champion.

    Args:
        model: The registered model's name.
        reasons: Every gate that it failed, each with the rule and the value.
    """

    def __init__(self, model: str, reasons: Iterable[str]) -> None:
        self.model = model
        self.reasons = list(reasons)
        super().__init__(f"{model} was not promoted: {'; '.join(self.reasons)}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.model, self.reasons)


def redact_uri(uri: str) -> str:
    """The text with user, password and secret query values of every URI in it hidden.

    For messages, reports and run tags: a tracking URI may carry the database's password.
    """
    hidden = _CREDENTIALS.sub(r"\g<begin>***@", uri)
    return _SECRET_QUERY.sub(r"\g<key>***", hidden)


def storage_error(path: Path, error: OSError) -> StorageError:
    """What to tell a person about a folder that cannot be used."""
    reason = {
        errno.ENOSPC: "no space left on the device",
        errno.EROFS: "the file system is read-only",
        errno.EACCES: "no permission to write there",
        errno.ENOTDIR: "a part of the path is a file, not a folder",
        errno.EEXIST: "a part of the path is a file, not a folder",
    }.get(error.errno or 0, error.strerror or str(error))
    return StorageError(f"storage: cannot write {path}: {reason}")
