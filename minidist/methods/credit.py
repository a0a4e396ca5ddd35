"""The shape of a credit method: a collected stream in, the same stream with the credit of its tokens out."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from minidist.config.distill import DistillConfig
from minidist.losses.ratios import MAX, MEAN, TRUNCATED, ratios
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
    def credits(
        self, student: Sequence[Array], teacher: Sequence[Array], ratio: Sequence[Array] | None = None
    ) -> tuple[Sequence[Credit], dict[str, float]]:
        """The credit of each row, and metrics, from the log-probabilities [L] of each row's tokens, in nats.

        `ratio`: where an earlier student wrote the text, each token's probability under the current one over that with which it
        was written, truncated at loop.ratio_max.
        """

    async def credit(self, stream: Stream) -> tuple[Stream, Measures, dict[str, float]]:
        """The stream with its credit, the measured figures that the credit was computed from, and metrics."""
        measures = await self.learner.measure(stream, self.config.objective.temperature)
        assert measures.teacher_logprob is not None, "an objective with credit needs a main stream that the teacher scored"
        ends = np.cumsum([len(row.labels) for row in stream.rows])[:-1]
        ratio_L, figures = self._ratios(stream, measures.student_logprob)
        columns = (measures.student_logprob, measures.teacher_logprob, ratio_L)
        credits, metrics = self.credits(*(None if column is None else np.split(column, ends) for column in columns))  # type: ignore[arg-type]
        rows = tuple(replace(row, credit=credit) for row, credit in zip(stream.rows, credits, strict=True))
        return replace(stream, rows=rows), measures, metrics | figures

    def _ratios(self, stream: Stream, logprob_L: Array) -> tuple[Array | None, dict[str, float]]:
        """The truncated importance ratios of text that may be of an earlier student, and their figures."""
        bound = self.config.ratio_max
        if bound is None:
            return None, {}
        written_L = np.concatenate([row.written_logprob for row in stream.rows if row.written_logprob is not None])
        ratio_L = ratios(torch.from_numpy(logprob_L), torch.from_numpy(written_L)).numpy()
        truncated_L = np.minimum(ratio_L, bound)
        shares = {MEAN: float(truncated_L.mean()), TRUNCATED: float((ratio_L > bound).mean())}
        return truncated_L, {MAX: float(ratio_L.max())} | shares
