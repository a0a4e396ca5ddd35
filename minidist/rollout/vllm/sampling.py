"""What vLLM is asked to sample: the parameters of its requests, made from `Sampling` in one place."""

from collections.abc import Sequence
from typing import Any

from minidist.rollout.ngrams import OPTION
from minidist.types import Sampling


def sampling_params(sampling: Sampling, stops: Sequence[int], **fields: Any) -> Any:
    """vLLM's SamplingParams of a request that draws as `sampling` says, and ends with any of `stops` and with no other id.

    fields: further parameters, and those that differ from `sampling`, by name.
    """
    from vllm import SamplingParams

    drawn: dict[str, Any] = {"temperature": sampling.temperature, "top_p": sampling.top_p}
    drawn["max_tokens"] = sampling.max_new_tokens
    if sampling.no_repeat_ngram_size is not None:
        drawn["extra_args"] = {OPTION: sampling.no_repeat_ngram_size}
    # vLLM would add the ids at which the model's own generation_config ends.
    ending: dict[str, Any] = {"stop_token_ids": list(stops), "ignore_eos": True, "detokenize": False}
    return SamplingParams(**drawn | ending | fields)
