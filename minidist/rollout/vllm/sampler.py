"""Sampling in vLLM on a CPU: one uniform number a row in place of one exponential a class, and the log-probability with it.

vLLM itself divides the probabilities by exponential noise of every class, and takes log-probabilities in a further pass over
the vocabulary, at many times the cost of the softmax. On a GPU its kernels stay.

Axes: B rows, V classes, K blocks of classes, W classes of a block.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.v1.outputs import LogprobsTensors, SamplerOutput
from vllm.v1.sample.metadata import SamplingMetadata
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm.v1.sample.sampler import Sampler

_BLOCK = 256


def install(worker: Any) -> None:
    """Replace the sampler of a vLLM worker's model runner."""
    runner = worker.model_runner
    runner.sampler = InverseSampler(runner.sampler.logprobs_mode)


def draw(probabilities_BV: Tensor, uniform_B: Tensor) -> Tensor:
    """Classes [B], int64: of each row the first whose cumulated probability is greater than the row's uniform number.

    The cumulated probabilities are inverted in two levels, over blocks of classes and within one block, in float64: a float32
    sum over 150,000 classes would round away the probabilities at its end. A class of probability 0 is never drawn.

    Args:
        probabilities_BV: not negative, float32, each row with a positive sum, by which it is divided.
        uniform_B: from 0 to below 1, float64.

    Example:
        >>> draw(torch.tensor([[0.25, 0.0, 0.75]] * 3), torch.tensor([0.0, 0.25, 0.99], dtype=torch.float64))
        tensor([0, 2, 2])

    Source: inversion; Devroye, Non-Uniform Random Variate Generation (1986), chapter III.2.
    """
    rows, classes = probabilities_BV.shape
    whole = classes // _BLOCK * _BLOCK
    sums_BK = probabilities_BV[:, :whole].unflatten(1, (-1, _BLOCK)).sum(-1) if whole else probabilities_BV.new_zeros(rows, 0)
    sums_BK = torch.cat([sums_BK, probabilities_BV[:, whole:].sum(-1, keepdim=True)], 1).double()
    ends_BK = sums_BK.cumsum(-1)
    target_B1 = uniform_B[:, None] * ends_BK[:, -1:]
    block_B1 = torch.searchsorted(ends_BK, target_B1, right=True)
    classes_BW = block_B1 * _BLOCK + torch.arange(_BLOCK)
    within_BW = probabilities_BV.gather(1, classes_BW.clamp(max=classes - 1)).double()
    ends_BW = within_BW.masked_fill_(classes_BW >= classes, 0.0).cumsum(-1)
    target_B1 = target_B1 - (ends_BK - sums_BK).gather(1, block_B1)
    # The sums of a block in float32 and in float64 differ by rounding: the target stays within the block.
    target_B1 = target_B1.clamp(min=0).minimum(torch.nextafter(ends_BW[:, -1:], ends_BW.new_zeros(1)))
    return (block_B1 * _BLOCK + torch.searchsorted(ends_BW, target_B1, right=True))[:, 0]


class InverseSampler(Sampler):
    """vLLM's sampler but for the draw, and for the log-probability of the drawn class, which comes with it."""

    def forward(
        self,
        logits: Tensor,
        sampling_metadata: SamplingMetadata,
        predict_bonus_token: bool = False,
        logprobs_mode_override: Any = None,
    ) -> SamplerOutput:
        """One class of each row of `logits` [B, V]; where one log-probability a row is asked for, that of the class."""
        asked = sampling_metadata.max_num_logprobs
        if asked not in (None, 0) or sampling_metadata.logprob_token_ids:
            return super().forward(logits, sampling_metadata, predict_bonus_token, logprobs_mode_override)
        logits_BV = self.apply_logits_processors(logits.to(torch.float32), sampling_metadata, predict_bonus_token)
        sampled_B, probabilities_BV = self._sampled(logits_BV, sampling_metadata)
        ids_B1 = sampled_B[:, None]
        table = None
        if asked == 0:
            logprobs_B1 = probabilities_BV.gather(1, ids_B1).log_()
            table = LogprobsTensors(ids_B1.to(torch.int32), logprobs_B1, torch.zeros(len(ids_B1), dtype=torch.int64))
        return SamplerOutput(sampled_token_ids=ids_B1.to(torch.int32), logprobs_tensors=table)

    def sample(
        self, logits: Tensor, sampling_metadata: SamplingMetadata, logprobs_mode_override: Any = None
    ) -> tuple[Tensor, Tensor | None]:
        """The same draw where vLLM lists likely classes: classes [B], and the log-probabilities [B, V] that were drawn from."""
        sampled_B, probabilities_BV = self._sampled(logits, sampling_metadata)
        return sampled_B, probabilities_BV.log()

    def _sampled(self, logits_BV: Tensor, metadata: SamplingMetadata) -> tuple[Tensor, Tensor]:
        """Classes [B], and the probabilities [B, V] that they were drawn from: those of temperature 1 where a row is greedy."""
        greedy_B = None if metadata.all_random else self.greedy_sample(logits_BV)
        if greedy_B is not None and metadata.all_greedy:
            return greedy_B.long(), logits_BV.softmax(-1)
        assert metadata.temperature is not None, "rows that are not greedy have a temperature"
        if bool((metadata.temperature != 1).any()):
            logits_BV = self.apply_temperature(logits_BV, metadata.temperature, metadata.all_random)
        for processor in metadata.logitsprocs.argmax_invariant:
            logits_BV = processor.apply(logits_BV)
        if metadata.top_k is not None or metadata.top_p is not None:
            logits_BV = apply_top_k_top_p(logits_BV, metadata.top_k, metadata.top_p)
        probabilities_BV = logits_BV.softmax(-1)
        sampled_B = draw(probabilities_BV, uniform(len(logits_BV), metadata.generators))
        if greedy_B is not None:
            sampled_B = torch.where(metadata.temperature < 1e-5, greedy_B.long(), sampled_B)
        return sampled_B, probabilities_BV


def uniform(rows: int, generators: dict[int, torch.Generator]) -> Tensor:
    """A uniform number of each row [B], float64, by the row's own generator where the request has a seed."""
    numbers_B = torch.rand(rows, dtype=torch.float64) if len(generators) < rows else torch.empty(rows, dtype=torch.float64)
    for row, generator in generators.items():
        numbers_B[row : row + 1].uniform_(generator=generator)
    return numbers_B
