"""Teacher-mixed sampling by turns: two vLLM engines in two actors draw from the enumerated mixture, and free what they held."""

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from minidist.rollout.mixed.turns import TurnTakingEngine
from minidist.rollout.pool import Engines
from minidist.types import Finish, Prompt, Rollout, Sampling
from tests.integration.conftest import SHAPE, Stack, save_model
from tests.support.mixture import law, p_value
from tests.support.on_device import mixed_sequences_are_whole

DRAWS = 20_000


@pytest.fixture(scope="module")
def teacher(stack: Stack) -> Iterator[Any]:
    """A teacher in transformers that also takes turns, in an actor of its own."""
    teacher = stack.host_teacher()
    stack.run(stack.engine.load(stack.student))  # whatever weights another test has left
    yield teacher
    stack.dismiss(teacher)


def model_at(path: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(path).eval()


def written(stack: Stack, engine: Any, prompts: list[Prompt], **options: Any) -> list[Rollout]:
    return stack.run(engine.generate(prompts, Sampling(**({"max_new_tokens": 3} | options))))


def held(stack: Stack, teacher: Any) -> tuple[Any, Any]:
    """The number of sequences whose keys and values each of the two engines holds."""
    student, teacher = stack.run(stack.engine.describe()), stack.run(teacher.describe())
    return student["sequences_held"], teacher["takes_turns"]["sequences_held"]


@pytest.mark.parametrize(
    ("alpha", "draws", "options"),
    [
        (0.5, DRAWS, {"temperature": 0.3}),  # sharp: the next token hangs on every one before it
        (0.2, DRAWS // 4, {}),
        (0.5, DRAWS // 4, {"temperature": 0.7, "top_p": 0.9}),
        (1.0, DRAWS // 4, {"temperature": 0.3}),
    ],
)
def test_draws_follow_the_mixture(stack: Stack, teacher: Any, alpha: float, draws: int, options: dict[str, float]) -> None:
    """Far more sequences than the engines hold at once; temperature and top-p act on each model before mixing."""
    prompt = stack.prompts(["b="])[0]
    engine = TurnTakingEngine(stack.engine, teacher, alpha, stack.renderer)
    rollouts = written(stack, engine, [prompt], samples=draws, **options)
    models = model_at(stack.student), model_at(stack.teacher_path)
    expected = law(*models, prompt, alpha=alpha, count=3, stops=stack.renderer.stops, **options)
    assert p_value(expected, rollouts) > 1e-3
    coins = np.concatenate([rollout.coins for rollout in rollouts if rollout.coins is not None])
    assert coins.mean() == pytest.approx(alpha, abs=4 * (alpha * (1 - alpha) / len(coins)) ** 0.5)
    assert held(stack, teacher) == (0, 0)
    figures = stack.run(engine.figures())
    assert figures["mixed/student_tokens"] + figures["mixed/teacher_tokens"] == len(coins)
    assert (figures["mixed/student_turns"] == 0) == (alpha == 1)
    assert figures["mixed/teacher_s"] > 0


def test_mixed_sequences_are_whole_where_both_engines_work_at_once(stack: Stack, teacher: Any) -> None:
    """As `tests/gpu` runs it, where they take turns."""
    try:
        mixed_sequences_are_whole(stack, teacher, at_once=True)
    finally:
        stack.run(stack.engine.load(stack.student))  # as the other tests expect it


def test_a_teacher_in_its_own_context_continues_from_there(stack: Stack, teacher: Any) -> None:
    prompt = replace(stack.prompts(["b="])[0], teacher_tokens=stack.renderer.prompt("abcb="))
    rollouts = written(stack, TurnTakingEngine(stack.engine, teacher, 0.6, stack.renderer), [prompt], samples=DRAWS // 4)
    models, options = (model_at(stack.student), model_at(stack.teacher_path)), {"alpha": 0.6, "count": 3}
    expected = law(*models, prompt, stops=stack.renderer.stops, **options)  # type: ignore[arg-type]
    assert p_value(expected, rollouts) > 1e-3
    plain = law(*models, replace(prompt, teacher_tokens=None), stops=stack.renderer.stops, **options)  # type: ignore[arg-type]
    assert p_value(plain, rollouts) < 1e-6


def test_with_alpha_zero_the_mixed_engine_is_the_plain_engine(stack: Stack, teacher: Any) -> None:
    prompts = stack.prompts(["hgfedcba=", "qz="])
    mixed = written(stack, TurnTakingEngine(stack.engine, teacher, 0.0, stack.renderer), prompts, samples=4, max_new_tokens=20)
    plain = written(stack, stack.engine, prompts, samples=4, max_new_tokens=20)
    assert [rollout.tokens.tolist() for rollout in mixed] == [rollout.tokens.tolist() for rollout in plain]
    assert all(rollout.coins is None for rollout in mixed)


class TeacherAsStudent:
    """A teacher that takes the student's turns; its frozen weights have version 0."""

    def __init__(self, teacher: Any) -> None:
        self._teacher = teacher

    def __getattr__(self, verb: str) -> Any:
        return getattr(self._teacher, verb)

    async def version(self) -> int:
        return 0


@pytest.mark.parametrize("swapped", [False, True])
def test_keys_and_values_kept_between_turns_give_the_right_logprobs(stack: Stack, teacher: Any, swapped: bool) -> None:
    """The log-probabilities of a long sequence's own tokens are those of one forward pass; swapped, the teacher's are."""
    sides = (TeacherAsStudent(teacher), stack.engine) if swapped else (stack.engine, teacher)
    model = model_at(stack.teacher_path if swapped else stack.student)
    prompts = stack.prompts(["hgfedcba=", "qz=", "hello="])
    rollouts = written(stack, TurnTakingEngine(*sides, 0.4, stack.renderer), prompts, samples=8, max_new_tokens=30)
    assert max(len(rollout.tokens) for rollout in rollouts) == 30
    for rollout in rollouts:
        ids = torch.tensor([[*rollout.prompt.tokens.tolist(), *rollout.tokens.tolist()]])
        with torch.no_grad():
            table = torch.log_softmax(model(ids).logits[0], -1)
        student_logprobs = table[:-1].gather(-1, ids[0, 1:, None])[-len(rollout.tokens) :, 0].numpy()
        assert rollout.logprobs is not None
        assert rollout.coins is not None
        assert np.isnan(rollout.logprobs).tolist() == rollout.coins.tolist()
        assert np.abs(rollout.logprobs - student_logprobs)[~rollout.coins].max(initial=0) < 2e-4
        stops = np.flatnonzero(np.isin(rollout.tokens, stack.renderer.stops)).tolist()
        assert stops == ([len(rollout.tokens) - 1] if rollout.finish is Finish.STOP else [])
        assert rollout.text == stack.renderer.decode(rollout.tokens)


def test_concurrent_calls_do_not_disturb_each_other(stack: Stack, teacher: Any) -> None:
    """A plain call and two mixtures share the engines; each sample depends on its seed alone."""
    prompts = stack.prompts(["hgfedcba=", "qz=", "hello="])
    mixed = TurnTakingEngine(stack.engine, teacher, 0.4, stack.renderer)
    pool = Engines([TurnTakingEngine(each, teacher, 0.4, stack.renderer, sharing=2) for each in stack.engines.members])
    options = {"samples": 6, "max_new_tokens": 20, "seed": 3}
    alone = [written(stack, engine, prompts, **options) for engine in (stack.engine, mixed)]

    async def all_at_once() -> list[list[Rollout]]:
        return await asyncio.gather(*(engine.generate(prompts, Sampling(**options)) for engine in (stack.engine, mixed, pool)))

    together = stack.run(all_at_once())
    for found, expected in zip(together, [*alone, alone[1]], strict=True):
        assert [each.tokens.tolist() for each in found] == [each.tokens.tolist() for each in expected]
        assert [(each.prompt.row, each.sample) for each in found] == [(row, number) for row in range(3) for number in range(6)]
    assert stack.run(pool.figures())["mixed/student_tokens"] > 0


def test_a_cancelled_call_leaves_nothing(stack: Stack, teacher: Any) -> None:
    async def cancelled() -> None:
        engine = TurnTakingEngine(stack.engine, teacher, 0.4, stack.renderer)
        prompts = stack.prompts(["hgfedcba="] * 8)
        call = asyncio.ensure_future(engine.generate(prompts, Sampling(samples=32, max_new_tokens=30)))
        while not (await engine.figures())["mixed/teacher_calls"]:
            await asyncio.sleep(0.01)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

    stack.run(cancelled())
    assert held(stack, teacher) == (0, 0)


def test_new_weights_write_the_next_text(stack: Stack, teacher: Any, tmp_path: Path) -> None:
    """No keys and values of the old weights remain."""
    prompt = stack.prompts(["b="])[0]
    engine = TurnTakingEngine(stack.engine, teacher, 0.3, stack.renderer)
    other = save_model(tmp_path, SHAPE, 7).eval()
    before = stack.run(stack.engine.version())
    stack.run(stack.engine.load(tmp_path))
    try:
        rollouts = written(stack, engine, [prompt], samples=DRAWS // 4, temperature=0.3)
    finally:
        stack.run(stack.engine.load(stack.student))
    models = other, model_at(stack.teacher_path)
    expected = law(*models, prompt, alpha=0.3, count=3, stops=stack.renderer.stops, temperature=0.3)
    assert p_value(expected, rollouts) > 1e-3
    assert {int(version) for rollout in rollouts for version in rollout.versions} == {before + 1}
