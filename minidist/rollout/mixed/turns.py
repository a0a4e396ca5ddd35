"""Teacher-mixed sampling: each token is drawn from alpha * p + (1 - alpha) * q, p the teacher and q the student.

A draw from the mixture is a coin toss for every token, which decides whose token is taken. The coins of a sequence are tossed
before it begins, so the sequence passes between two engines in runs of equal coins, and each engine writes only its own tokens.
(Gu et al., arXiv:2306.08543, equation 4.)
"""

import asyncio
import time
import uuid
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from minidist.cluster.roster import any_lost, recovered
from minidist.concurrency import together
from minidist.data.rendering import Renderer
from minidist.errors import RoleError
from minidist.rollout.answers import answered
from minidist.rollout.mixed.engine import MixedEngine
from minidist.rollout.seeds import sample_seed
from minidist.rollout.vllm.sessions import Turn, TurnRequest, TurnResult, TurnTaker
from minidist.types import Array, Prompt, Rollout, Sampling

STUDENT, TEACHER = 0, 1
_NAMES = ("student", "teacher")
_UNITS = ("tokens", "turns", "calls", "s")
"""Of what each side does in mixed sampling: tokens written, turns taken, calls, and seconds."""
_FRACTION, _FRACTION_AT_ONCE = 0.5, 0.1
"""Fraction of its turns that an engine does before the other engine continues. With all of them, the last few turns of each
request would run alone. Where both work at once, fewer: what one has written the other waits for."""


def coins(alpha: float, count: int, *, seed: int, row: int, sample: int) -> Array:
    """`count` coins [count] bool of one sample, True (the teacher) with probability alpha; a function of the arguments."""
    return np.random.default_rng([seed, row, sample]).random(count) < alpha


def _figures(counts: Array) -> dict[str, float]:
    """Counts [side, unit] as metrics: mixed/student_tokens, mixed/teacher_s ..."""
    return {f"mixed/{name}_{unit}": float(counts[i, j]) for j, unit in enumerate(_UNITS) for i, name in enumerate(_NAMES)}


@dataclass
class _Sequence:
    """A sequence in progress: the prompt of each side, the answer so far, and how many tokens of both a side has read or
    written."""

    prompt: Prompt
    sample: int
    seed: int
    prompts: tuple[list[int], list[int]]
    coins: Array
    answer: list[int] = field(default_factory=list)
    read: list[int] = field(default_factory=lambda: [0, 0])
    logprobs: list[float] = field(default_factory=list)
    stopped: bool = False

    @classmethod
    def of(cls, prompt: Prompt, sample: int, alpha: float, sampling: Sampling) -> "_Sequence":
        tossed = coins(alpha, sampling.max_new_tokens, seed=sampling.seed, row=prompt.row, sample=sample)
        return cls(prompt, sample, sampling.seed, (prompt.tokens.tolist(), prompt.for_teacher.tokens.tolist()), tossed)

    @property
    def length(self) -> int:
        """Tokens written."""
        return len(self.logprobs)

    @property
    def finished(self) -> bool:
        return self.stopped or self.length == len(self.coins)

    @property
    def side(self) -> int:
        """The side that writes next."""
        return int(self.coins[self.length])

    def longest(self, side: int) -> int:
        """Most tokens that a side may have to hold."""
        return len(self.prompts[side]) + len(self.coins)

    def turn(self, index: int) -> Turn:
        """The run of equal coins that comes next."""
        side, rest = self.side, self.coins[self.length :]
        changes = np.flatnonzero(rest != rest[0])
        count = int(changes[0]) if len(changes) else len(rest)
        # Each engine has its own seed, so that neither engine's draws are a function of the other's.
        seed = sample_seed(self.seed, self.prompt.row, self.sample) ^ (0x55555555 if side == TEACHER else 0)
        return Turn(index, [*self.prompts[side], *self.answer][self.read[side] :], count, seed)

    def write(self, result: TurnResult) -> None:
        """Add the tokens of the side that had the turn."""
        side = self.side
        self.answer += result.tokens
        self.logprobs += result.logprobs if side == STUDENT else [float("nan")] * len(result.tokens)
        self.read[side] = len(self.prompts[side]) + len(self.answer)
        self.stopped = result.stopped

    def rollout(self, renderer: Renderer, version: int) -> Rollout:
        tokens = np.asarray(self.answer, dtype=np.int32)
        coins = self.coins[: len(tokens)]
        return answered((self.prompt, self.sample), renderer, tokens, self.logprobs, version=version, coins=coins)


class TurnTakingEngine(MixedEngine):
    """Student and teacher engines take turns on each sequence. On the cores of one machine only one of them works at a time,
    with all the threads; on devices of their own both do. The tokens of a sequence are the same either way.

    Args:
        student, teacher: engines that take turns.
        alpha: probability that a token is the teacher's.
        sharing: number of such engines that the teacher serves; each may use an equal part of the teacher's capacity.
        at_once: whether the engines work at the same time.
    """

    def __init__(
        self,
        student: Any,
        teacher: TurnTaker,
        alpha: float,
        renderer: Renderer,
        *,
        sharing: int = 1,
        at_once: bool = False,
    ) -> None:
        super().__init__(student, alpha)
        self._at_once = at_once
        self._engines: tuple[Any, Any] = (student, teacher)
        self._sides: tuple[TurnTaker, TurnTaker] = (student, teacher)
        """The engines in their present processes."""
        self._renderer = renderer
        self._sharing = sharing
        self._last = np.zeros((len(_NAMES), len(_UNITS)))
        self._total = np.zeros_like(self._last)

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """`sampling.samples` rollouts a prompt, in order, with their coins.

        Cancelling the call ends its sequences in both engines.
        """
        if self._alpha == 0:
            return await self._student.generate(prompts, sampling)
        assert sampling.no_repeat_ngram_size is None, "a mixture blocks no n-grams"
        while True:
            # What a side holds of a call is lost with its process: a call belongs to the processes that it began with.
            self._sides = (await recovered(self._engines[STUDENT]), await recovered(self._engines[TEACHER]))
            try:
                return await self._mixed(prompts, sampling)
            except RoleError:
                if not await any_lost(self._engines, self._sides):
                    raise

    async def _mixed(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        sequences = [_Sequence.of(prompt, number, self._alpha, sampling) for prompt, number in sampling.jobs(prompts)]
        self._last, call = np.zeros_like(self._total), uuid.uuid4().hex
        try:
            await self._write(_Round(call, sequences, await self._capacity(sequences)), sampling)
        except BaseException:
            # An engine that has died cannot end its turns; the caller must see the error that killed it.
            await asyncio.gather(*(side.end_turns(call) for side in self._sides), return_exceptions=True)
            raise
        await asyncio.gather(*(side.end_turns(call) for side in self._sides))
        self._total += self._last
        version = await self.version()
        return [sequence.rollout(self._renderer, version) for sequence in sequences]

    async def describe(self) -> dict[str, Any]:
        """The student's engine, the teacher's share, and the counts of each side so far."""
        return await super().describe() | _figures(self._total)

    async def figures(self) -> dict[str, float]:
        """Tokens, turns, calls and seconds of each side in the last `generate`."""
        return _figures(self._last) if self._alpha else {}

    async def _write(self, work: "_Round", sampling: Sampling) -> None:
        """Take turns until every sequence is finished."""
        if self._at_once:
            await together(self._keep_writing(side, work, sampling) for side in (STUDENT, TEACHER))
            return
        side = STUDENT
        while (side := work.next_after(side)) is not None:
            await self._take_turns(side, work.request(side, sampling, _FRACTION), work)

    async def _keep_writing(self, side: int, work: "_Round", sampling: Sampling) -> None:
        """A side's turns, as the other side's make them possible."""
        while await work.comes(side):
            await self._take_turns(side, work.request(side, sampling, _FRACTION_AT_ONCE), work)

    async def _take_turns(self, side: int, request: TurnRequest, work: "_Round") -> None:
        began = time.perf_counter()
        results = await self._sides[side].take_turns(request)
        tokens, seconds = sum(len(result.tokens) for result in results), time.perf_counter() - began
        self._last[side] += tokens, len(request.turns), 1, seconds
        work.take_in(side, results)

    async def _capacity(self, sequences: Sequence[_Sequence]) -> int:
        """Number of sequences that both engines hold at one time, whatever lengths the sequences reach."""
        longest = [max((each.longest(side) for each in sequences), default=1) for side in (STUDENT, TEACHER)]
        asked = (engine.turn_capacity(tokens) for engine, tokens in zip(self._sides, longest, strict=True))
        student, teacher = await asyncio.gather(*asked)
        return max(1, min(student, teacher // self._sharing))


class _Round:
    """The sequences of one `generate`: which wait for which side, and which are done. At most `capacity` are open at a time."""

    def __init__(self, call: str, sequences: list[_Sequence], capacity: int) -> None:
        self._call = call
        self._sequences = sequences
        self._unopened = deque(range(len(sequences)))
        self._free = capacity
        self._turns: list[list[Turn]] = [[], []]
        self._finished: list[list[int]] = [[], []]
        self._working = [0, 0]
        self._moved = asyncio.Event()
        """Set when turns have ended since a side began to wait."""
        self._admit()

    def next_after(self, side: int) -> int | None:
        """The other side if it has work, else this side; None when all sequences are done."""
        return next((each for each in (1 - side, side) if self._turns[each] or self._working[each]), None)

    async def comes(self, side: int) -> bool:
        """Wait until a side has work. False when all sequences are done."""
        while not (self._turns[side] or self._working[side]):
            if self.next_after(side) is None:
                return False
            self._moved.clear()
            await self._moved.wait()
        return True

    def request(self, side: int, sampling: Sampling, fraction: float) -> TurnRequest:
        """The turns that wait for a side, and the sequences that the side may forget."""
        turns, self._turns[side] = self._turns[side], []
        finished, self._finished[side] = self._finished[side], []
        self._working[side] += len(turns)
        return TurnRequest(self._call, turns, finished, sampling, logprobs=side == STUDENT, fraction=fraction)

    def take_in(self, side: int, results: Sequence[TurnResult]) -> None:
        """Queue the other side's turns on the sequences just written, and open new sequences where others have finished."""
        self._working[side] -= len(results)
        for result in results:
            self._sequences[result.index].write(result)
            if not self._sequences[result.index].finished:
                self._queue(result.index)
                continue
            self._free += 1
            for finished in self._finished:
                finished.append(result.index)
        self._admit()
        self._moved.set()

    def _admit(self) -> None:
        while self._unopened and self._free:
            self._free -= 1
            self._queue(self._unopened.popleft())

    def _queue(self, index: int) -> None:
        sequence = self._sequences[index]
        self._turns[sequence.side].append(sequence.turn(index))
