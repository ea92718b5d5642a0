"""Adaptive embedding and softmax against a dense float64 reference of the whole vocabulary."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lowrank.distillation import soft_loss
from lowrank.models.adaptive import AdaptiveEmbedding, AdaptiveSoftmax, cluster_dims

WIDTH = 12
CUTS = [(0, 9, 20, 60), (0, 5, 30), (0, 17), (0, 1, 2, 3, 40)]
every_cut = pytest.mark.parametrize("edges", CUTS)


def make(edges, tied=True, bias=True, reduction=2, seed=0):
    torch.manual_seed(seed)
    dims = cluster_dims(edges, WIDTH, reduction)
    table = AdaptiveEmbedding(edges, dims, WIDTH)
    softmax = AdaptiveSoftmax(edges, dims, WIDTH, table if tied else None, bias)
    softmax.reset_parameters(0.5)
    for head in softmax.clusters:
        if bias:
            nn.init.normal_(head.bias)
    return table.double(), softmax.double()


def hidden(rows=40, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, WIDTH, generator=generator, dtype=torch.float64)


def ids(tokens, rows=40, seed=2):
    return torch.randint(0, tokens, (rows,), generator=torch.Generator().manual_seed(seed))


def dense_table(table):
    """E as one matrix, [tokens, width]."""
    return torch.cat([c.weight @ c.projection for c in table.clusters])


def dense_log_probs(softmax, states):
    """From whole matrices, row by row, in float64."""
    first, parts = softmax.edges[1], []
    matrices = [c.weight @ c.projection for c in softmax.clusters]
    scores = [states @ m.t() for m in matrices]
    if softmax.clusters[0].bias is not None:
        scores = [s + c.bias for s, c in zip(scores, softmax.clusters, strict=True)]
    entries = scores[0]
    if softmax.cluster_weight is not None:
        shift = 0 if softmax.cluster_bias is None else softmax.cluster_bias
        entries = torch.cat([entries, states @ softmax.cluster_weight.t() + shift], 1)
    joint = entries.exp() / entries.exp().sum(1, keepdim=True)
    parts.append(joint[:, :first])
    for number, score in enumerate(scores[1:]):
        within = score.exp() / score.exp().sum(1, keepdim=True)
        parts.append(joint[:, first + number, None] * within)
    return torch.cat(parts, 1).log()


def test_dims_fall_and_never_exceed_the_tokens():
    assert cluster_dims((0, 100, 1000, 5000), 64, 4) == [64, 16, 4]
    assert cluster_dims((0, 100, 103, 5000, 9000), 64, 8) == [64, 3, 1, 1]
    assert cluster_dims((0, 7), 64, 4) == [7]


@every_cut
def test_vectors_are_rows_of_the_product(edges):
    table, _ = make(edges)
    tokens = ids(edges[-1]).view(5, 8)
    torch.testing.assert_close(table(tokens), dense_table(table)[tokens])


@every_cut
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_log_probabilities_are_those_of_the_full_softmax(edges, tied, bias):
    _, softmax = make(edges, tied, bias)
    states = hidden()
    wanted = dense_log_probs(softmax, states)
    found = softmax(states)
    assert found.shape == (40, edges[-1])
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(40), rtol=1e-5, atol=1e-5)


@every_cut
@pytest.mark.parametrize("tied", [True, False])
def test_the_loss_and_its_gradients_are_those_of_the_full_softmax(edges, tied):
    _, softmax = make(edges, tied)
    states = hidden().requires_grad_()
    targets = ids(edges[-1])
    targets[3] = targets[7] = -100
    parameters = list(softmax.parameters())
    loss = softmax.loss(states, targets)
    wanted = F.nll_loss(dense_log_probs(softmax, states), targets)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    found = torch.autograd.grad(loss, [states, *parameters])
    for one, other in zip(found, torch.autograd.grad(wanted, [states, *parameters]), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_gradient_of_a_tied_cluster_is_that_of_both_uses():
    edges = (0, 9, 20, 60)
    table, softmax = make(edges)
    other_table, other = make(edges, tied=False)
    for mine, theirs, free in zip(
        table.clusters, other_table.clusters, other.clusters, strict=True
    ):
        for name in ("weight", "projection"):
            getattr(theirs, name).data.copy_(getattr(mine, name).data)
            getattr(free, name).data.copy_(getattr(mine, name).data)
    for head, free in zip(softmax.clusters, other.clusters, strict=True):
        free.bias.data.copy_(head.bias.data)
    other.cluster_weight.data.copy_(softmax.cluster_weight.data)
    tokens, targets = ids(60), ids(60, seed=5)
    softmax.loss(torch.tanh(table(tokens)), targets).backward()
    other.loss(torch.tanh(other_table(tokens)), targets).backward()
    for mine, theirs, free in zip(
        table.clusters, other_table.clusters, other.clusters, strict=True
    ):
        for name in ("weight", "projection"):
            parts = [getattr(theirs, name).grad, getattr(free, name).grad]
            assert all(part.abs().max() > 0 for part in parts)
            torch.testing.assert_close(getattr(mine, name).grad, sum(parts))


@pytest.mark.parametrize("cluster", [0, 1, 2])
@pytest.mark.parametrize("tied", [True, False])
def test_clusters_that_a_batch_lacks_get_gradients_of_zero(cluster, tied):
    """Data-parallel training stops at a parameter without a gradient."""
    edges = (0, 9, 20, 60)
    table, softmax = make(edges, tied)
    tokens = edges[cluster] + ids(edges[cluster + 1] - edges[cluster])
    softmax.loss(torch.tanh(table(tokens)), tokens).backward()
    for module in (table, softmax):
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, name
    for number, head in enumerate(softmax.clusters):
        # cluster 0 is part of the head, which every place needs
        used = number in (0, cluster)
        assert bool(head.weight.grad.any()) == used
        if not tied:
            assert bool(table.clusters[number].weight.grad.any()) == (number == cluster)


def test_a_tail_is_computed_for_its_own_targets_only():
    edges = (0, 9, 20, 60)
    _, softmax = make(edges)
    rows = {}
    for number, head in enumerate(softmax.clusters):
        head.register_forward_hook(lambda m, args, out, n=number: rows.update({n: len(args[0])}))
    targets = torch.tensor([0, 3, 15, 44, 45, 59, -100, 2])
    softmax.loss(hidden(8), targets)
    assert rows == {0: 7, 1: 1, 2: 3}


@every_cut
@pytest.mark.parametrize("k", [1, 3, 16])
def test_the_top_is_that_of_all(edges, k):
    _, softmax = make(edges)
    states = 2 * hidden(60)
    values, tokens = softmax.top_k(states, k)
    wanted = softmax(states).topk(k)
    torch.testing.assert_close(values, wanted.values)
    torch.testing.assert_close(softmax(states).gather(1, tokens), values)
    assert all(len(set(row)) == k for row in tokens.tolist())


def test_the_top_leaves_out_clusters_that_cannot_hold_it():
    edges = (0, 9, 20, 60)
    _, softmax = make(edges)
    with torch.no_grad():
        softmax.cluster_bias.copy_(torch.tensor([0.0, -50.0]))
    seen = []
    softmax.clusters[2].register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    softmax.top_k(hidden(), 3)
    assert seen == [0]


@pytest.mark.parametrize("bias", [True, False])
def test_a_cluster_without_components_is_its_biases(bias):
    edges = (0, 9, 20, 60)
    dims = [12, 6, 0]
    table = AdaptiveEmbedding(edges, dims, WIDTH)
    softmax = AdaptiveSoftmax(edges, dims, WIDTH, table, bias)
    if bias:
        nn.init.normal_(softmax.clusters[2].bias)
    assert not table(torch.tensor([25, 59])).any()
    states = hidden().float()
    found = softmax(states)
    inside = found[:, 20:] - found[:, 20:].logsumexp(1, keepdim=True)
    even = torch.full((40,), -math.log(40))
    wanted = F.log_softmax(softmax.clusters[2].bias, 0) if bias else even
    torch.testing.assert_close(inside, wanted.expand(40, 40), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(40))
    loss = softmax.loss(torch.tanh(table(ids(60))), ids(60, seed=4))
    loss.backward()
    for module in (table, softmax):
        for name, parameter in module.named_parameters():
            if parameter.requires_grad:
                assert parameter.grad is not None, name
            else:
                assert parameter.numel() == 0


def needed_of(softmax, states, targets):
    return [logits for logits, _ in softmax.needed(states, targets)]


@every_cut
@pytest.mark.parametrize("bias", [True, False])
def test_a_teacher_whose_words_are_the_targets_gives_the_whole_divergence(edges, bias):
    """Each word once, counted by how probable the teacher finds it: KL over the vocabulary."""
    (_, student), (_, teacher) = (make(edges, bias=bias, seed=seed) for seed in (0, 5))
    state, seen = hidden(1), hidden(1, seed=8)
    tokens = edges[-1]
    log_probs = dense_log_probs(teacher, seen)[0]
    divergences = []
    for token in range(tokens):
        target = torch.tensor([token])
        wanted = needed_of(teacher, seen, target)
        divergences.append(student.loss(state, target, wanted, weight=1.0))
    found = (log_probs.exp() * torch.stack(divergences)).sum()
    whole = (log_probs.exp() * (log_probs - dense_log_probs(student, state)[0])).sum()
    assert found.item() == pytest.approx(whole.item(), rel=1e-5)


@every_cut
def test_weight_and_temperature_are_those_of_plain_distillation(edges):
    """In one cluster, and in the head, of which the others are entries."""
    (_, student), (_, teacher) = (make(edges, seed=seed) for seed in (0, 5))
    states, seen = hidden(), hidden(seed=8)
    targets = ids(edges[1])  # of the head alone
    wanted = needed_of(teacher, seen, targets)
    loss = student.loss(states, targets, wanted, weight=0.3, temperature=2.0)
    heads = [softmax._head(h) for softmax, h in ((student, states), (teacher, seen))]
    plain = 0.7 * F.cross_entropy(heads[0], targets) + 0.3 * soft_loss(*heads, 2.0)
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)


@every_cut
def test_a_student_that_is_its_teacher_has_no_divergence(edges):
    _, softmax = make(edges)
    states, targets = hidden(), ids(edges[-1])
    targets[3] = -100
    wanted = needed_of(softmax, states, targets)
    apart = softmax.loss(states, targets, wanted, weight=1.0, temperature=3.0)
    assert abs(apart.item()) < 1e-6
    half = softmax.loss(states, targets, wanted, weight=0.5)
    assert half.item() == pytest.approx(0.5 * softmax.loss(states, targets).item(), rel=1e-6)


def test_of_a_tail_no_more_is_computed_than_its_targets():
    _, softmax = make((0, 9, 20, 60))
    targets = torch.tensor([1, 15, -100, 40, 16, 2])
    shapes = [tuple(logits.shape) for logits in needed_of(softmax, hidden(6), targets)]
    assert shapes == [(5, 9 + 2), (2, 11), (1, 40)]
