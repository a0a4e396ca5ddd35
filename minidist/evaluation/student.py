"""All figures of one student on held-out prompts, with the roles that training uses."""

from collections.abc import Sequence
from typing import Any

from minidist.canaries import check_engine
from minidist.data.batching import collate
from minidist.evaluation import divergence
from minidist.evaluation.text import accuracy, describe_text, rouge_l
from minidist.protocols import Learner, RolloutEngine, Teacher
from minidist.types import Prompt, Rollout, Stream


class Examiner:
    """Holds the held-out prompts and the teacher's samples on them, which serve every student alike.

    Engine and learner must give the student's samples the same log-probabilities within `tolerance_nats`. `graded`: the
    answers are graded exactly (generated tasks); otherwise gold answers, where there are any, give ROUGE-L.
    """

    def __init__(
        self,
        prompts: Sequence[Prompt],
        teacher: Teacher,
        *,
        max_new_tokens: int,
        seed: int,
        graded: bool,
        tolerance_nats: float,
    ) -> None:
        self._prompts, self._teacher = prompts, teacher
        self._max_new_tokens, self._seed, self._graded = max_new_tokens, seed, graded
        self._tolerance = tolerance_nats
        self._taught: Stream | None = None
        self.teacher_rollouts: list[Rollout] = []

    async def examine(self, engine: RolloutEngine, learner: Learner) -> dict[str, float]:
        """Figures of the student that `engine` writes with and `learner` holds; samples at temperature 1.

        Exact divergences where the teacher gives hidden states; other payloads leave them out.
        """
        rollouts = await engine.generate(self._prompts, **self._sampling())
        own = collate("own", rollouts, await self._teacher.score(rollouts), objective="")
        measures = await learner.measure(own)
        check_engine(measures, rollouts, self._tolerance)  # the two must hold the same weights
        figures = divergence.reverse(measures)
        if figures:  # else the teacher does not give full distributions: its samples would measure nothing
            figures |= divergence.forward(await learner.measure(await self._teacher_text()))
        return figures | describe_text(rollouts) | self._graded_figures(rollouts)

    async def examine_teacher(self) -> dict[str, float]:
        """The teacher's own figures; it does not diverge from itself."""
        await self._teacher_text()
        own = {"reverse_kl": 0.0, "forward_kl": 0.0, "reverse_kl_per_sequence": 0.0, "forward_kl_per_sequence": 0.0}
        return own | describe_text(self.teacher_rollouts) | self._graded_figures(self.teacher_rollouts)

    async def _teacher_text(self) -> Stream:
        """The teacher's samples with its own scores, written once."""
        if self._taught is None:
            self.teacher_rollouts = await self._teacher.extend(self._prompts, **self._sampling())
            scores = await self._teacher.score(self.teacher_rollouts)
            self._taught = collate("taught", self.teacher_rollouts, scores, objective="")
        return self._taught

    def _graded_figures(self, rollouts: Sequence[Rollout]) -> dict[str, float]:
        if any(rollout.prompt.answer is None for rollout in rollouts):
            return {}
        return accuracy(rollouts) if self._graded else rouge_l(rollouts)

    def _sampling(self) -> dict[str, Any]:
        return {"samples": 1, "max_new_tokens": self._max_new_tokens, "temperature": 1.0, "top_p": 1.0, "seed": self._seed}
