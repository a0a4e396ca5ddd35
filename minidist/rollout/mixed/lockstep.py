"""Teacher-mixed sampling as it is defined: both models read the same prefix, and one token is drawn from the mixture.

Slow and plain, the reference of `rollout.mixed`. As in the original implementation, rows that are finished are decoded on
until the last one is.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from minidist.config.models import ModelConfig
from minidist.data.rendering import Renderer
from minidist.models.hub import load_model
from minidist.rollout.hf import HFEngine, flush_right, warp
from minidist.types import Array, Finish, Prompt, Rollout

_ROWS = 256  # sequences decoded side by side


class LockstepEngine(HFEngine):
    """The student's engine in transformers, which also holds a teacher to write with."""

    def __init__(
        self,
        config: ModelConfig,
        teacher: ModelConfig,
        renderer: Renderer,
        *,
        vocabulary: int | None = None,
        on_gpu: bool = False,
    ) -> None:
        super().__init__(config, renderer, vocabulary=vocabulary, on_gpu=on_gpu)
        self._teacher = load_model(teacher, "teacher.model", on_gpu)

    async def mix(self, prompts: Sequence[Prompt], alpha: float, **sampling: Any) -> list[Rollout]:
        """As `generate`, from alpha * teacher + (1 - alpha) * student."""
        rollouts = await self._worker.run(
            sample_mixed,
            self._model,
            self._teacher,
            self._renderer,
            prompts,
            alpha=alpha,
            version=self._version,
            vocabulary=self._vocabulary,
            **sampling,
        )
        self._tokens += sum(len(rollout.tokens) for rollout in rollouts)
        return rollouts


@torch.inference_mode()
def sample_mixed(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    renderer: Renderer,
    prompts: Sequence[Prompt],
    *,
    alpha: float,
    samples: int,
    max_new_tokens: int,
    temperature: float,
    top_p: float,
    seed: int,
    version: int,
    vocabulary: int | None = None,
) -> list[Rollout]:
    """`samples` rollouts a prompt, in order, each token drawn from alpha * p + (1 - alpha) * q.

    Temperature and top-p act on each model before mixing; ids from `vocabulary` on are sliced off before either's softmax.
    A token's coin is drawn after it, from its posterior: the teacher chose y with probability alpha * p(y) / mixture(y).
    """
    jobs = [(prompt, number) for prompt in prompts for number in range(samples)]
    by_length = sorted(range(len(jobs)), key=lambda index: len(jobs[index][0].tokens))
    warped = partial(warp, temperature=temperature, top_p=top_p, vocabulary=vocabulary)
    found: dict[int, Rollout] = {}
    for start in range(0, len(jobs), _ROWS):
        group = by_length[start : start + _ROWS]
        chosen = [jobs[index] for index in group]
        uniforms = np.stack([_uniforms(seed, prompt.row, number, max_new_tokens) for prompt, number in chosen])
        own, taught = (_Model(model, [prompt for prompt, _ in chosen], warped) for model in (student, teacher))
        tokens, logprobs, coins = _decode(own, taught, alpha, torch.from_numpy(uniforms), renderer.eos)
        for row, index in enumerate(group):
            prompt, number = jobs[index]
            stops = np.flatnonzero(tokens[row] == renderer.eos)
            length = int(stops[0]) + 1 if len(stops) else max_new_tokens
            found[index] = Rollout(
                prompt=prompt,
                tokens=tokens[row, :length],
                logprobs=np.where(coins[row, :length], np.float32("nan"), logprobs[row, :length]),
                versions=np.full(length, version, dtype=np.int32),
                finish=Finish.STOP if len(stops) else Finish.LENGTH,
                sample=number,
                text=renderer.decode(tokens[row, :length]),
                coins=coins[row, :length],
            )
    return [found[index] for index in range(len(jobs))]


def _uniforms(seed: int, row: int, sample: int, count: int) -> Array:
    """Two uniform numbers a token [T, 2]: one draws the token, one its coin."""
    return np.random.default_rng([seed, row, sample]).random((count, 2))


class _Model:
    """One of the two models on its way through the rows, with its own keys and values."""

    def __init__(self, model: PreTrainedModel, prompts: Sequence[Prompt], warped: Callable[[Tensor], Tensor]) -> None:
        self._model, self._warped = model, warped
        self._ids, self._mask = (part.to(model.device) for part in flush_right(prompts))
        self._positions = (self._mask.cumsum(-1) - 1).clamp(min=0)
        self._cache: Any = None

    def logprobs(self) -> Tensor:
        """Of the next token [B, V], on the CPU."""
        output = self._model(
            input_ids=self._ids,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values
        return self._warped(output.logits[:, -1].float().cpu())

    def read(self, tokens_B: Tensor) -> None:
        """The tokens that come next."""
        self._ids, self._positions = tokens_B[:, None].to(self._model.device), self._positions[:, -1:] + 1
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], -1)


def _decode(student: _Model, teacher: _Model, alpha: float, uniforms_BT2: Tensor, eos: int) -> tuple[Array, Array, Array]:
    """Tokens, the student's log-probabilities of them, and coins, each [B, T]; what follows a row's first EOS is noise."""
    rows, count = uniforms_BT2.shape[:2]
    tokens = torch.full((rows, count), eos)
    logprobs, coins = torch.zeros(rows, count), torch.zeros(rows, count, dtype=torch.bool)
    finished = torch.zeros(rows, dtype=torch.bool)
    for t in range(count):
        q_BV, p_BV = student.logprobs(), teacher.logprobs()
        tokens[:, t], coins[:, t] = draw(q_BV, p_BV, alpha, uniforms_BT2[:, t])
        logprobs[:, t] = q_BV.gather(-1, tokens[:, t : t + 1]).squeeze(-1)
        finished |= tokens[:, t] == eos
        if finished.all():
            break
        if t + 1 < count:
            student.read(tokens[:, t])
            teacher.read(tokens[:, t])
    return tokens.to(torch.int32).numpy(), logprobs.numpy(), coins.numpy()


def draw(student_BV: Tensor, teacher_BV: Tensor, alpha: float, uniforms_B2: Tensor) -> tuple[Tensor, Tensor]:
    """Tokens [B] from the mixture of two tables of log-probabilities, by its inverse distribution function, and coins [B]."""
    own_BV, taught_BV = (1 - alpha) * student_BV.exp(), alpha * teacher_BV.exp()
    ends_BV = (own_BV + taught_BV).double().cumsum(-1)
    # Times the whole, so that rounding leaves no gap at the end; right: a token of probability 0 is never met.
    points_B1 = uniforms_B2[:, :1].double() * ends_BV[:, -1:]
    tokens_B1 = torch.searchsorted(ends_BV, points_B1, right=True).clamp(max=ends_BV.shape[-1] - 1)
    own_B, taught_B = (part.gather(-1, tokens_B1).squeeze(-1).double() for part in (own_BV, taught_BV))
    return tokens_B1.squeeze(-1), uniforms_B2[:, 1] * (own_B + taught_B) < taught_B
