"""Where batches come from: the student's own text, scored; or given examples."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from minidist.config.learning import RolloutConfig
from minidist.data.batching import collate, collate_examples
from minidist.data.sources import Example
from minidist.evaluation.text import describe_text
from minidist.protocols import RolloutEngine, Teacher
from minidist.tracking import Clock
from minidist.types import Array, Batch, Prompt


def drawn(count: int, size: int, *, step: int, seed: int) -> list[int]:
    """Indices of the `size` rows of step `step`: one shuffled pass over `count` rows after another.

    A function of its arguments alone: nothing else need be kept to go on from any step.
    """
    indices: list[int] = []
    for position in range(step * size, (step + 1) * size):
        epoch, place = divmod(position, count)
        indices.append(int(_order(count, seed, epoch)[place]))
    return indices


@lru_cache(maxsize=4)
def _order(count: int, seed: int, epoch: int) -> Array:
    return np.random.default_rng([seed, epoch]).permutation(count)


class OnPolicy:
    """The student writes on the next prompts, the teacher scores what it wrote."""

    def __init__(
        self,
        prompts: Sequence[Prompt],
        engine: RolloutEngine,
        teacher: Teacher,
        config: RolloutConfig,
        *,
        seed: int,
        clock: Clock,
    ) -> None:
        self._prompts, self._engine, self._teacher = prompts, engine, teacher
        self._config, self._seed, self._clock = config, seed, clock

    async def next(self, step: int) -> Batch:
        """One collection."""
        indices = drawn(len(self._prompts), self._config.prompts_per_step, step=step, seed=self._seed)
        chosen = [self._prompts[index] for index in indices]
        with self._clock.span("generate"):
            rollouts = await self._engine.generate(
                chosen,
                samples=self._config.samples_per_prompt,
                max_new_tokens=self._config.max_new_tokens,
                temperature=self._config.temperature,
                top_p=self._config.top_p,
                seed=_collection_seed(self._seed, step),
            )
        with self._clock.span("score"):
            scores = await self._teacher.score(rollouts)
        stream = collate("on_policy", rollouts, scores, objective="on_policy")
        figures = {f"rollout/{name}": value for name, value in describe_text(rollouts).items()}
        return Batch(step, (stream,), tuple(rollouts), figures)

    def observe(self, evaluation: dict[str, float]) -> None: ...

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None: ...


class Examples:
    """Given text: gold answers, or plain text."""

    def __init__(self, examples: Sequence[Example], *, rows: int, seed: int) -> None:
        self._examples, self._rows, self._seed = examples, rows, seed

    async def next(self, step: int) -> Batch:
        """The next `rows` examples."""
        chosen = [self._examples[i] for i in drawn(len(self._examples), self._rows, step=step, seed=self._seed)]
        return Batch(step, (collate_examples("supervised", chosen, objective="supervised"),))

    def observe(self, evaluation: dict[str, float]) -> None: ...

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: dict[str, object]) -> None: ...


def _collection_seed(seed: int, step: int) -> int:
    """Other samples for the same prompt in every step."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])
