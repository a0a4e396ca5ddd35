"""Who writes what in teacher-mixed sampling: coins, turns, handing over, places; with engines that only count."""

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from minidist.rollout.mixed.turns import Alternating, Lockstep, Mixtures, coins
from minidist.rollout.vllm.sessions import Sampling, Turn, Written
from minidist.types import Finish, Prompt, Rollout
from tests.support.tiny import random_rollouts, tiny_renderer

RENDERER = tiny_renderer()
EOS = RENDERER.eos
OPTIONS: dict[str, Any] = {"max_new_tokens": 12, "temperature": 0.7, "top_p": 0.9, "seed": 5}


class Scribe:
    """Writes its own letter, notes all it reads, and refuses what a real engine could not do. Ends a text at `stop_at`."""

    def __init__(self, letter: int, *, places: int = 1000, stop_at: int = 1000, log: list[str] | None = None) -> None:
        self.letter, self.room, self.stop_at = letter, places, stop_at
        self.texts: dict[str, dict[int, list[int]]] = {}
        self.waiting: list[tuple[str, Turn]] = []
        self.samplings: set[Sampling] = set()
        self.log = [] if log is None else log
        self.most = 0

    async def places(self, tokens: int) -> int:
        return self.room

    async def take_turns(
        self, party: str, turns: Sequence[Turn], *, ended: Sequence[int], sampling: Sampling, share: float
    ) -> list[Written]:
        self.log.append(f"{self.letter}:{len(turns)}")
        self.samplings.add(sampling)
        texts = self.texts.setdefault(party, {})
        for place in ended:
            texts.pop(place, None)
        for turn in turns:
            assert turn.count > 0
            assert turn.given
            texts.setdefault(turn.place, []).extend(turn.given)
        self.most = max(self.most, len(texts))
        assert len(texts) <= self.room
        self.waiting += [(party, turn) for turn in turns]
        count = max(1, round(share * len(self.waiting)))
        now, self.waiting = self.waiting[:count], self.waiting[count:]
        await asyncio.sleep(0)
        return [self.written(texts[turn.place], turn) for _, turn in now]

    def written(self, text: list[int], turn: Turn) -> Written:
        tokens = [self.letter] * turn.count
        if (end := max(1, self.stop_at - len(text))) <= turn.count:
            tokens = [*tokens[: end - 1], EOS]
        text += tokens
        return Written(turn.place, tokens, [-0.5] * len(tokens), tokens[-1] == EOS)

    async def end_turns(self, party: str) -> None:
        self.log.append(f"{self.letter}:end")
        self.texts.pop(party, None)
        self.waiting = [each for each in self.waiting if each[0] != party]

    async def describe(self) -> dict[str, object]:
        return {"version": 7}

    async def generate(self, prompts: Sequence[Prompt], **sampling: Any) -> list[Rollout]:
        self.log.append("generate")
        return []

    async def mix(self, prompts: Sequence[Prompt], alpha: float, **sampling: Any) -> list[Rollout]:
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


@pytest.mark.parametrize("room", [1000, 5, 1])
def test_each_side_writes_where_its_coin_fell(room: int) -> None:
    student, teacher = Scribe(3, places=room), Scribe(4)
    engine = Alternating(student, teacher, 0.4, RENDERER)  # type: ignore[arg-type]
    rollouts = asyncio.run(engine.generate(prompts(9), samples=2, **OPTIONS))
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
    assert max(student.most, teacher.most) <= room
    assert student.samplings == {Sampling(0.7, 0.9, logprobs=True)}
    assert teacher.samplings == {Sampling(0.7, 0.9, logprobs=False)}
    heads = sum(int(rollout.coins.sum()) for rollout in rollouts if rollout.coins is not None)
    assert engine.figures()["mixed/teacher_tokens"] == heads
    assert engine.figures()["mixed/student_tokens"] == 18 * 12 - heads
    assert not student.texts
    assert not teacher.texts


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_the_end_that_either_writes_ends_the_text(who: str) -> None:
    """And neither side reads on."""
    sides = {"student": Scribe(3), "teacher": Scribe(4)}
    sides[who].stop_at = 3 + 6  # the prompt and six tokens
    engine = Alternating(sides["student"], sides["teacher"], 0.5, RENDERER)  # type: ignore[arg-type]
    for rollout in asyncio.run(engine.generate(prompts(16), samples=1, **OPTIONS)):
        assert rollout.coins is not None
        assert len(rollout.coins) == len(rollout.tokens)
        ends = np.flatnonzero(rollout.tokens == EOS).tolist()
        mine = coins(0.5, 12, seed=5, row=rollout.prompt.row, sample=0) == (who == "teacher")
        first = next((place for place in range(5, 12) if mine[place]), None)
        assert ends == ([] if first is None else [first])
        assert rollout.finish is (Finish.LENGTH if first is None else Finish.STOP)
        assert len(rollout.tokens) == (12 if first is None else first + 1)


def test_the_two_sides_draw_with_seeds_of_their_own() -> None:
    seeds: dict[int, set[int]] = {3: set(), 4: set()}

    class Noting(Scribe):
        def written(self, text: list[int], turn: Turn) -> Written:
            seeds[self.letter].add(turn.seed)
            return super().written(text, turn)

    engine = Alternating(Noting(3), Noting(4), 0.5, RENDERER)  # type: ignore[arg-type]
    asyncio.run(engine.generate(prompts(8), samples=2, **OPTIONS))
    assert len(seeds[3]) == len(seeds[4]) == 16, "one for every sample, the same at all its turns"
    assert not seeds[3] & seeds[4]


def test_one_side_alone_where_the_coin_has_one_face() -> None:
    student, teacher = Scribe(3), Scribe(4)
    taught = asyncio.run(Alternating(student, teacher, 1.0, RENDERER).generate(prompts(2), samples=1, **OPTIONS))  # type: ignore[arg-type]
    assert all(rollout.tokens.tolist() == [4] * 12 and rollout.coins.all() for rollout in taught)  # type: ignore[union-attr]
    assert student.log == ["3:end"]
    plain = Alternating(student, teacher, 0.0, RENDERER)  # type: ignore[arg-type]
    asyncio.run(plain.generate(prompts(2), samples=1, **OPTIONS))
    assert student.log == ["3:end", "generate"]
    assert plain.figures() == {}


def test_in_step_there_is_one_engine() -> None:
    engine = Scribe(3)
    for alpha in (0.0, 0.2):
        asyncio.run(Mixtures([Lockstep(engine, alpha)]).generate(prompts(1), samples=1, **OPTIONS))
    assert engine.log == ["generate", "mix 0.2"]
    assert Mixtures([Lockstep(engine, 0.2)]).figures() == {}


def test_a_failure_ends_the_sequences_of_both() -> None:
    class Failing(Scribe):
        def written(self, text: list[int], turn: Turn) -> Written:
            raise RuntimeError("no")

    student, teacher = Scribe(3), Failing(4)
    with pytest.raises(RuntimeError, match="no"):
        asyncio.run(Alternating(student, teacher, 0.5, RENDERER).generate(prompts(4), samples=1, **OPTIONS))  # type: ignore[arg-type]
    assert student.log[-1] == "3:end"
    assert teacher.log[-1] == "4:end"
    assert not student.texts
    assert not teacher.texts


def test_several_add_up_their_figures() -> None:
    pool = Mixtures([Alternating(Scribe(3), Scribe(4), 0.5, RENDERER, sharing=2) for _ in range(2)])  # type: ignore[arg-type]
    rollouts = asyncio.run(pool.generate(prompts(5), samples=2, **OPTIONS))
    assert [(each.prompt.row, each.sample) for each in rollouts] == [(row, number) for row in range(5) for number in range(2)]
    figures = pool.figures()
    assert figures["mixed/student_tokens"] + figures["mixed/teacher_tokens"] == 120
    assert asyncio.run(pool.describe())["actors"] == 2
