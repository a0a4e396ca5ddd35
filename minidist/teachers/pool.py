"""Several teachers that act as one, and the shards of a teacher that is too large for one device."""

from collections.abc import Sequence

from minidist.concurrency import deal, together
from minidist.protocols import Teacher
from minidist.types import Prompt, Rollout, Sampling, TeacherScores


class Teachers:
    """Teacher i mod R scores rollout i of a call, R the number of teachers; prompts are dealt in the same way."""

    def __init__(self, members: Sequence[Teacher]) -> None:
        self.members = list(members)

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        """Scores of the rollouts' tokens, in their order."""
        return await deal(self.members, rollouts, lambda teacher, part: teacher.score(part))

    async def extend(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """The teachers' samples, in the prompts' order."""
        return await deal(self.members, prompts, lambda teacher, part: teacher.extend(part, sampling), each=sampling.samples)

    async def describe(self) -> dict[str, object]:
        """The first teacher, and the number of teachers."""
        return await self.members[0].describe() | {"actors": len(self.members)}

    async def close(self) -> None:
        await together(teacher.close() for teacher in self.members)


class Shards(Teachers):
    """The ranks of one partitioned model; all of them take part in every call."""

    async def extend(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """Every rank writes the same text, since each token needs the whole model."""
        written = await together(rank.extend(prompts, sampling) for rank in self.members)
        return written[0]
