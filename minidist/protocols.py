"""The roles. Slow verbs are `async`, so a Ray handle stands in for the object it holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from minidist.types import Batch, Measures, Probe, Prompt, Rollout, Sampling, Stream, TeacherScores, Update, Weights


class RolloutEngine(Protocol):
    """Samples from the student."""

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """`sampling.samples` rollouts for each prompt, in the prompts' order. Cancelling the call ends the work."""
        ...

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities (nats, temperature 1) of every token of each sequence after its first."""
        ...

    async def load(self, weights: Weights | Path) -> None:
        """Swap in other weights of the same architecture, and forget everything cached under the old ones."""
        ...

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
    """Two faces: it scores given tokens, and it writes."""

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        """Scores of exactly the rollouts' token ids, in their order; never re-tokenizes."""
        ...

    async def extend(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """The teacher's samples: `sampling.samples` for each prompt, in the prompts' order."""
        ...

    async def describe(self) -> dict[str, object]:
        """Class and payload: for the run's summary."""
        ...

    async def close(self) -> None: ...


class Learner(Protocol):
    """Owns the student's weights, its optimizer, and the arithmetic of the step."""

    async def update(self, batch: Batch) -> Update:
        """The batch's optimizer steps. Raises DivergedError before the optimizer moves."""
        ...

    async def measure(self, stream: Stream, temperature: float = 1.0) -> Measures:
        """Per-token log-probabilities and divergences of a stream, without training; `temperature` divides the logits."""
        ...

    async def weights(self) -> Weights | None:
        """The student's weights; None from a rank that only took part in gathering them."""
        ...

    async def probe(self, version: int) -> Probe:
        """Sequences and this learner's log-probabilities of them, other ones for every version."""
        ...

    async def load(self, path: Path) -> None: ...

    async def describe(self) -> dict[str, object]:
        """Class, optimizer steps, ranks: for the run's summary."""
        ...

    async def save(self, path: Path) -> None:
        """Safetensors, configuration and tokenizer: a directory transformers and vLLM load as it is."""
        ...

    async def save_state(self, path: Path) -> None:
        """The trained weights and the optimizer's state into the checkpoint at `path`, as safetensors."""
        ...

    async def resume(self, path: Path) -> None:
        """Go on from what `save_state` wrote, whatever the number of ranks then and now."""
        ...

    async def close(self) -> None: ...


class WeightTransfer(Protocol):
    """After `publish` returns, every engine samples from the learner's weights, and that is proved."""

    async def publish(self, learner: Learner, engines: Sequence[RolloutEngine]) -> float:
        """Returns the largest difference, in nats, between an engine's and the learner's log-probabilities."""
        ...


class ExperienceSource(Protocol):
    """Where batches come from."""

    async def next(self, step: int) -> Batch: ...

    def observe(self, evaluation: dict[str, float]) -> None: ...

    def state_dict(self) -> dict[str, object]: ...

    def load_state_dict(self, state: dict[str, object]) -> None: ...
