"""Several teachers that act as one, and the shards of a teacher that is too large for one device."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial

from minidist.cluster.roster import Roster
from minidist.cluster.supervision import Supervised
from minidist.concurrency import together
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

    Large scores of a teacher in an actor stay in the object store of its node (`KeptScores`). What a teacher owes when it is
    lost is done by the others at once, or waits for it (`waits`, of the `Roster`).
    """

    def __init__(self, members: Sequence[Teacher], *, waits: bool = False) -> None:
        self.members = list(members)
        self._roster = Roster(self.members, waits=waits)
        self._retries: dict[int, object] = {}
        """Requests of each teacher that were sent again, as logged."""

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        """Scores of the rollouts' tokens, in their order."""
        async with _waits_are_logged(self._roster.present(), self._retries):
            scores = await self._scored(self._roster.present(), rollouts)
        count(score_bytes=sum(each.nbytes for each in scores))
        return scores

    async def _scored(self, teachers: Sequence[Teacher], rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        """Scores of rollouts that these teachers share; others score what a lost one owes."""

        async def part(teacher: Teacher, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
            again = partial(self._scored, rollouts=rollouts)
            return await self._roster.handed_on(teacher, lambda teacher: _score(teacher, rollouts), again)

        lengths = [len(rollout.for_teacher.prompt.tokens) + len(rollout.tokens) for rollout in rollouts]
        prompts = [rollout.for_teacher.prompt.tokens.tobytes() for rollout in rollouts]
        shares = share_out(lengths, len(teachers), prompts)
        parts = ([rollouts[index] for index in share] for share in shares)
        done = await together(part(teacher, share) for teacher, share in zip(teachers, parts, strict=True))
        scores = {
            index: each for share, part in zip(shares, done, strict=True) for index, each in zip(share, part, strict=True)
        }
        return [scores[index] for index in range(len(rollouts))]

    async def bury(self) -> set[str]:
        """Leave out the teachers that have died, but for those that are started again; the keepers of scores among those that
        live."""
        keepers = dict(zip(self.members, await asyncio.gather(*map(_keepers, self.members)), strict=True))
        self.members[:] = [teacher for teacher, found in keepers.items() if found or isinstance(teacher, Supervised)]
        if self.members and not any(keepers.values()):  # all are started again: the first to be there is waited for
            await self._roster.first_to_recover()
            return await self.bury()
        return set().union(*keepers.values())

    async def extend(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """The teachers' samples, in the prompts' order."""
        async with _waits_are_logged(self._roster.present(), self._retries):
            return await self._roster.deal(prompts, lambda teacher, part: teacher.extend(part, sampling), each=sampling.samples)

    async def describe(self) -> dict[str, object]:
        """The first teacher, and the number of teachers."""
        return await self._roster.present()[0].describe() | {"actors": len(self.members)}

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


async def _keepers(teacher: Teacher) -> set[str]:
    """The processes of a teacher, as keepers of scores; none where one of them has died."""
    whole = teacher.role if isinstance(teacher, Supervised) else teacher
    actors = whole.members if isinstance(whole, Shards) else [whole]
    try:
        await together(actor.describe() for actor in actors)
    except RoleError as error:
        if isinstance(teacher, Supervised):
            with suppress(RoleError):
                await teacher.lose(whole, error)
        return set()
    return {getattr(actor, "keeper", getattr(actor, "name", "")) for actor in actors}


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
