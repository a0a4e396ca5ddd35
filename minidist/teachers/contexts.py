"""Text that a teacher writes after its own prompts (`teacher.context`)."""

from collections.abc import Awaitable, Callable, Sequence

from minidist.types import Prompt, Rollout, Sampling

Write = Callable[[Sequence[Prompt], Sampling], Awaitable[list[Rollout]]]


async def extended(write: Write, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
    """What `write` samples after the prompts as the teacher reads them, as answers to the prompts as the student reads them."""
    rollouts = await write([prompt.for_teacher for prompt in prompts], sampling)
    jobs = sampling.jobs(prompts)
    return [rollout.answering(prompt) for rollout, (prompt, _) in zip(rollouts, jobs, strict=True)]
