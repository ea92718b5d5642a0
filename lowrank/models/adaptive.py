"""Adaptive embedding and adaptive softmax: a vocabulary in clusters, the rarer the narrower.

Grave, Joulin, Cissé, Grangier, Jégou 2017 (arXiv 1609.04309) for the softmax, Baevski and Auli 2019
(arXiv 1809.10853) for the embedding. Token ids are sorted by frequency, most frequent first, and
cut into clusters. Cluster i of V_i tokens has d_i dimensions: E_i [V_i, d_i] and O_i [d_i, d], the
factors of `lowrank.embedding`.

    p(w) = p(w | head)                     for w in cluster 0
    p(w) = p(cluster i | head) p(w | i)    for w in cluster i > 0

The head's softmax is over cluster 0 and one entry for each other cluster.

A cluster that pruning left without components has zero vectors at the input; its words keep the
probabilities that their biases give, those of a unigram model once trained, or equal ones in a
model without biases. The cluster's own entry in the head is not pruned.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lowrank.distillation import soft_loss
from lowrank.embedding import LowRankEmbedding, LowRankHead

IGNORED = -100
"""Target of a place that is not predicted, as in torch's cross-entropy."""


def cluster_dims(edges: Sequence[int], hidden_size: int, reduction: int) -> list[int]:
    """d_i = d / reduction^i, at least 1 and at most the tokens of the cluster.

    Args:
        edges: First id of every cluster, and the size of the vocabulary.
        hidden_size: d.
        reduction: By how much each cluster is narrower than the one before; 4 in Baevski and Auli.
    """
    return [
        max(1, min(hidden_size // reduction**i, end - start))
        for i, (start, end) in enumerate(pairwise(edges))
    ]


class AdaptiveEmbedding(nn.Module):
    """Vectors of d dimensions from tables of fewer.

    Args:
        edges: First id of every cluster, and the size of the vocabulary.
        dims: d_i of every cluster.
        hidden_size: d.
    """

    def __init__(self, edges: Sequence[int], dims: Sequence[int], hidden_size: int) -> None:
        super().__init__()
        self.edges, self.hidden_size = tuple(edges), hidden_size
        self.clusters = nn.ModuleList()
        for (start, end), dim in zip(pairwise(edges), dims, strict=True):
            table = LowRankEmbedding(end - start, hidden_size, dim)
            table.first_token = start
            self.clusters.append(table)

    def forward(self, input: Tensor) -> Tensor:
        """Token ids [*batch] -> [*batch, hidden_size].

        Every cluster is called, one that no token is in with none: its parameters get gradients of
        zero, without which data-parallel training would stop.
        """
        flat = input.flatten()
        places = list(_places(flat, self.edges))
        vectors = [
            table(flat[place] - start)
            for table, place, start in zip(self.clusters, places, self.edges, strict=False)
        ]
        joined = torch.cat(vectors)
        out = joined.new_empty(joined.shape).index_copy(0, torch.cat(places), joined)
        return out.unflatten(0, input.shape)


class AdaptiveSoftmax(nn.Module):
    """Distribution over the vocabulary, of which the loss computes only what it needs.

    Args:
        edges: First id of every cluster, and the size of the vocabulary.
        dims: d_i of every cluster.
        hidden_size: d.
        embedding: Whose factors to share; own ones by default.
        bias: Whether tokens, and clusters in the head, have one.
    """

    def __init__(
        self,
        edges: Sequence[int],
        dims: Sequence[int],
        hidden_size: int,
        embedding: AdaptiveEmbedding | None = None,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.edges = tuple(edges)
        self.clusters = nn.ModuleList()
        for number, ((start, end), dim) in enumerate(zip(pairwise(edges), dims, strict=True)):
            if embedding is None:
                head = LowRankHead(hidden_size, end - start, dim, bias)
                head.first_token = start
            else:
                table = embedding.clusters[number]
                assert isinstance(table, LowRankEmbedding)
                shift = nn.Parameter(torch.zeros(end - start)) if bias else None
                head = LowRankHead.tied(table, shift)
            self.clusters.append(head)
        tails = len(dims) - 1
        # no nn.Linear, which would be one more small matrix to prune
        self.cluster_weight = nn.Parameter(torch.empty(tails, hidden_size)) if tails else None
        self.cluster_bias = nn.Parameter(torch.zeros(tails)) if tails and bias else None
        self.reset_parameters()

    def reset_parameters(self, std: float = 0.02) -> None:
        """Draw the clusters' entries in the head; the clusters draw their own."""
        if self.cluster_weight is not None:
            nn.init.normal_(self.cluster_weight, std=std)
        if self.cluster_bias is not None:
            nn.init.zeros_(self.cluster_bias)

    def needed(self, hidden: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """What the targets need of the softmax: the head, and each tail for its own targets only.

        Args:
            hidden: [n, hidden_size].
            targets: Token ids, [n]; -100 is not predicted.

        Yields:
            Logits, float32, and the targets among them: of the head [m, entries] for the m places
            that are predicted, then of every other cluster i [m_i, V_i].
        """
        wanted = targets != IGNORED
        hidden, targets = hidden[wanted], targets[wanted]
        places = list(_places(targets, self.edges))[1:]
        in_head = targets.clone()
        for number, place in enumerate(places):
            in_head[place] = self.edges[1] + number
        yield self._head(hidden), in_head
        for number, place in enumerate(places, start=1):
            yield self.clusters[number](hidden[place]).float(), targets[place] - self.edges[number]

    def loss(
        self,
        hidden: Tensor,
        targets: Tensor,
        teacher: Sequence[Tensor] | None = None,
        weight: float = 0.0,
        temperature: float = 1.0,
    ) -> Tensor:
        """Mean nats per predicted token; with a teacher (1 - w) of it + w tau^2 KL(teacher ||
        student).

        The divergence of a whole vocabulary is that of the head, and that within each tail times
        the teacher's probability of the tail. For that stands here whether the target is in it: so
        a tail is computed for its own targets only, and where targets follow the teacher the mean
        is the divergence. So for tau = 1; else the head and each tail have that temperature.

        Args:
            hidden: [n, hidden_size].
            targets: Token ids, [n]; -100 is not predicted.
            teacher: Its logits, as `needed` gives them for the same targets and clusters.
            weight: w, of the divergence, in [0, 1].
            temperature: tau > 0.
        """
        found = list(self.needed(hidden, targets))
        num_targets = len(found[0][1])
        none = found[0][0].new_zeros(())
        nats = sum((F.cross_entropy(*part, reduction="sum") for part in found), none)
        if teacher is None:
            return nats / num_targets
        pairs = zip(found, teacher, strict=True)
        apart = sum((soft_loss(own, its, temperature, "sum") for (own, _), its in pairs), none)
        return ((1 - weight) * nats + weight * apart) / num_targets

    def forward(self, hidden: Tensor) -> Tensor:
        """Log-probabilities of the whole vocabulary: [*batch, hidden_size] -> [*batch, tokens],
        float32."""
        head = F.log_softmax(self._head(hidden), -1)
        first = self.edges[1]
        parts = [head[..., :first]]
        for number, cluster in enumerate(self.clusters):
            if number:
                inside = F.log_softmax(cluster(hidden).float(), -1)
                entry = first + number - 1
                parts.append(head[..., entry : entry + 1] + inside)
        return torch.cat(parts, -1)

    def top_k(self, hidden: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """The k most probable tokens, without the clusters that cannot hold any of them.

        No word is more probable than its cluster, so a tail cluster is computed only for rows whose
        k-th best so far is less probable than it.

        Args:
            hidden: [n, hidden_size].
            k: At most the size of the vocabulary.

        Returns:
            Log-probabilities, falling, and token ids; [n, k] each.
        """
        head = F.log_softmax(self._head(hidden), -1)
        first = self.edges[1]
        best, tokens = head[:, :first].topk(min(k, first))
        missing = k - best.shape[1]
        best = F.pad(best, (0, missing), value=-torch.inf)
        tokens = F.pad(tokens, (0, missing))
        for number, cluster in enumerate(self.clusters):
            if not number:
                continue
            share = head[:, first + number - 1]
            rows = (share > best[:, -1]).nonzero().flatten()
            inside = share[rows, None] + F.log_softmax(cluster(hidden[rows]).float(), -1)
            ids = torch.arange(*self.edges[number : number + 2], device=tokens.device)
            values = torch.cat([best[rows], inside], 1)
            names = torch.cat([tokens[rows], ids.expand(len(rows), -1)], 1)
            values, order = values.topk(k)
            best = best.index_copy(0, rows, values)
            tokens = tokens.index_copy(0, rows, names.gather(1, order))
        return best, tokens

    def _head(self, hidden: Tensor) -> Tensor:
        """Logits of cluster 0 and of the other clusters, float32."""
        logits = self.clusters[0](hidden)
        if self.cluster_weight is not None:
            entries = F.linear(hidden, self.cluster_weight, self.cluster_bias)
            logits = torch.cat([logits, entries.to(logits.dtype)], -1)
        return logits.float()


def _places(ids: Tensor, edges: Sequence[int]) -> Iterator[Tensor]:
    """For every cluster the places of its ids, [n_i] each."""
    for start, end in pairwise(edges):
        yield ((ids >= start) & (ids < end)).nonzero().flatten()
