"""The roles. Slow verbs are `async`, so a Ray handle stands in for the object it holds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from minidist.types import Batch, Measures, Probe, Prompt, Rollout, Stream, TeacherScores, Update, Weights

if TYPE_CHECKING:
    from torch import Tensor


class RolloutEngine(Protocol):
    """Samples from the student."""

    async def generate(
        self, prompts: Sequence[Prompt], *, samples: int, max_new_tokens: int, temperature: float, top_p: float, seed: int
    ) -> list[Rollout]:
        """`samples` rollouts for each prompt, in the prompts' order. `temperature` 0 is greedy."""
        ...

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Log-probabilities (nats, temperature 1) of every token of each sequence after its first."""
        ...

    async def load(self, weights: Weights | Path) -> None:
        """Swap in other weights of the same architecture, and forget everything cached under the old ones."""
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

    async def extend(
        self, prompts: Sequence[Prompt], *, samples: int, max_new_tokens: int, temperature: float, top_p: float, seed: int
    ) -> list[Rollout]:
        """The teacher's own samples."""
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


class Divergence(Protocol):
    """Per-token divergence in nats between two tables of log-probabilities over the same C classes."""

    def __call__(self, student_NC: Tensor, teacher_NC: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class TokenCredit:
    """`types.Credit` of N loss tokens, [N] each; no gradient reaches any of it."""

    old_logprob_N: Tensor
    advantage_N: Tensor
    weight_N: Tensor
    reach_N: Tensor

    def at(self, part: slice) -> TokenCredit:
        """That of some of the tokens."""
        return TokenCredit(self.old_logprob_N[part], self.advantage_N[part], self.weight_N[part], self.reach_N[part])


@dataclass(frozen=True)
class TokenTargets:
    """What N loss tokens are trained towards. A field is None where the teacher's payload does not hold it.

    labels_N: the token ids, int64. teacher_NV: the teacher's log-probabilities over the full vocabulary, at the objective's
    temperature. top_ids_NK, top_logprobs_NK: the K tokens it finds likeliest, int64, and their log-probabilities.
    teacher_logprob_N: its log-probabilities of the labels. All in nats; no gradient reaches any of them. credit: what the
    tokens earned, for a policy gradient. group_N: int64, equal for tokens of one group, which stand side by side, where an
    objective is defined over groups.
    """

    labels_N: Tensor
    teacher_NV: Tensor | None = None
    top_ids_NK: Tensor | None = None
    top_logprobs_NK: Tensor | None = None
    teacher_logprob_N: Tensor | None = None
    credit: TokenCredit | None = None
    group_N: Tensor | None = None

    @property
    def has_teacher(self) -> bool:
        """Whether the labels' log-probabilities under the teacher are known without its head."""
        return self.teacher_logprob_N is not None or self.teacher_NV is not None

    def at(self, part: slice) -> TokenTargets:
        """Those of some of the tokens."""

        def cut(values: Tensor | None) -> Tensor | None:
            return None if values is None else values[part]

        return TokenTargets(
            self.labels_N[part],
            cut(self.teacher_NV),
            cut(self.top_ids_NK),
            cut(self.top_logprobs_NK),
            cut(self.teacher_logprob_N),
            self.credit and self.credit.at(part),
            cut(self.group_N),
        )


class Objective(Protocol):
    """Loss of each of the N tokens that count. No mask and no mean: the learner selects, sums and divides.

    What payload it needs of the teacher is a field of its configuration, which is checked before a run starts.
    """

    @property
    def temperature(self) -> float:
        """Divides both models' logits before the softmax."""
        ...

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of what `explain` tells, as metrics of the run; their sums over tokens become means."""
        ...

    @property
    def group_tokens(self) -> int | None:
        """Most consecutive tokens of one row that the loss is defined over together; None: each token by itself."""
        ...

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor: ...

    def explain(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N, F]: figures of each token, without gradient."""
        ...
