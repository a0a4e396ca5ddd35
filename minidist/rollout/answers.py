"""The rollout of an answer that an engine has written: all engines agree on how it ended, and on its text."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from minidist.data.rendering import Renderer
from minidist.run.flops import Work
from minidist.run.timeline import count, nbytes
from minidist.types import Prompt, Rollout

Job = tuple[Prompt, int]
"""A prompt and the number of its sample."""


def answered(
    job: Job, renderer: Renderer, tokens: ArrayLike, logprobs: ArrayLike | None, *, cached: int = 0, **fields: Any
) -> Rollout:
    """The rollout of a job that wrote `tokens`, an id that ends answers last unless it reached the token limit.

    cached: tokens at the beginning of the prompt that the engine did not compute again. fields: version, and others by name.
    """
    (prompt, number), ids = job, np.asarray(tokens, dtype=np.int32)
    work = Work.answer(len(prompt.tokens), len(ids)) - Work.row(cached)
    count(written=len(ids), forward_tokens=work.tokens, forward_pairs=work.pairs, forward_heads=work.heads)
    stopped, text = renderer.ended(ids), renderer.decode(ids)
    rollout = Rollout.written(prompt, ids, logprobs, stopped=stopped, sample=number, text=text, **fields)
    count(generate_bytes=nbytes(rollout))
    return rollout


async def in_order(stream: AsyncGenerator[tuple[int, list[Rollout]], None], prompts: int) -> list[Rollout]:
    """All rollouts of a stream, in the order of its prompts."""
    found: dict[int, list[Rollout]] = {}
    async with aclosing(stream) as answers:
        async for index, rollouts in answers:
            found[index] = rollouts
    return [rollout for index in range(prompts) for rollout in found[index]]
