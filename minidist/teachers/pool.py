"""Several teachers that act as one, and the shards of a teacher that is too large for one device."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace

from minidist.concurrency import deal, together
from minidist.data.batching import share_out
from minidist.errors import RoleError
from minidist.protocols import Teacher
from minidist.run.timeline import count
from minidist.run.tracking import log
from minidist.types import KeptScores, Prompt, Rollout, Sampling, TeacherScores

_LOOK_S = 10.0


class Teachers:
    """The teachers score about as many tokens each, and the answers to one prompt together; prompts to write after are dealt in
    turn, prompt i to teacher i mod R, R the number of teachers.

    Large scores of a teacher in an actor stay in the object store of its node (`KeptScores`).
    """

    def __init__(self, members: Sequence[Teacher]) -> None:
        self.members = list(members)
        self._retries: dict[int, object] = {}
        """Requests of each teacher that were sent again, as logged."""

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        """Scores of the rollouts' tokens, in their order."""
        async with _waits_are_logged(self.members, self._retries):
            lengths = [len(rollout.for_teacher.prompt.tokens) + len(rollout.tokens) for rollout in rollouts]
            prompts = [rollout.for_teacher.prompt.tokens.tobytes() for rollout in rollouts]
            shares = share_out(lengths, len(self.members), prompts)
            parts = ([rollouts[index] for index in share] for share in shares)
            done = await together(_score(teacher, part) for teacher, part in zip(self.members, parts, strict=True))
        scores = {
            index: each for share, part in zip(shares, done, strict=True) for index, each in zip(share, part, strict=True)
        }
        count(score_bytes=sum(each.nbytes for each in scores.values()))
        return [scores[index] for index in range(len(rollouts))]

    async def bury(self) -> set[str]:
        """Leave out the teachers that have died; names of the actors of those that live."""
        names = dict(zip(self.members, await asyncio.gather(*map(_names, self.members)), strict=True))
        self.members = [teacher for teacher, alive in names.items() if alive]
        return set().union(*names.values())

    async def extend(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """The teachers' samples, in the prompts' order."""
        async with _waits_are_logged(self.members, self._retries):
            return await deal(
                self.members, prompts, lambda teacher, part: teacher.extend(part, sampling), each=sampling.samples
            )

    async def describe(self) -> dict[str, object]:
        """The first teacher, and the number of teachers."""
        return await self.members[0].describe() | {"actors": len(self.members)}

    async def close(self) -> None:
        await together(teacher.close() for teacher in self.members)


class Shards(Teachers):
    """The ranks of one partitioned model; all of them take part in every call, so calls follow one another: two at once could
    reach the ranks in different orders, and each would wait for the other."""

    def __init__(self, members: Sequence[Teacher]) -> None:
        super().__init__(members)
        self._free = asyncio.Lock()

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        """Scores of the rollouts' tokens, in their order."""
        async with self._free:
            return await super().score(rollouts)

    async def extend(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """Every rank writes the same text, since each token needs the whole model."""
        async with self._free:
            written = await together(rank.extend(prompts, sampling) for rank in self.members)
        return written[0]


async def _score(teacher: Teacher, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
    """The teacher's scores; large ones stay where it runs, if it is an actor."""
    verb = getattr(teacher, "keep_scores", None)
    if verb is None:
        return await teacher.score(rollouts)
    scores = await verb(rollouts)
    return [
        replace(each, rollout=rollout) if isinstance(each, KeptScores) else each
        for each, rollout in zip(scores, rollouts, strict=True)
    ]


async def _names(teacher: Teacher) -> set[str]:
    """Names of the actors of a teacher; none where one of them has died."""
    actors = teacher.members if isinstance(teacher, Shards) else [teacher]
    try:
        await together(actor.describe() for actor in actors)
    except RoleError:
        return set()
    return {getattr(actor, "name", "") for actor in actors}


@asynccontextmanager
async def _waits_are_logged(teachers: Sequence[Teacher], logged: dict[int, object]) -> AsyncIterator[None]:
    """While teachers work, a line each time that more requests to a server were sent again: actors have no log of their own."""

    async def look(number: int, teacher: Teacher) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            facts = await teacher.describe()
            if facts.get("retries", 0) != logged.get(number, 0):
                logged[number] = facts["retries"]
                text = "a teacher's server: %s requests sent again so far, pauses of %.0f s in all; the last error: %s"
                log.warning(text, facts["retries"], facts["paused_s"], facts["last_error"])

    looks = [asyncio.ensure_future(look(number, teacher)) for number, teacher in enumerate(teachers)]
    try:
        yield
    finally:
        for task in looks:
            task.cancel()
        await asyncio.gather(*looks, return_exceptions=True)
