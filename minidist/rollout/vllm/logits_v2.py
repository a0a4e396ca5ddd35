"""What vLLM's second model runner does to logits before a token is drawn; it loads these classes by name where it samples.

Axes: B rows of logits, V classes, R requests at most at one time, S tokens of a sequence, A places where an n-gram may begin.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcessor, LogitsProcRequestState

from minidist.rollout.ngrams import OPTION
from minidist.rollout.vllm.processors import shared_ids


class SharedVocabulary(LogitsProcessor):
    """No request writes an id that student and teacher do not share: see `processors.load`."""

    def __init__(self, vllm_config: Any, req_states: LogitsProcRequestState) -> None:
        self._shared = shared_ids(vllm_config, req_states.device)

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        return self._shared.keep(logits)


class NoRepeatNgram(LogitsProcessor):
    """Applies to requests whose `extra_args` have the key OPTION: the size of the n-grams that may occur once.

    All on the device, which has the tokens: the process does not wait for the last one.
    """

    def __init__(self, vllm_config: Any, req_states: LogitsProcRequestState) -> None:
        self._tokens_RS = req_states.all_token_ids
        self._sizes_R = np.zeros(req_states.max_num_reqs, dtype=np.int64)
        """Size of each request; 0: it may repeat n-grams."""
        self._on_device_R = torch.zeros(req_states.max_num_reqs, dtype=torch.int64, device=req_states.device)

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        self._sizes_R[req_idx] = (sampling_params.extra_args or {}).get(OPTION, 0)
        return bool(self._sizes_R[req_idx])

    def apply_staged_writes(self) -> None:
        self._on_device_R.copy_(torch.from_numpy(self._sizes_R))

    def apply(self, logits: Tensor, ctx: LogitsContext) -> Tensor:
        sizes = set(self._sizes_R[ctx.idx_mapping_np].tolist()) - {0}
        if not sizes:
            return logits
        slots_B = ctx.expanded_idx_mapping.long()
        tokens_BS = self._tokens_RS.gpu[slots_B, : int(ctx.seq_lens_upper_bound_np.max())].long()
        for size in sizes:
            # No n-gram fits into a length of 0.
            lengths_B = torch.where(self._on_device_R[slots_B] == size, ctx.pos + 1, 0)
            ban_repeats(logits, tokens_BS, lengths_B, size)
        return logits


def ban_repeats(logits_BV: Tensor, tokens_BS: Tensor, lengths_B: Tensor, size: int) -> None:
    """Set to -inf, in each row, the ids of `rollout.ngrams.completions`.

    Args:
        tokens_BS: prompts and answers so far, int64; whatever stands after a row's length is ignored.
        lengths_B: tokens of each row.
        size: of the n-grams.
    """
    places = tokens_BS.shape[1] - size + 1
    if places < 1:
        return
    firsts_B1 = lengths_B.long()[:, None] - size + 1  # of the n-gram that the next token completes
    same_BA = torch.arange(places, device=tokens_BS.device) < firsts_B1
    for offset in range(size - 1):
        last_B1 = tokens_BS.gather(1, (firsts_B1 + offset).clamp(min=0))
        same_BA &= tokens_BS[:, offset : offset + places] == last_B1
    # The least of all places that have the same id: -inf if it completes a repeated n-gram at one of them.
    bounds_BA = torch.full_like(same_BA, float("inf"), dtype=logits_BV.dtype).masked_fill_(same_BA, float("-inf"))
    ids_BA = tokens_BS[:, size - 1 :].clamp(0, logits_BV.shape[1] - 1)
    logits_BV.scatter_reduce_(1, ids_BA, bounds_BA, "amin")
