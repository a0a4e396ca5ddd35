"""Blocks repeated n-grams in vLLM, which loads this module by name in the process that samples."""

from functools import partial

from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import AdapterLogitsProcessor

from minidist.rollout.ngrams import OPTION, completions


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
