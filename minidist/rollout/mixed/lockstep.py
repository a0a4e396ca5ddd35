"""Teacher-mixed sampling by definition: both models read the same prefix, and one token is drawn from the mixture.

Slow and easy to read: the reference for `rollout.mixed.turns`. As in the original implementation, finished rows are decoded
along until the last row is finished.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minidist.config.models import ModelConfig
from minidist.data.rendering import Renderer
from minidist.losses.costs import running_sum
from minidist.models.device import leave_device, pick_device, to_device
from minidist.models.hub import load_model
from minidist.rollout.answers import Job, answered
from minidist.rollout.hf import Decoding, HFEngine, by_length, warp
from minidist.types import Array, Prompt, Rollout, Sampling

ROWS = 256  # sequences decoded side by side


class HFPairEngine(HFEngine):
    """The student's engine in transformers, with a copy of the teacher beside it for mixed sampling."""

    def __init__(self, config: ModelConfig, teacher: ModelConfig, renderer: Renderer, **options: Any) -> None:
        super().__init__(config, renderer, **options)
        self._teacher = load_model(teacher, "teacher.model", self._on_gpu)

    async def sleep(self) -> None:
        await self._worker.run(leave_device, self._model, self._teacher)

    async def wake(self) -> None:
        await self._worker.run(to_device, pick_device(self._on_gpu), self._model, self._teacher)

    async def mix(self, prompts: Sequence[Prompt], alpha: float, sampling: Sampling) -> list[Rollout]:
        """As `generate`, from alpha * teacher + (1 - alpha) * student."""
        return await self._write(partial(sample_mixed, Mixture(self._model, self._teacher, alpha)), prompts, sampling)


@dataclass(frozen=True)
class Mixture:
    """alpha * teacher + (1 - alpha) * student, of two models with one tokenizer."""

    student: PreTrainedModel
    teacher: PreTrainedModel
    alpha: float


@torch.inference_mode()
def sample_mixed(
    mixture: Mixture,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    version: int,
    vocabulary: int | None = None,
) -> list[Rollout]:
    """`sampling.samples` rollouts a prompt, in order, each token drawn from alpha * p + (1 - alpha) * q.

    Temperature and top-p act on each model before mixing; ids from `vocabulary` on are sliced off before either's softmax.
    The coin of a token y is drawn after y, from its posterior: the teacher chose y with probability alpha * p(y) / mixture(y).
    """
    assert sampling.no_repeat_ngram_size is None, "a mixture blocks no n-grams"

    def decode(jobs: list[Job]) -> list[Rollout]:
        rows = zip(jobs, *_decode(mixture, jobs, sampling, renderer.stops, vocabulary), strict=True)
        return [_rollout(job, renderer, *decoded, version=version) for job, *decoded in rows]

    return by_length(sampling.jobs(prompts), ROWS, decode)


def _rollout(job: Job, renderer: Renderer, tokens_T: Array, logprobs_T: Array, coins_T: Array, *, version: int) -> Rollout:
    """One row of `_decode`, cut after the first id that ends it."""
    stops = np.flatnonzero(np.isin(tokens_T, renderer.stops))
    cut = slice(stops[0] + 1 if len(stops) else None)
    logprobs = np.where(coins_T, np.float32("nan"), logprobs_T)
    return answered(job, renderer, tokens_T[cut], logprobs[cut], version=version, coins=coins_T[cut])


def _decode(
    mixture: Mixture, jobs: list[Job], sampling: Sampling, stops: Sequence[int], vocabulary: int | None
) -> tuple[Array, Array, Array]:
    """Tokens, the student's log-probabilities of them, and coins, each [B, T]; values after the end of a row are noise."""
    prompts = [prompt for prompt, _ in jobs]
    read = (mixture.student, prompts), (mixture.teacher, [prompt.for_teacher for prompt in prompts])
    models = [Decoding(model, each, logits_to_keep=1) for model, each in read]
    # Two uniform numbers a token: the first draws the token, the second its coin.
    shape = (sampling.max_new_tokens, 2)
    uniforms = [np.random.default_rng([sampling.seed, prompt.row, number]).random(shape) for prompt, number in jobs]
    drawn: list[tuple[Tensor, Tensor, Tensor]] = []
    finished_B = torch.zeros(len(jobs), dtype=torch.bool)
    for uniforms_B2 in torch.from_numpy(np.stack(uniforms, 1)):
        q_BV, p_BV = (warp(model.logits(), sampling, vocabulary) for model in models)
        tokens_B, coins_B = draw(q_BV, p_BV, mixture.alpha, uniforms_B2)
        drawn.append((tokens_B, q_BV.gather(-1, tokens_B[:, None]).squeeze(-1), coins_B))
        finished_B |= torch.isin(tokens_B, torch.tensor(stops))
        if finished_B.all():
            break
        for model in models:
            model.read(tokens_B)
    tokens_BT, logprobs_BT, coins_BT = (torch.stack(columns, 1).numpy() for columns in zip(*drawn, strict=True))
    return tokens_BT.astype(np.int32), logprobs_BT, coins_BT


def draw(student_BV: Tensor, teacher_BV: Tensor, alpha: float, uniforms_B2: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B] from the mixture of two tables of log-probabilities, by its inverse distribution function, and coins [B]."""
    q_BV, p_BV = (1 - alpha) * student_BV.exp(), alpha * teacher_BV.exp()
    cdf_BV = running_sum((q_BV + p_BV).double())
    # Scaled by the total, so that rounding leaves no gap at the end; right=True never selects a token of probability 0.
    points_B1 = uniforms_B2[:, :1].double() * cdf_BV[:, -1:]
    tokens_B1 = torch.searchsorted(cdf_BV, points_B1, right=True).clamp(max=cdf_BV.shape[-1] - 1)
    q_B, p_B = (part.gather(-1, tokens_B1).squeeze(-1).double() for part in (q_BV, p_BV))
    return tokens_B1.squeeze(-1), uniforms_B2[:, 1] * (q_B + p_B) < p_B
