"""How the teacher scores a collection: in one call, in groups fixed by index, or as answers finish."""

import asyncio
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from minidist.cluster.machine import cores
from minidist.config.distill import DistillConfig
from minidist.protocols import Scorer
from minidist.run.tracking import Clock
from minidist.types import Rollout, Scores

GROUPS = 8
"""Groups of a collection. Smaller groups could begin earlier, and would use the teacher worse."""

KnownScores = dict[int, Scores]
"""Scores by the identity of their rollout."""


@dataclass(frozen=True)
class Grouping:
    """The groups in which the answers of a collection are scored.

    Args:
        prompts: of a group: as many of one collection's, in order (`fixed`), or at least as many that have finished.
        samples: answers to each prompt.
        fixed: groups are the same in every run, whether answers are scored as they finish or later, since the scores of a call
            may depend on what else is in it, by rounding.
        stream: score the student's answers as they finish.
    """

    prompts: int = 1
    samples: int = 1
    fixed: bool = False
    stream: bool = False

    @classmethod
    def of(cls, config: DistillConfig) -> "Grouping":
        """The groups of a run."""
        prompts = math.ceil(config.rollout.prompts_per_step / GROUPS)
        return cls(prompts, config.rollout.samples_per_prompt, config.run.deterministic, scores_as_written(config))

    def calls(self, main: Sequence[Rollout], others: Sequence[Rollout], known: KnownScores) -> Iterator[Sequence[Rollout]]:
        """The rollouts of each call that scores what is not `known` yet."""
        size = self.prompts * self.samples if self.fixed else max(1, len(main))
        groups = [main[start : start + size] for start in range(0, len(main), size)]
        groups = [[rollout for rollout in group if id(rollout) not in known] for group in groups]
        if self.fixed:
            yield from filter(None, [*groups, others])
        elif rest := [*(rollout for group in groups for rollout in group), *others]:
            yield rest


class StreamedScores:
    """Scores answers while others are still being written, one call after another.

    Args:
        teacher: scores the answers.
        grouping: which answers a call scores.
        prompts: number of the collection's prompts.
        clock: measures the seconds of scoring.
    """

    def __init__(self, teacher: Scorer, grouping: Grouping, prompts: int, clock: Clock) -> None:
        self.known: KnownScores = {}
        self._teacher = teacher
        self._grouping = grouping
        self._prompts = prompts
        self._clock = clock
        self._finished: asyncio.Queue[tuple[int, list[Rollout]] | None] = asyncio.Queue()
        self._waiting: dict[int, list[Rollout]] = {}

    def finished(self, index: int, rollouts: list[Rollout]) -> None:
        """All answers to prompt `index` are written."""
        self._finished.put_nowait((index, rollouts))

    def end(self) -> None:
        """No more answers follow."""
        self._finished.put_nowait(None)

    async def run(self) -> None:
        """Score groups until the end; what is no whole group by then is left."""
        while (item := await self._finished.get()) is not None:
            self._waiting[item[0]] = item[1]
            # What has finished during the last call joins the next.
            if (self._grouping.fixed or self._finished.empty()) and (group := self._group(item[0])):
                texts = [rollout for index in group for rollout in self._waiting.pop(index)]
                with self._clock.span("score"):
                    scores = await self._teacher.score(texts)
                self.known |= dict(zip(map(id, texts), scores, strict=True))

    def _group(self, index: int) -> list[int]:
        """The prompts of the group that prompt `index` completes; none where others are missing."""
        size = self._grouping.prompts
        if not self._grouping.fixed:
            return sorted(self._waiting) if len(self._waiting) >= size else []
        first = index // size * size
        group = list(range(first, min(first + size, self._prompts)))
        return group if all(each in self._waiting for each in group) else []


def scores_as_written(config: DistillConfig) -> bool:
    """Whether the student's answers are scored as they finish: loop.stream, or whether engines and teacher share neither
    devices nor cores."""
    cluster = config.cluster
    if not (config.prefix.student_writes and config.main_scored) or config.teacher_mix:
        return False
    if config.loop.stream is not None:
        return config.loop.stream
    if not any(teacher.hosted for teacher in config.named_teachers.values()):  # servers
        return True
    if cluster.roles == "local":
        return False
    if cluster.gpus:
        return all(cluster.gpus_of(role) >= 1 for role in (cluster.rollout, cluster.teacher))
    busy = sum(cluster.processes_of(name) * cluster.role(name).devices for name in ("rollout", "teacher"))
    return cluster.address is None and cluster.threads is not None and cluster.threads * busy <= cores()
