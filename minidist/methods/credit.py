"""The shape of a credit method: a collected stream in, the same stream with the credit of its tokens out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from minidist.config.distill import DistillConfig
from minidist.protocols import Learner
from minidist.types import Array, Credit, Measures, Stream


@dataclass(frozen=True)
class CreditMethod(ABC):
    """Fixes what each token of a collection earns, once, before the optimizer steps on the collection.

    Args:
        config: the distillation; the credit is that of `config.objective`.
        learner: holds the student that wrote the collection, and measures its log-probabilities.
    """

    config: DistillConfig
    learner: Learner

    @abstractmethod
    def credits(self, student: Sequence[Array], teacher: Sequence[Array]) -> tuple[Sequence[Credit], dict[str, float]]:
        """The credit of each row, and metrics, from the log-probabilities [L] of each row's tokens, in nats."""

    async def credit(self, stream: Stream) -> tuple[Stream, Measures, dict[str, float]]:
        """The stream with its credit, the measured figures that the credit was computed from, and metrics."""
        measures = await self.learner.measure(stream, self.config.objective.temperature)
        assert measures.teacher_logprob is not None, "an objective with credit needs a main stream that the teacher scored"
        ends = np.cumsum([len(row.labels) for row in stream.rows])[:-1]
        credits, metrics = self.credits(np.split(measures.student_logprob, ends), np.split(measures.teacher_logprob, ends))
        rows = tuple(replace(row, credit=credit) for row, credit in zip(stream.rows, credits, strict=True))
        return replace(stream, rows=rows), measures, metrics
