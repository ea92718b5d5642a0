"""Mean and covariance of what layers receive, gathered over batches and workers.

The metric in which `lowrank.factorize` can choose components.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lowrank.errors import LowRankError
from lowrank.probe import evaluating, watching

RECENT = 4
"""Inputs of one forward pass that are remembered to be recognized when another layer receives them:
query, key and value follow each other, parallel blocks have a few layers in between."""


@dataclass(frozen=True, slots=True)
class InputMoments:
    """First two moments of the rows that a layer received.

    Raises:
        LowRankError: The moments are not finite.
    """

    count: int
    """Rows seen."""
    mean: Tensor
    """float64 [in_features]."""
    covariance: Tensor
    """Centred, divided by `count`: float64 [in_features, in_features]."""

    def __post_init__(self) -> None:
        if not (torch.isfinite(self.mean).all() and torch.isfinite(self.covariance).all()):
            raise LowRankError(
                f"the moments of {self.count} rows of input hold values that are not finite"
            )

    @property
    def second_moment(self) -> Tensor:
        """Mean of x xᵀ, [in_features, in_features]."""
        return self.covariance + torch.outer(self.mean, self.mean)


class MomentSums:
    """Streaming sums behind `InputMoments`, in float64.

    Batches are centred on their own mean and merged by the pairwise formula of Chan, Golub and
    LeVeque (1979, "Updating formulae and a pairwise algorithm for computing sample variances"): a
    mean much larger than the spread costs no digits.

    Args:
        in_features: Width of the rows.
        device: Where the sums are kept.
    """

    def __init__(self, in_features: int, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.mean = torch.zeros(in_features, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(in_features, in_features, dtype=torch.float64, device=device)
        """Sum of (x - mean)(x - mean)ᵀ."""

    def add(self, rows: Tensor) -> None:
        """Take in rows, [n, in_features], of any floating-point dtype; n may be 0.

        Raises:
            LowRankError: The rows have another width.
        """
        if rows.ndim != 2 or rows.shape[1] != len(self.mean):
            raise LowRankError(
                f"rows of shape [n, {len(self.mean)}] are needed, got {list(rows.shape)}"
            )
        if len(rows) == 0:
            return
        rows = rows.detach().to(self.mean.device, torch.float64)
        mean = rows.mean(0)
        self._take_in(len(rows), mean, _scatter(rows - mean))

    def merge(self, others: Sequence[MomentSums]) -> MomentSums:
        """Sums over the rows of this one and of others, such as those of data-parallel workers.

        Returns:
            A new object on the device of this one. How the rows were divided matters to rounding
            only.
        """
        merged = MomentSums(len(self.mean), self.mean.device)
        for part in (self, *others):
            if len(part.mean) != len(self.mean):
                raise LowRankError(
                    f"sums over {len(self.mean)} features cannot take in {len(part.mean)}"
                )
            merged._take_in(part.count, part.mean, part.scatter)
        return merged

    def moments(self) -> InputMoments:
        """The moments of all rows so far.

        Raises:
            LowRankError: There were none, or the moments are not finite.
        """
        if self.count == 0:
            raise LowRankError("no row of input was seen, so it has no moments")
        covariance = (self.scatter + self.scatter.t()) / (2 * self.count)
        return InputMoments(self.count, self.mean.clone(), covariance)

    def _take_in(self, count: int, mean: Tensor, scatter: Tensor) -> None:
        if count == 0:
            return
        device, total = self.mean.device, self.count + count
        gap = mean.to(device) - self.mean
        # out of place, for a merged object starts with tensors that others may hold
        self.scatter = (
            self.scatter
            + scatter.to(device)
            + torch.outer(gap, gap) * (self.count * (count / total))
        )
        self.mean = self.mean + gap * (count / total)
        self.count = total

    def __getstate__(self) -> dict[str, Any]:
        # a worker that gathers the sums of others may lack their devices, or memory on its own
        return {"count": self.count, "mean": self.mean.cpu(), "scatter": self.scatter.cpu()}


def collect_moments(
    model: nn.Module, layers: Mapping[str, nn.Module], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, MomentSums]:
    """Moments of the inputs of layers, by forward passes in evaluation mode without gradients.

    Rows at padded positions are left out where the batch says which they are: by an
    `attention_mask` [batch, seq] that fits the input, [batch, seq, in_features] or flattened to
    [batch * seq, in_features]. A layer used several times in one pass counts each use.

    Args:
        model: Called as `model(**batch)` without the batch's `labels`; must be on the device of the
            batches. Its training flags are restored, module by module.
        layers: Modules inside `model` whose first argument is [*batch, in_features], by name.
        batches: Each a mapping of arguments.

    Returns:
        Sums for each name, on the device of the inputs. Layers that always received the same tensor
        (query, key and value of one block) share one object.

    Raises:
        LowRankError: A layer was not reached, by these batches or at all.
    """
    ledger = _Ledger()
    with evaluating(model), torch.no_grad(), watching(layers, ledger.enter):
        for batch in batches:
            ledger.start(batch.get("attention_mask"))
            model(**{name: value for name, value in batch.items() if name != "labels"})
    missing = [repr(name) for name in layers if name not in ledger.sums]
    if missing:
        raise LowRankError(f"no input reached {', '.join(missing)}")
    return {name: ledger.sums[name] for name in layers}


@dataclass(slots=True)
class _Seen:
    """An input of this pass. Held, so that its memory is not given to another one meanwhile."""

    x: Tensor
    key: tuple[Any, ...] | None
    batch: MomentSums
    merged: dict[MomentSums | None, MomentSums] = field(default_factory=dict)
    """Sums before this input -> the same after it."""


class _Ledger:
    """Which sums each layer has come to.

    Sums are values here, replaced and never changed. Two layers that had the same sums and receive
    the same tensor have the same sums after it, taken from `_Seen.merged`; at the first tensor that
    they do not share they part.
    """

    def __init__(self) -> None:
        self.sums: dict[str, MomentSums] = {}
        self.start(None)

    def start(self, mask: Tensor | None) -> None:
        """A new forward pass, with its attention mask."""
        self._mask = mask
        self._recent: deque[_Seen] = deque(maxlen=RECENT)

    def enter(self, name: str, x: Tensor) -> None:
        """The layer of that name received x, [*batch, in_features]."""
        seen, before = self._look_up(x), self.sums.get(name)
        if before not in seen.merged:
            seen.merged[before] = seen.batch if before is None else before.merge([seen.batch])
        self.sums[name] = seen.merged[before]

    def _look_up(self, x: Tensor) -> _Seen:
        key = _identity(x)
        for seen in self._recent:
            if key is not None and seen.key == key:
                return seen
        sums = MomentSums(x.shape[-1], x.device)
        sums.add(_unpadded(x, self._mask))
        self._recent.append(_Seen(x, key, sums))
        return self._recent[-1]


def _identity(x: Tensor) -> tuple[Any, ...] | None:
    """Equal for two tensors, both alive, only if they hold the same values."""
    if x.is_inference():
        return None  # in-place changes of these leave no trace
    return (x.data_ptr(), x.shape, x.stride(), x.dtype, x.device, x._version)


def _unpadded(x: Tensor, mask: Tensor | None) -> Tensor:
    """Rows of x, [n, in_features], without those at padded positions."""
    if mask is not None and mask.ndim == 2:
        if x.shape[:-1] == mask.shape:
            return x[mask.to(x.device).bool()]
        if x.shape[:-1] == (mask.numel(),):
            return x[mask.to(x.device).bool().flatten()]
    return x.reshape(-1, x.shape[-1])


def _scatter(centred: Tensor) -> Tensor:
    """centredᵀ centred, [in_features, in_features].

    Most GPUs multiply float64 tens of times slower than float32, and in centred rows float32 loses
    only its own last digits; not so where the caller lets float32 products run in TF32.
    """
    fast = centred.is_cuda and torch.backends.cuda.matmul.fp32_precision != "tf32"
    factor = centred.to(torch.float32) if fast else centred
    with torch.autocast(centred.device.type, enabled=False):
        return (factor.t() @ factor).to(torch.float64)
