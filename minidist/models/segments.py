"""Attention of rows that lie end to end, where the device has no kernel for it: rows of like length attend side by side.

All other layers of the model see each token once, without padding. The rows of one prompt may share its tokens: a segment then
follows another one, and sees its keys before its own.

Axes: N tokens of the packed row, H heads, E numbers of a head, G segments of a group, Q and J positions of queries and of keys.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from minidist.data.batching import MicroBatch
from minidist.types import Array

NAME = "minidist_segments"
"""The attention's name in transformers."""
_SHORT, _ALIKE = 32, 0.8
"""Rows of a group are shorter than `_SHORT` tokens, or as long as this part of the longest at least."""


@dataclass(frozen=True)
class Segments:
    """How N tokens that lie end to end attend, causally within their segment.

    length: of each segment, int64 [R]; the segments follow one another. before: index of the segment whose tokens come before
    its own, int64 [R]; -1 where none does. That segment itself follows none.
    """

    length: Array
    before: Array

    def marker(self) -> Tensor:
        """The segments in the place of a model's attention mask, int64 [1, 1, 2, R]: transformers hands a mask of four axes
        unchanged to every layer, and to a layer that is computed again in the backward pass."""
        return torch.from_numpy(np.stack([self.length, self.before]))[None, None]


def share_prompts(micro: MicroBatch) -> tuple[Segments, Array, Array]:
    """The segments of a micro-batch's rows; a prompt that several rows begin with is one segment, which their answers follow.

    A row's prompt ends with the token whose output predicts the row's first label. Returns also the tokens that are computed,
    as indices of the micro-batch's N tokens, and the index of each of the N among the computed ones.
    """
    starts = np.flatnonzero(micro.positions == 0)
    ends = np.append(starts[1:], len(micro.tokens))
    borders = ends.copy()
    labelled, first = np.unique(micro.sequence[micro.outputs], return_index=True)
    borders[labelled] = micro.outputs[first] + 1
    rows = list(zip(starts.tolist(), borders.tolist(), ends.tolist(), strict=True))
    prompts: dict[bytes, list[tuple[int, int, int]]] = {}
    for start, border, end in rows:
        prompts.setdefault(micro.tokens[start:border].tobytes(), []).append((start, border, end))
    read: list[Array] = []
    before: list[int] = []
    place_N = np.zeros(len(micro.tokens), dtype=np.int64)
    for members in prompts.values():
        start, border, end = members[0]
        prompt = len(read)
        read.append(np.arange(start, end if len(members) == 1 else border))
        before.append(-1)
        if len(members) > 1:
            answers = [np.arange(border, end) for _, border, end in members if border < end]
            read += answers
            before += [prompt] * len(answers)
    order = np.concatenate(read)
    place_N[order] = np.arange(len(order))
    for (first_start, first_border, _), *others in prompts.values():
        for start, border, _ in others:
            place_N[start:border] = place_N[first_start:first_border]
    return Segments(np.array([len(each) for each in read]), np.array(before)), order, place_N


def use_segments(model: PreTrainedModel) -> bool:
    """Let the model attend by segments where its mask is a `Segments.marker`, and as before elsewhere. False for a model
    whose attention is not torch's."""
    if model.config._attn_implementation != "sdpa":
        return model.config._attn_implementation == NAME
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation(NAME)
    return True


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention function: [1, H, N, E] queries, keys and values (of fewer heads, perhaps) to [1, N, H, E].

    options: as transformers passes them; `scaling`, `dropout` and `sliding_window` are honoured.
    """
    if attention_mask is None or attention_mask.dtype != torch.int64:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    scale, window, dropout = options.get("scaling"), options.get("sliding_window"), options.get("dropout", 0.0)
    groups = _groups(attention_mask.numpy().tobytes(), window)
    # [N, H, E] as the projections left them: rows of memory that are copied whole.
    query_NHE, key_NHE, value_NHE = (each[0].transpose(0, 1) for each in (query, key, value))
    queries = groups.queries(query_NHE)
    keys, values = groups.keys(key_NHE), groups.keys(value_NHE)
    parts = []
    for group, query_GHQE, key_GHJE, value_GHJE in zip(groups.members, queries, keys, values, strict=True):
        done_GHQE = scaled_dot_product_attention(
            query_GHQE,
            key_GHJE,
            value_GHJE,
            attn_mask=None if group.mask_GQJ is None else group.mask_GQJ[:, None],
            is_causal=group.mask_GQJ is None,
            dropout_p=dropout,
            scale=scale,
            enable_gqa=key.shape[1] != query.shape[1],
        )
        parts.append(done_GHQE.transpose(1, 2).flatten(0, 1))
    output_NHE = parts[0] if len(parts) == 1 else torch.cat(parts)
    return (output_NHE if groups.order_N is None else output_NHE.index_select(0, groups.order_N))[None], None


@dataclass(frozen=True)
class _Group:
    """Segments that attend side by side, padded on the right: the indices of their tokens, and which keys a query sees. No
    mask: those up to its own position."""

    query_GQ: Tensor
    key_GJ: Tensor
    mask_GQJ: Tensor | None


@dataclass(frozen=True)
class _Taking:
    """Tokens of all groups, taken at once, since each taking has a gradient of all N tokens. No index: they lie in order."""

    shapes: list[torch.Size]
    index: Tensor | None

    @classmethod
    def of(cls, tables: Sequence[Tensor], tokens: int) -> "_Taking":
        index = torch.cat([table.flatten() for table in tables])
        return cls([table.shape for table in tables], None if torch.equal(index, torch.arange(tokens)) else index)

    def __call__(self, tokens_NHE: Tensor) -> list[Tensor]:
        """[G, H, Q, E] of each group."""
        taken = tokens_NHE if self.index is None else tokens_NHE.index_select(0, self.index)
        parts = taken.split([shape.numel() for shape in self.shapes])
        return [part.unflatten(0, shape).transpose(1, 2) for part, shape in zip(parts, self.shapes, strict=True)]


@dataclass(frozen=True)
class _Groups:
    """The groups of all segments, the queries and keys of each, and where each of the N tokens lies in their outputs, one after
    another (None: in order)."""

    members: list[_Group]
    queries: _Taking
    keys: _Taking
    order_N: Tensor | None

    @classmethod
    def of(cls, members: list[_Group], order_N: Tensor) -> "_Groups":
        queries, keys = ([getattr(group, name) for group in members] for name in ("query_GQ", "key_GJ"))
        takings = _Taking.of(queries, len(order_N)), _Taking.of(keys, len(order_N))
        outputs = sum(index_GQ.numel() for index_GQ in queries)
        return cls(members, *takings, None if torch.equal(order_N, torch.arange(outputs)) else order_N)


@lru_cache(maxsize=64)
def _groups(marker: bytes, window: int | None) -> _Groups:
    length, before = np.frombuffer(marker, dtype=np.int64).reshape(2, -1)
    start = np.cumsum(length) - length
    keys = length + np.where(before < 0, 0, length[before])
    groups, place, offset = [], np.zeros(int(length.sum()), dtype=np.int64), 0
    for members in _alike(keys, before >= 0):
        width = int(length[members].max())
        for line, segment in enumerate(members):
            place[start[segment] : start[segment] + length[segment]] = offset + line * width + np.arange(length[segment])
        offset += len(members) * width
        groups.append(_group(members, length, before, start, window))
    return _Groups.of(groups, torch.from_numpy(place))


def _alike(keys: Array, follows: Array) -> list[list[int]]:
    """Indices of segments in groups with about as many keys each; those that follow another segment in groups of their own."""
    groups: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(keys)), key=lambda index: (bool(follows[index]), -int(keys[index]))):
        if groups and follows[index] == follows[groups[-1][0]] and (longest <= _SHORT or keys[index] >= _ALIKE * longest):
            groups[-1].append(index)
        else:
            groups.append([index])
            longest = int(keys[index])
    return groups


def _group(members: Sequence[int], length: Array, before: Array, start: Array, window: int | None) -> _Group:
    shared = np.array([length[before[each]] if before[each] >= 0 else 0 for each in members])
    queries = [np.arange(start[each], start[each] + length[each]) for each in members]
    prefixes = [
        np.arange(start[before[each]], start[before[each]] + count) for each, count in zip(members, shared, strict=True)
    ]
    query_GQ = _table(queries)
    key_GJ = _table([np.concatenate(pair) for pair in zip(prefixes, queries, strict=True)]) if shared.any() else query_GQ
    if not shared.any() and (window is None or query_GQ.shape[1] <= window):
        return _Group(query_GQ, key_GJ, None)
    at_GQJ = torch.from_numpy(shared)[:, None, None] + torch.arange(query_GQ.shape[1])[:, None]
    key_J = torch.arange(key_GJ.shape[1])
    seen = (key_J <= at_GQJ) if window is None else (key_J <= at_GQJ) & (key_J > at_GQJ - window)
    return _Group(query_GQ, key_GJ, seen)


def _table(rows: Sequence[Array]) -> Tensor:
    """The rows as one int64 table, filled up on the right with their own first index."""
    width = max(map(len, rows))
    return torch.from_numpy(np.stack([np.pad(row, (0, width - len(row)), constant_values=row[0]) for row in rows]))
