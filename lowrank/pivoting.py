"""From the two factors of a layer to the pivoted form, and who reads its outputs in a new order.

Where the layer that reads them can absorb that order it does; elsewhere every pass puts the outputs
back, which costs time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowrank.blocks import form_of
from lowrank.errors import LowRankError
from lowrank.linear import LowRankLinear, is_conv1d
from lowrank.pivoted import PivotedLinear
from lowrank.surgery import replace_layers

GROWTH = 2.0
"""Bound on the entries of C, which multiply the rounding of B. With the first rows as pivots they
reach tens on random matrices. A pivoted QR decomposition alone mostly keeps them below this, but
promises nothing; exchanges do, and are few for a bound that is not near 1."""


def pivoted(model: nn.Module) -> nn.Module:
    """Give the factorized layers of a compacted model the smaller form.

    Embeddings and output projections stay: their rows are tokens, and a vocabulary may grow.

    Args:
        model: Changed in place, unless it is itself a layer.

    Returns:
        The model; it computes what it did, to rounding.

    Raises:
        LowRankError: A factor is not finite.
    """
    find_head: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = find_head()
    made = {
        id(module): _pivoted_layer(name, module)
        for name, module in model.named_modules()
        if type(module) is LowRankLinear and module is not head and module.rank
    }
    model = replace_layers(model, lambda _, module: made.get(id(module)))
    _absorb_orders(model)
    return model


@torch.no_grad()
def _pivoted_layer(name: str, layer: LowRankLinear) -> PivotedLinear:
    up, down = layer.weight.double(), layer.projection.double()
    if not (torch.isfinite(up).all() and torch.isfinite(down).all()):
        raise LowRankError(f"layer {name!r}: its factors must be finite")
    # of orthonormal columns: what components weigh has no part in which rows are independent
    basis = torch.linalg.qr(up).Q
    pivots = pivot_rows(basis)
    stored = torch.cat((pivots, _others(pivots, len(up))))
    small = PivotedLinear(
        layer.in_features,
        layer.out_features,
        layer.rank,
        bias=layer.bias is not None,
        device="meta",
        dtype=layer.weight.dtype,
    ).to_empty(device=layer.weight.device)
    small.weight.copy_(_combinations(basis, stored[len(pivots) :], pivots))
    small.projection.copy_(up[pivots] @ down)
    assert small.order is not None
    small.order.copy_(stored.argsort())
    if layer.bias is not None:
        small.bias.copy_(layer.bias[stored])
    return small.train(layer.training)


def pivot_rows(basis: Tensor, growth: float = GROWTH) -> Tensor:
    """Rows in which all others can be written with small numbers.

    Pivoted QR decomposition, then exchanges as long as a coefficient is larger than the bound;
    each of them enlarges the volume of the pivots by more than that, so they end (Goreinov et
    al. 2010, "How to find a good submatrix").

    Args:
        basis: Orthonormal columns, float64 [rows, rank], rank <= rows.
        growth: Bound on the coefficients, > 1.

    Returns:
        Indices, int64 [rank], in no order.
    """
    # here, so that whoever only runs models needs no SciPy
    from scipy.linalg import qr

    order = qr(basis.t().cpu().numpy(), mode="r", pivoting=True)[1]
    pivots = torch.from_numpy(order[: basis.shape[1]]).long().to(basis.device)
    written = _combinations(basis, torch.arange(len(basis), device=basis.device), pivots)
    while True:
        row, column = divmod(int(written.abs().argmax()), len(pivots))
        largest = written[row, column].clone()
        if not largest.abs() > growth:
            return pivots
        pivots[column] = row
        change = written[row].clone()
        change[column] -= 1
        written -= torch.outer(written[:, column], change) / largest


def _combinations(basis: Tensor, rows: Tensor, pivots: Tensor) -> Tensor:
    """C with basis[rows] = C basis[pivots], [rows, rank]."""
    return torch.linalg.solve(basis[pivots], basis[rows], left=False)


def _others(pivots: Tensor, rows: int) -> Tensor:
    """Indices that are no pivots, rising."""
    other = torch.ones(rows, dtype=torch.bool, device=pivots.device)
    other[pivots] = False
    return other.nonzero().flatten()


def _absorb_orders(model: nn.Module) -> None:
    """Let the second matrix of feed-forward blocks read neurons in the order in which they come:
    between the two is an activation of single numbers. Query, key and value keep their order, which
    the heads depend on, and what is added to the residual stream does too."""
    names = [id(module) for _, module in model.named_modules(remove_duplicate=False)]
    for _, module in model.named_modules():
        form = form_of(module)
        if form is None or form.heads is not None or len(form.producers) > 1:
            continue
        producer = module.get_submodule(form.producers[0])
        consumer = module.get_submodule(form.consumer)
        # one that is also elsewhere has other readers
        alone = names.count(id(producer)) == names.count(id(consumer)) == 1
        if alone and type(producer) is PivotedLinear and producer.order is not None:
            matrix = _matrix_of_inputs(consumer)
            if matrix is not None:
                _permute(matrix, producer.order.long().argsort(), 0 if is_conv1d(consumer) else 1)
                producer.order = None


def _matrix_of_inputs(consumer: nn.Module) -> nn.Parameter | None:
    """What multiplies a layer's inputs; None for a layer that may not be touched."""
    if type(consumer) in (LowRankLinear, PivotedLinear):
        matrix = consumer.projection
    elif type(consumer) is nn.Linear or is_conv1d(consumer):
        matrix = consumer.weight
    else:
        return None
    assert isinstance(matrix, nn.Parameter)
    return matrix


@torch.no_grad()
def _permute(matrix: nn.Parameter, order: Tensor, dim: int) -> None:
    matrix.copy_(matrix.index_select(dim, order))
