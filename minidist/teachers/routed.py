"""Several teachers behind the face of one: each row has its own, or all of them score every row and are mixed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from minidist.concurrency import together
from minidist.protocols import Teacher
from minidist.teachers.pool import Teachers
from minidist.types import MixedScores, Payload, Prompt, Rollout, Sampling, Scores, TeacherScores


class RoutedTeachers:
    """Teachers of different names score side by side, each in actors of its own.

    Args:
        pools: the actors of each teacher, by its name.
        heads: of each teacher, the name under which the learner holds its output head; teachers with the same head share one.
        weights: shares of a mixture, of all teachers that have one; none where each row names its teacher (`Prompt.teacher`).
    """

    def __init__(
        self, pools: Mapping[str, Teachers], heads: Mapping[str, str], weights: Mapping[str, float] | None = None
    ) -> None:
        self.pools = dict(pools)
        self._heads = dict(heads)
        self._weights = dict(weights or {})

    @property
    def members(self) -> list[Teacher]:
        """The actors of all teachers."""
        return [member for pool in self.pools.values() for member in pool.members]

    async def score(self, rollouts: Sequence[Rollout]) -> Sequence[Scores]:
        """Scores of the rollouts' tokens, in their order: by the teacher of each, or of the mixture."""
        if self._weights:
            return await self._mixed(rollouts)
        shares = _shares([rollout.prompt.teacher for rollout in rollouts])
        done = await together(self._of(name, [rollouts[index] for index in share]) for name, share in shares.items())
        pairs = zip(shares.values(), done, strict=True)
        scores = {index: each for share, part in pairs for index, each in zip(share, part, strict=True)}
        return [scores[index] for index in range(len(rollouts))]

    async def extend(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """Samples after each prompt of the prompt's own teacher, in the prompts' order."""
        assert not self._weights, "no teacher writes text of the mixture"
        shares, count = _shares([prompt.teacher for prompt in prompts]), sampling.samples
        parts = {name: [prompts[index] for index in share] for name, share in shares.items()}
        done = await together(self.pools[name].extend(part, sampling) for name, part in parts.items())
        written = {
            index: part[number * count : (number + 1) * count]
            for share, part in zip(shares.values(), done, strict=True)
            for number, index in enumerate(share)
        }
        return [rollout for index in range(len(prompts)) for rollout in written[index]]

    async def bury(self) -> set[str]:
        """Leave out the actors that have died; names of those that live. None where a teacher has no actor left."""
        alive = await together(pool.bury() for pool in self.pools.values())
        return set[str]().union(*alive) if all(alive) else set()

    async def describe(self) -> dict[str, object]:
        """What each teacher says of itself, by its name."""
        facts = await together(pool.describe() for pool in self.pools.values())
        mixed = {"weights": self._weights} if self._weights else {}
        return {"class": type(self).__name__, **mixed, "teachers": dict(zip(self.pools, facts, strict=True))}

    async def close(self) -> None:
        await together(pool.close() for pool in self.pools.values())

    async def _of(self, name: str, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        """The scores of one teacher; hidden states name their head."""
        scores = await self.pools[name].score(rollouts)
        head = self._heads[name]
        return [replace(each, head=head) if each.payload is Payload.HIDDEN else each for each in scores]

    async def _mixed(self, rollouts: Sequence[Rollout]) -> list[Scores]:
        """The scores of all teachers that have a share, mixed where they are log-probabilities of the tokens alone."""
        done = await together(self._of(name, rollouts) for name in self._weights)
        weights = tuple(self._weights.values())
        return [mixed(members, weights) for members in zip(*done, strict=True)]


def mixed(members: Sequence[TeacherScores], weights: Sequence[float]) -> Scores:
    """The scores of a mixture of teachers of the same tokens: log sum of weight * p of the sampled tokens, where all members
    give these alone; of hidden states the learner mixes the distributions.

    >>> halves = [TeacherScores(Payload.SAMPLED, np.log([p])) for p in (0.2, 0.6)]
    >>> mixed(halves, [0.5, 0.5]).logprobs.round(4) == np.log(0.4).round(4)
    array([ True])
    """
    if len(members) == 1:
        return members[0]
    if any(member.payload is not Payload.SAMPLED for member in members):
        return MixedScores(tuple(members), tuple(weights))
    table = np.stack([np.asarray(member.logprobs, dtype=np.float64) for member in members]) + np.log(weights)[:, None]
    return TeacherScores(Payload.SAMPLED, logprobs=np.logaddexp.reduce(table, axis=0).astype(np.float32))


def _shares(names: Sequence[str]) -> dict[str, list[int]]:
    """Indices by name."""
    found: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        found.setdefault(name, []).append(index)
    return found
