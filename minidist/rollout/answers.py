"""The rollout of an answer that an engine has written: all engines agree on how it ended, and on its text."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from minidist.data.rendering import Renderer
from minidist.types import Prompt, Rollout

Job = tuple[Prompt, int]
"""A prompt and the number of its sample."""


def answered(job: Job, renderer: Renderer, tokens: ArrayLike, logprobs: ArrayLike | None, **fields: Any) -> Rollout:
    """The rollout of a job that wrote `tokens`, an id that ends answers last unless it reached the token limit.

    fields: version, and others by name.
    """
    (prompt, number), ids = job, np.asarray(tokens, dtype=np.int32)
    stopped, text = renderer.ended(ids), renderer.decode(ids)
    return Rollout.written(prompt, ids, logprobs, stopped=stopped, sample=number, text=text, **fields)
