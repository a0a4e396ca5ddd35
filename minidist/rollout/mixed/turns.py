"""Teacher-mixed sampling: each token is drawn from alpha * p + (1 - alpha) * q, p the teacher and q the student.

Drawing from the mixture is tossing a coin for every token that says whose token to take. The coins of a sequence are known
before it begins, so it passes between two engines in runs of equal coins, and each writes only what is its own.
(Gu et al., arXiv:2306.08543, equation 4.)
"""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from minidist.data.rendering import Renderer
from minidist.rollout.pool import Engines
from minidist.rollout.seeds import sample_seed
from minidist.rollout.vllm.sessions import Sampling, TakesTurns, Turn, Written
from minidist.types import Array, Finish, Prompt, Rollout, Weights

STUDENT, TEACHER = 0, 1
_NAMES = ("student", "teacher")
_SHARE = 0.5
"""Of the turns an engine has, how many it does before the other goes on. All of them: the last ones are written alone."""


def coins(alpha: float, count: int, *, seed: int, row: int, sample: int) -> Array:
    """`count` coins [count] bool of one sample, True (the teacher) with probability alpha; a function of the arguments."""
    return np.random.default_rng([seed, row, sample]).random(count) < alpha


@dataclass
class Phases:
    """Where the time of mixed sampling goes: for student and teacher, the tokens each wrote, its turns, calls and seconds."""

    tokens: list[int] = field(default_factory=lambda: [0, 0])
    turns: list[int] = field(default_factory=lambda: [0, 0])
    calls: list[int] = field(default_factory=lambda: [0, 0])
    seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])

    def count(self, side: int, turns: int, written: Sequence[Written], seconds: float) -> None:
        self.tokens[side] += sum(len(each.tokens) for each in written)
        self.turns[side] += turns
        self.calls[side] += 1
        self.seconds[side] += seconds

    def __iadd__(self, other: "Phases") -> "Phases":
        for name, values in vars(other).items():
            setattr(self, name, [mine + theirs for mine, theirs in zip(getattr(self, name), values, strict=True)])
        return self

    def figures(self) -> dict[str, float]:
        """As metrics: mixed/student_tokens, mixed/teacher_s ..."""
        units = {"tokens": self.tokens, "turns": self.turns, "calls": self.calls, "s": self.seconds}
        return {f"mixed/{name}_{unit}": float(values[i]) for unit, values in units.items() for i, name in enumerate(_NAMES)}


@dataclass
class _Sequence:
    """A sequence on its way: what stands there, and how much of it each side has read or written."""

    prompt: Prompt
    sample: int
    seed: int
    coins: Array
    text: list[int] = field(init=False)
    seen: list[int] = field(default_factory=lambda: [0, 0])
    logprobs: list[float] = field(default_factory=list)
    finish: Finish | None = None

    def __post_init__(self) -> None:
        self.text = self.prompt.tokens.tolist()

    @property
    def length(self) -> int:
        """Tokens written."""
        return len(self.logprobs)

    @property
    def side(self) -> int:
        """Who writes next."""
        return int(self.coins[self.length])

    def turn(self, place: int) -> Turn:
        """The run of equal coins that comes next."""
        side, rest = self.side, self.coins[self.length :]
        changes = np.flatnonzero(rest != rest[0])
        count = int(changes[0]) if len(changes) else len(rest)
        # One engine's draws are no function of the other's, so they need seeds of their own.
        seed = sample_seed(self.seed, self.prompt.row, self.sample) ^ (0x55555555 if side == TEACHER else 0)
        return Turn(place, self.text[self.seen[side] :], count, seed)

    def write(self, written: Written) -> None:
        """Add what a side wrote."""
        side = self.side
        self.text += written.tokens
        self.logprobs += written.logprobs if side == STUDENT else [float("nan")] * len(written.tokens)
        self.seen[side] = len(self.text)
        if written.stopped:
            self.finish = Finish.STOP
        elif self.length == len(self.coins):
            self.finish = Finish.LENGTH

    def rollout(self, renderer: Renderer, version: int) -> Rollout:
        assert self.finish is not None
        tokens = np.asarray(self.text[len(self.prompt.tokens) :], dtype=np.int32)
        return Rollout(
            prompt=self.prompt,
            tokens=tokens,
            logprobs=np.asarray(self.logprobs, dtype=np.float32),
            versions=np.full(len(tokens), version, dtype=np.int32),
            finish=self.finish,
            sample=self.sample,
            text=renderer.decode(tokens),
            coins=self.coins[: len(tokens)],
        )


class _OfStudent:
    """All but `generate` is the student's own."""

    def __init__(self, student: Any, alpha: float) -> None:
        self._student, self._alpha = student, alpha

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """The student's log-probabilities of every token after the first."""
        return await self._student.score(sequences)

    async def load(self, weights: Weights | Path) -> None:
        """The student's weights."""
        await self._student.load(weights)

    async def describe(self) -> dict[str, object]:
        """The student's engine, and the teacher's share."""
        return {**await self._student.describe(), "teacher_mix": self._alpha}

    async def close(self) -> None:
        await self._student.close()


class Lockstep(_OfStudent):
    """A rollout engine whose text is the mixture's, of a `rollout.lockstep.LockstepEngine`."""

    async def generate(self, prompts: Sequence[Prompt], **sampling: Any) -> list[Rollout]:
        """`samples` rollouts a prompt, in order, with their coins."""
        if self._alpha == 0:
            return await self._student.generate(prompts, **sampling)
        return await self._student.mix(prompts, self._alpha, **sampling)

    def figures(self) -> dict[str, float]:
        """None: both models work at every token."""
        return {}


class Alternating(_OfStudent):
    """A rollout engine whose text is the mixture's: student and teacher take turns, one at a time, each with all the threads.

    `sharing`: how many of these the teacher serves.
    """

    def __init__(self, student: Any, teacher: TakesTurns, alpha: float, renderer: Renderer, *, sharing: int = 1) -> None:
        super().__init__(student, alpha)
        self._sides: tuple[TakesTurns, TakesTurns] = (student, teacher)
        self._renderer, self._sharing = renderer, sharing
        self._last, self._all = Phases(), Phases()

    async def generate(
        self, prompts: Sequence[Prompt], *, samples: int, max_new_tokens: int, temperature: float, top_p: float, seed: int
    ) -> list[Rollout]:
        """`samples` rollouts a prompt, in order, with their coins. Cancelling it ends the sequences in both engines."""
        if self._alpha == 0:
            sampling = {"max_new_tokens": max_new_tokens, "temperature": temperature, "top_p": top_p, "seed": seed}
            return await self._student.generate(prompts, samples=samples, **sampling)
        sequences = [
            _Sequence(prompt, sample, seed, coins(self._alpha, max_new_tokens, seed=seed, row=prompt.row, sample=sample))
            for prompt in prompts
            for sample in range(samples)
        ]
        self._last, party = Phases(), uuid.uuid4().hex
        try:
            await self._write(_Round(party, sequences, await self._places(sequences)), temperature, top_p)
        except BaseException:
            # Where a side has died it cannot be told, and what killed it is what the caller must hear.
            await asyncio.gather(*(side.end_turns(party) for side in self._sides), return_exceptions=True)
            raise
        await asyncio.gather(*(side.end_turns(party) for side in self._sides))
        self._all += self._last
        version = int(str((await self._student.describe()).get("version", 0)))
        return [sequence.rollout(self._renderer, version) for sequence in sequences]

    async def describe(self) -> dict[str, object]:
        """The student's engine, the teacher's share, and what each side has done so far."""
        return {**await super().describe(), **self._all.figures()}

    def figures(self) -> dict[str, float]:
        """Of the last `generate`: tokens, turns, calls and seconds of each side."""
        return self._last.figures() if self._alpha else {}

    async def _write(self, work: "_Round", temperature: float, top_p: float) -> None:
        """Take turns until every sequence is finished."""
        side = STUDENT
        sampling = [Sampling(temperature, top_p, logprobs=each == STUDENT) for each in (STUDENT, TEACHER)]
        while (side := work.next_after(side)) is not None:
            turns, ended = work.hand_over(side)
            began = time.perf_counter()
            written = await self._sides[side].take_turns(work.party, turns, ended=ended, sampling=sampling[side], share=_SHARE)
            self._last.count(side, len(turns), written, time.perf_counter() - began)
            work.take_in(side, written)

    async def _places(self, sequences: Sequence[_Sequence]) -> int:
        """Sequences that both engines hold at one time, whatever their length comes to be."""
        longest = max((len(each.text) + len(each.coins) for each in sequences), default=1)
        student, teacher = await asyncio.gather(*(side.places(longest) for side in self._sides))
        return max(1, min(student, teacher // self._sharing))


class _Round:
    """The sequences of one `generate`: which wait for whom, and which are done. Those beyond the engines' places come later."""

    def __init__(self, party: str, sequences: list[_Sequence], places: int) -> None:
        self.party, self._sequences = party, sequences
        self._later, self._free = deque(range(len(sequences))), places
        self._turns: tuple[list[Turn], list[Turn]] = ([], [])
        self._ended: tuple[list[int], list[int]] = ([], [])
        self._working = [0, 0]
        self._admit()

    def next_after(self, side: int) -> int | None:
        """The other side, if it has something to do, else this one; None when all is done."""
        return next((each for each in (1 - side, side) if self._turns[each] or self._working[each]), None)

    def hand_over(self, side: int) -> tuple[list[Turn], list[int]]:
        """The turns that wait for a side, and the sequences that it may forget."""
        turns, ended = list(self._turns[side]), list(self._ended[side])
        self._turns[side].clear()
        self._ended[side].clear()
        self._working[side] += len(turns)
        return turns, ended

    def take_in(self, side: int, written: Sequence[Written]) -> None:
        """Let what was written be read by the other side, and sequences that wait take the places of those that ended."""
        self._working[side] -= len(written)
        for each in written:
            self._sequences[each.place].write(each)
            if self._sequences[each.place].finish is None:
                self._await(each.place)
                continue
            self._free += 1
            for ended in self._ended:
                ended.append(each.place)
        self._admit()

    def _admit(self) -> None:
        while self._later and self._free:
            self._free -= 1
            self._await(self._later.popleft())

    def _await(self, place: int) -> None:
        sequence = self._sequences[place]
        self._turns[sequence.side].append(sequence.turn(place))


class Mixtures(Engines):
    """Several of these engines behind the face of one."""

    members: list[Any]

    def figures(self) -> dict[str, float]:
        """The sum of theirs."""
        each = [member.figures() for member in self.members]
        return {name: sum(figures[name] for figures in each) for name in each[0]}
