"""What vLLM's first model runner does to logits before a token is drawn; it loads these classes by name where it samples."""

from functools import partial
from typing import Any

import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor, BatchUpdate, LogitsProcessor

from minidist.rollout.ngrams import OPTION, completions
from minidist.rollout.vllm.processors import shared_ids


class SharedVocabulary(LogitsProcessor):
    """No request writes an id that student and teacher do not share: see `processors.load`."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self._shared = shared_ids(vllm_config, device)

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """The same for all requests."""

    def apply(self, logits: Tensor) -> Tensor:
        return self._shared.keep(logits)


class NoRepeatNgram(AdapterLogitsProcessor):
    """Applies to requests whose `extra_args` have the key OPTION: the size of the n-grams that may occur once."""

    def is_argmax_invariant(self) -> bool:
        return False

    def new_req_logits_processor(self, params: SamplingParams) -> "partial[Tensor] | None":
        size = (params.extra_args or {}).get(OPTION)
        return None if size is None else partial(_ban, size)


def _ban(size: int, prompt: list[int], written: list[int], logits: Tensor) -> Tensor:
    logits[list(completions([*prompt, *written], size))] = float("-inf")
    return logits
