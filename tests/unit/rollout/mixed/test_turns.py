"""Which engine writes which token in teacher-mixed sampling: coins, turns, capacity; with engines that write one letter."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from minidist.rollout.mixed.engine import LockstepEngine
from minidist.rollout.mixed.turns import TurnTakingEngine, coins
from minidist.rollout.pool import Engines
from minidist.rollout.vllm.sessions import Turn, TurnRequest, TurnResult
from minidist.types import Finish, Prompt, Rollout, Sampling
from tests.support.mortal import Place
from tests.support.tiny import random_rollouts, tiny_renderer

RENDERER = tiny_renderer()
EOS = RENDERER.eos
SAMPLING = Sampling(max_new_tokens=12, temperature=0.7, top_p=0.9, seed=5)


class LetterEngine:
    """Writes one letter, keeps all it reads, and refuses what a real engine cannot serve. Ends a text at `stop_at`."""

    def __init__(self, letter: int, *, capacity: int = 1000, stop_at: int = 1000) -> None:
        self.letter, self.capacity, self.stop_at = letter, capacity, stop_at
        self.texts: dict[str, dict[int, list[int]]] = {}
        self.waiting: list[tuple[str, Turn]] = []
        self.samplings: set[tuple[Sampling, bool]] = set()
        self.log: list[str] = []
        self.most = 0

    async def turn_capacity(self, tokens: int) -> int:
        return self.capacity

    async def take_turns(self, request: TurnRequest) -> list[TurnResult]:
        self.log.append(f"{self.letter}:{len(request.turns)}")
        self.samplings.add((request.sampling, request.logprobs))
        texts = self.texts.setdefault(request.call, {})
        for index in request.finished:
            texts.pop(index, None)
        for turn in request.turns:
            assert turn.count > 0
            assert turn.unread
            texts.setdefault(turn.index, []).extend(turn.unread)
        self.most = max(self.most, len(texts))
        assert len(texts) <= self.capacity
        self.waiting += [(request.call, turn) for turn in request.turns]
        count = max(1, round(request.fraction * len(self.waiting)))
        now, self.waiting = self.waiting[:count], self.waiting[count:]
        await asyncio.sleep(0)
        return [self.write(texts[turn.index], turn) for _, turn in now]

    def write(self, text: list[int], turn: Turn) -> TurnResult:
        tokens = [self.letter] * turn.count
        if (end := max(1, self.stop_at - len(text))) <= turn.count:
            tokens = [*tokens[: end - 1], EOS]
        text += tokens
        return TurnResult(turn.index, tokens, [-0.5] * len(tokens), tokens[-1] == EOS)

    async def end_turns(self, call: str) -> None:
        self.log.append(f"{self.letter}:end")
        self.texts.pop(call, None)
        self.waiting = [each for each in self.waiting if each[0] != call]

    async def version(self) -> int:
        return 7

    async def describe(self) -> dict[str, object]:
        return {}

    async def figures(self) -> dict[str, float]:
        return {}

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        self.log.append("generate")
        return []

    async def mix(self, prompts: Sequence[Prompt], alpha: float, sampling: Sampling) -> list[Rollout]:
        self.log.append(f"mix {alpha}")
        return []


def prompts(count: int) -> list[Prompt]:
    return [rollout.prompt for rollout in random_rollouts([(3, 1)] * count)]


def test_coins_are_a_function_of_seed_row_and_sample() -> None:
    drawn = {
        (seed, row, sample): coins(0.3, 64, seed=seed, row=row, sample=sample).tobytes()
        for seed in range(3)
        for row in range(3)
        for sample in range(3)
    }
    assert len(set(drawn.values())) == 27
    assert coins(0.3, 64, seed=1, row=2, sample=0).tobytes() == drawn[1, 2, 0]
    assert coins(0.3, 9, seed=1, row=2, sample=0).tolist() == coins(0.3, 64, seed=1, row=2, sample=0)[:9].tolist()
    assert np.mean([coins(0.3, 64, seed=0, row=row, sample=0).mean() for row in range(400)]) == pytest.approx(0.3, abs=0.01)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("capacity", [1000, 5, 1])
def test_each_side_writes_the_tokens_of_its_coins(capacity: int, at_once: bool) -> None:
    student, teacher = LetterEngine(3, capacity=capacity), LetterEngine(4)
    engine = TurnTakingEngine(student, teacher, 0.4, RENDERER, at_once=at_once)  # type: ignore[arg-type]
    rollouts = asyncio.run(engine.generate(prompts(9), replace(SAMPLING, samples=2)))
    assert [(each.prompt.row, each.sample) for each in rollouts] == [(row, number) for row in range(9) for number in range(2)]
    for rollout in rollouts:
        expected = coins(0.4, 12, seed=5, row=rollout.prompt.row, sample=rollout.sample)
        assert rollout.coins is not None
        assert rollout.logprobs is not None
        assert rollout.coins.tolist() == expected.tolist()
        assert rollout.tokens.tolist() == np.where(expected, 4, 3).tolist()
        assert np.isnan(rollout.logprobs).tolist() == expected.tolist()
        assert rollout.versions.tolist() == [7] * 12
        assert rollout.finish is Finish.LENGTH
    assert max(student.most, teacher.most) <= capacity
    assert student.samplings == {(replace(SAMPLING, samples=2), True)}
    assert teacher.samplings == {(replace(SAMPLING, samples=2), False)}
    heads = sum(int(rollout.coins.sum()) for rollout in rollouts if rollout.coins is not None)
    figures = asyncio.run(engine.figures())
    assert figures["mixed/teacher_tokens"] == heads
    assert figures["mixed/student_tokens"] == 18 * 12 - heads
    assert not student.texts
    assert not teacher.texts


def test_each_side_reads_its_own_prompt_and_the_same_answer() -> None:
    """A teacher in a context of its own (teacher.context) continues that context."""

    class Reader(LetterEngine):
        read: dict[int, list[int]]
        longest = 0

        async def turn_capacity(self, tokens: int) -> int:
            self.longest = tokens
            return self.capacity

        def write(self, text: list[int], turn: Turn) -> TurnResult:
            result = super().write(text, turn)
            self.read = getattr(self, "read", {}) | {turn.index: list(text)}
            return result

    own = [replace(prompt, teacher_tokens=np.array([9, 8, 7, 6, prompt.row])) for prompt in prompts(6)]
    student, teacher = Reader(3), Reader(4)
    rollouts = asyncio.run(TurnTakingEngine(student, teacher, 0.5, RENDERER).generate(own, SAMPLING))  # type: ignore[arg-type]
    assert (student.longest, teacher.longest) == (3 + 12, 5 + 12)
    for index, rollout in enumerate(rollouts):
        assert rollout.prompt is own[index]
        for side, prompt in ((student, own[index].tokens), (teacher, own[index].for_teacher.tokens)):
            whole = [*prompt.tolist(), *rollout.tokens.tolist()]
            assert side.read[index] == whole[: len(side.read[index])]
            assert len(side.read[index]) > len(prompt)


@pytest.mark.parametrize(("sharing", "most"), [(1, 6), (2, 3), (9, 1)])
def test_engines_that_share_a_teacher_use_equal_parts_of_its_capacity(sharing: int, most: int) -> None:
    student, teacher = LetterEngine(3), LetterEngine(4, capacity=6)
    engine = TurnTakingEngine(student, teacher, 0.4, RENDERER, sharing=sharing)  # type: ignore[arg-type]
    asyncio.run(engine.generate(prompts(9), SAMPLING))
    assert (student.most, teacher.most) == (most, most)


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_the_end_of_sequence_token_of_either_side_ends_the_text(who: str, at_once: bool) -> None:
    sides = {"student": LetterEngine(3), "teacher": LetterEngine(4)}
    sides[who].stop_at = 3 + 6  # the prompt and six tokens
    engine = TurnTakingEngine(sides["student"], sides["teacher"], 0.5, RENDERER, at_once=at_once)  # type: ignore[arg-type]
    for rollout in asyncio.run(engine.generate(prompts(16), SAMPLING)):
        assert rollout.coins is not None
        assert len(rollout.coins) == len(rollout.tokens)
        ends = np.flatnonzero(rollout.tokens == EOS).tolist()
        mine = coins(0.5, 12, seed=5, row=rollout.prompt.row, sample=0) == (who == "teacher")
        first = next((index for index in range(5, 12) if mine[index]), None)
        assert ends == ([] if first is None else [first])
        assert rollout.finish is (Finish.LENGTH if first is None else Finish.STOP)
        assert len(rollout.tokens) == (12 if first is None else first + 1)


def test_the_two_sides_draw_with_different_seeds() -> None:
    seeds: dict[int, set[int]] = {3: set(), 4: set()}

    class SeedRecorder(LetterEngine):
        def write(self, text: list[int], turn: Turn) -> TurnResult:
            seeds[self.letter].add(turn.seed)
            return super().write(text, turn)

    engine = TurnTakingEngine(SeedRecorder(3), SeedRecorder(4), 0.5, RENDERER)  # type: ignore[arg-type]
    asyncio.run(engine.generate(prompts(8), replace(SAMPLING, samples=2)))
    assert len(seeds[3]) == len(seeds[4]) == 16, "one for every sample, the same at all its turns"
    assert not seeds[3] & seeds[4]


def test_one_side_writes_alone_at_alpha_zero_and_one() -> None:
    student, teacher = LetterEngine(3), LetterEngine(4)
    rollouts = asyncio.run(TurnTakingEngine(student, teacher, 1.0, RENDERER).generate(prompts(2), SAMPLING))  # type: ignore[arg-type]
    assert all(rollout.tokens.tolist() == [4] * 12 and rollout.coins.all() for rollout in rollouts)  # type: ignore[union-attr]
    assert student.log == ["3:end"]
    plain = TurnTakingEngine(student, teacher, 0.0, RENDERER)  # type: ignore[arg-type]
    asyncio.run(plain.generate(prompts(2), SAMPLING))
    assert student.log == ["3:end", "generate"]
    assert asyncio.run(plain.figures()) == {}


def test_lockstep_needs_one_engine() -> None:
    engine = LetterEngine(3)
    for alpha in (0.0, 0.2):
        asyncio.run(Engines([LockstepEngine(engine, alpha)]).generate(prompts(1), SAMPLING))
    assert engine.log == ["generate", "mix 0.2"]
    assert asyncio.run(Engines([LockstepEngine(engine, 0.2)]).figures()) == {}


@pytest.mark.parametrize("at_once", [False, True])
def test_both_sides_work_at_the_same_time_only_on_devices_of_their_own(at_once: bool) -> None:
    """By a clock of turns: a call takes as long as its longest turn."""
    working: set[int] = set()
    together: list[bool] = []

    class Slow(LetterEngine):
        async def take_turns(self, request: TurnRequest) -> list[TurnResult]:
            working.add(self.letter)
            for _ in range(3):
                await asyncio.sleep(0)
                together.append(len(working) == 2)
            working.discard(self.letter)
            return await super().take_turns(request)

    engine = TurnTakingEngine(Slow(3), Slow(4), 0.5, RENDERER, at_once=at_once)  # type: ignore[arg-type]
    asyncio.run(engine.generate(prompts(40), SAMPLING))
    assert (np.mean(together) > 0.5) if at_once else not any(together)


@pytest.mark.parametrize("at_once", [False, True])
def test_a_failure_of_one_engine_ends_the_sequences_of_both(at_once: bool) -> None:
    class Failing(LetterEngine):
        def write(self, text: list[int], turn: Turn) -> TurnResult:
            raise RuntimeError("no")

    student, teacher = LetterEngine(3), Failing(4)
    with pytest.raises(RuntimeError, match="no"):
        engine = TurnTakingEngine(student, teacher, 0.5, RENDERER, at_once=at_once)  # type: ignore[arg-type]
        asyncio.run(engine.generate(prompts(4), SAMPLING))
    assert student.log[-1] == "3:end"
    assert teacher.log[-1] == "4:end"
    assert not student.texts
    assert not teacher.texts


def test_the_figures_of_a_pool_are_sums() -> None:
    pool = Engines([TurnTakingEngine(LetterEngine(3), LetterEngine(4), 0.5, RENDERER, sharing=2) for _ in range(2)])  # type: ignore[arg-type]
    rollouts = asyncio.run(pool.generate(prompts(5), replace(SAMPLING, samples=2)))
    assert [(each.prompt.row, each.sample) for each in rollouts] == [(row, number) for row in range(5) for number in range(2)]
    figures = asyncio.run(pool.figures())
    assert figures["mixed/student_tokens"] + figures["mixed/teacher_tokens"] == 120
    assert asyncio.run(pool.describe())["actors"] == 2


@pytest.mark.parametrize("side", [0, 1])
@pytest.mark.parametrize("when", [1, 3])
@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("idle", [False, True])
def test_a_mixture_is_written_anew_where_a_side_dies_and_never_goes_on_in_another_process(
    side: int, when: int, at_once: bool, idle: bool
) -> None:
    """A new process has none of the sequences: what it is given as unread would be a part of a text. `idle`: the side dies
    while the other one works, and is there again when its next turns come."""
    engines: list[Any] = []
    turns = [0, 0]

    class Dying(LetterEngine):
        async def take_turns(self, request: TurnRequest) -> list[TurnResult]:
            results = await super().take_turns(request)
            own = self.letter - 4
            turns[own] += 1
            if turns[own] == when and own == (1 - side if idle else side):
                engines[side].role.die()
                while idle and not engines[side].ready:
                    await asyncio.sleep(0)
            return results

    async def run() -> None:
        place = Place()
        engines.extend(place.supervise(name, Dying, letter=letter) for name, letter in (("rollout", 4), ("teacher", 5)))
        prompts = [each.prompt for each in random_rollouts([(3, 4), (5, 4), (2, 4)])]
        mixed = TurnTakingEngine(*engines, 0.5, RENDERER, at_once=at_once)
        found = await Engines([mixed]).generate(prompts, replace(SAMPLING, samples=2))
        undisturbed = TurnTakingEngine(LetterEngine(4), LetterEngine(5), 0.5, RENDERER, at_once=at_once)
        expected = await undisturbed.generate(prompts, replace(SAMPLING, samples=2))
        assert [each.tokens.tolist() for each in found] == [each.tokens.tolist() for each in expected]
        assert len(place.started) == 3

    asyncio.run(run())
