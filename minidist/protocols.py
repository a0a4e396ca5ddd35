"""The roles. Slow verbs are `async`, so that a Ray handle can replace the object that it holds."""

from collections.abc import AsyncGenerator, Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from minidist.types import (
    Batch,
    Measures,
    Probe,
    Prompt,
    Reply,
    Rollout,
    Sampling,
    Scores,
    Stream,
    TeacherScores,
    Update,
    Weights,
)


class RolloutEngine(Protocol):
    """Samples from the student."""

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """`sampling.samples` rollouts for each prompt, in the prompts' order. Cancelling the call ends the work."""
        ...

    async def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncGenerator[tuple[int, list[Rollout]], None]:
        """The rollouts of `generate`, each prompt's as soon as its last one ends, with the prompt's index.

        Closing the generator ends the work. An engine that does not override this yields all of them at the end.
        """
        rollouts = await self.generate(prompts, sampling)
        for index in range(len(prompts)):
            yield index, rollouts[index * sampling.samples : (index + 1) * sampling.samples]

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities (nats, temperature 1) of every token of each sequence after its first."""
        ...

    async def load(self, weights: Weights | Path) -> None:
        """Replace the weights (same architecture), and drop everything cached under the old weights."""

    async def version(self) -> int:
        """Number of the published weights that the engine samples from."""
        ...

    async def figures(self) -> dict[str, float]:
        """Metrics of the last `generate` beyond those of its text; empty where the engine has none."""
        ...

    async def describe(self) -> dict[str, object]:
        """Engine class, version, tokens written: for the run's summary."""
        ...

    async def close(self) -> None: ...


class Teacher(Protocol):
    """Scores given tokens, and writes."""

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        """Scores of exactly the rollouts' token ids, in order, each after the prompt that the teacher reads
        (`Rollout.for_teacher`); text is never tokenized again."""
        ...

    async def extend(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """The teacher's samples after the prompts as it reads them: `sampling.samples` for each, in the prompts' order."""
        ...

    async def describe(self) -> dict[str, object]:
        """Class and payload: for the run's summary."""
        ...

    async def close(self) -> None: ...


class Scorer(Protocol):
    """A teacher, or several that each row has its own of, or whose distributions are mixed."""

    async def score(self, rollouts: Sequence[Rollout]) -> Sequence[Scores]:
        """Scores of exactly the rollouts' token ids, in order."""
        ...

    async def extend(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """As `Teacher.extend`."""
        ...


class Saves(Protocol):
    """What a run's checkpoints are written from and read into."""

    async def save(self, path: Path) -> dict[str, str]:
        """Write the models as transformers loads them. Returns the sha256 sums, by name under `path`, of files that were summed
        as they were written."""
        ...

    async def save_state(self, path: Path) -> dict[str, str]:
        """Write what is trained and the optimizers' states, as safetensors; returns sums as `save` does."""
        ...

    async def resume(self, path: Path) -> None:
        """Go on from a checkpoint."""


class Learner(Protocol):
    """Owns the student's weights, the optimizer, and the arithmetic of a step."""

    async def update(self, batch: Batch) -> Update:
        """Take the batch's optimizer steps. Raises DivergedError before the optimizer moves."""
        ...

    async def measure(self, stream: Stream, temperature: float = 1.0, top_p: float = 1.0) -> Measures:
        """Per-token log-probabilities and divergences of a stream, without training; `temperature` divides the logits. With
        `top_p`, the student's log-probabilities are of its nucleus, as a rollout engine has them; divergences never are."""
        ...

    async def weights(self, whole: bool = True) -> Weights | None:
        """The student's weights; not `whole`: adapters alone, where it has some. None from a rank that only helps to gather
        them."""
        ...

    async def probe(self, version: int) -> Probe:
        """Sequences, different for every version, and this learner's log-probabilities of them."""
        ...

    async def load(self, path: Path) -> None: ...

    async def describe(self) -> dict[str, object]:
        """Class, optimizer steps, ranks: for the run's summary."""
        ...

    async def save(self, path: Path) -> dict[str, str]:
        """Write safetensors, configuration and tokenizer: a directory that transformers and vLLM load unchanged. Returns the
        sha256 sums, by name under `path`, of files that were summed as they were written."""
        ...

    async def save_state(self, path: Path) -> dict[str, str]:
        """Write the trained weights and the optimizer's state into the checkpoint at `path`, as safetensors; returns sums as
        `save` does."""
        ...

    async def resume(self, path: Path) -> None:
        """Resume from a checkpoint of `save_state`, written by any number of ranks."""

    async def close(self) -> None: ...


class Ask(Protocol):
    """One call of a model by a program of several calls, for one sample of one row.

    Temperature, length and seed are bound to it. The seed of a call is derived from the run's seed, the row's key, the sample's
    number and the number of the call, counted in the order in which the program makes its calls: a program that is run again
    makes the same calls with the same seeds, whatever else the engine has to do.
    """

    async def __call__(self, text: str) -> Reply:
        """The model's reply to `text`, which is the whole user turn where the model has a chat template, and the whole prompt
        where it has none."""
        ...


class WeightTransfer(Protocol):
    """After `publish` returns, every engine provably samples from the learner's weights."""

    async def publish(self, learner: Learner, engines: Sequence[RolloutEngine]) -> float:
        """The largest difference, in nats, between an engine's and the learner's log-probabilities."""
        ...


class ExperienceSource(Protocol):
    """Where batches come from. A source without state keeps the defaults."""

    async def next(self, step: int) -> Batch:
        """The batch of step `step`."""
        ...

    def observe(self, evaluation: dict[str, float]) -> None:
        """Take note of the figures of an evaluation."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the seed and the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore `state_dict()`."""


Finished = Callable[[int, list[Rollout]], None]
"""Is told of the answers to a prompt, by its index among the prompts, as soon as all are written."""


class Text(Protocol):
    """The text of a stream: whose it is, and how it is drawn. Kinds override the defaults that do not hold for them."""

    rows_per_update: ClassVar[bool] = False
    """Whether `draw` returns rows for each optimizer step on the collection, one after another; else all steps share them."""

    async def draw(self, step: int, prompts: Sequence[Prompt], finished: Finished | None = None) -> list[Rollout]:
        """The rollouts of step `step`; where the text answers the step's `prompts`, in their order. Text of an engine that
        hands its answers on as they finish passes them to `finished`; other text need not."""
        ...

    async def figures(self) -> dict[str, float]:
        """Metrics of the last `draw`."""
        return {}

    def observe(self, evaluation: dict[str, float]) -> None:
        """Take note of the figures of an evaluation."""

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs beside the seed and the step."""
        return {}

    def load_state_dict(self, state: dict[str, Any], prompts: Sequence[Prompt]) -> None:
        """Restore `state_dict()`; `prompts` are all prompts of the run."""
