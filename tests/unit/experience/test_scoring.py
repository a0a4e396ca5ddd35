"""Answers scored as they finish, in virtual time, and the groups in which a collection is scored."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import pytest

import minidist.experience.scoring as scoring
from minidist.experience.scoring import Grouping, scores_as_written
from minidist.experience.source import Collector
from minidist.types import Batch, Prompt, Rollout, Row, Sampling
from tests.support.collecting import distill_config, make_collector
from tests.support.virtual import Log, TimedEngine, TimedTeacher, run

SIZE, PROMPTS, SAMPLES = 7, 16, 2
STUDENT, TEACHER = np.random.default_rng(0).normal(size=(2, SIZE, SIZE))
ROLLOUT = {"prompts_per_step": PROMPTS, "samples_per_prompt": SAMPLES, "max_new_tokens": 3}
GROUP = PROMPTS // scoring.GROUPS


class OutOfOrder(TimedEngine):
    """Hands its answers on in another order than that of the prompts."""

    async def stream(self, prompts: Sequence[Prompt], sampling: Sampling) -> AsyncIterator[tuple[int, list[Rollout]]]:
        order = np.random.default_rng(3).permutation(len(prompts))
        async for index, rollouts in super().stream([prompts[place] for place in order], sampling):
            yield int(order[index]), rollouts


class Scene:
    def __init__(
        self, stream: bool | None, *, strict: bool = False, write: float = 1.0, score: float = 0.4, **config: Any
    ) -> None:
        self.log = Log()
        settings = {"rollout": ROLLOUT, "loop": {"stream": stream}, "run": {"deterministic": strict}} | config
        self.engine = OutOfOrder(STUDENT, self.log, write)
        self.teacher = TimedTeacher(TEACHER, self.log, score)
        prompts = [Prompt(row, np.array([row % SIZE, (row + 1) % SIZE]), str(row), "g", np.array([1])) for row in range(40)]
        self.collector: Collector = make_collector(distill_config(**settings), prompts, self.engine, self.teacher)
        self.rows = [prompt.row for prompt in self.collector.prompts.at(0)]

    def collect(self) -> tuple[Batch, float]:
        return run(self.collector.next(0))


def same(left: Batch, right: Batch) -> bool:
    pairs = zip(left.steps[0][0].rows, right.steps[0][0].rows, strict=True)
    return all(np.array_equal(a.labels, b.labels) and np.array_equal(logprobs(a), logprobs(b)) for a, b in pairs)


def logprobs(row: Row) -> Any:
    assert row.scores is not None
    return row.scores.logprobs


def answers(teacher: TimedTeacher) -> list[tuple[int, int]]:
    """Row and sample of all that was scored."""
    return sorted(chain.from_iterable(teacher.scored))


@pytest.mark.parametrize("strict", [False, True])
def test_scores_are_those_of_answers_scored_at_the_end(strict: bool) -> None:
    (streamed, _), (plain, _) = (Scene(stream, strict=strict).collect() for stream in (True, False))
    assert same(streamed, plain) and len(streamed.rollouts) == PROMPTS * SAMPLES


def test_scoring_overlaps_writing() -> None:
    """The teacher is faster than the engine: all that is left at the end is the last group."""
    seconds = {stream: Scene(stream).collect()[1] for stream in (True, False)}
    assert seconds[False] == pytest.approx(PROMPTS * 1.0 + PROMPTS * SAMPLES * 0.4)
    assert seconds[True] == pytest.approx(PROMPTS * 1.0 + GROUP * SAMPLES * 0.4)


def test_a_slow_teacher_is_asked_for_all_that_has_finished_meanwhile() -> None:
    scene = Scene(True, score=2.1)
    _, seconds = scene.collect()
    assert [len(call) for call in scene.teacher.scored] == [4, 16, 12]
    assert seconds == pytest.approx(2 + 2.1 * PROMPTS * SAMPLES)


def test_every_answer_is_scored_once() -> None:
    for stream, strict in ((True, False), (True, True), (False, True), (False, False)):
        scene = Scene(stream, strict=strict)
        scene.collect()
        assert answers(scene.teacher) == sorted((row, sample) for row in scene.rows for sample in range(SAMPLES))


def test_deterministic_runs_score_the_same_groups_streamed_or_not() -> None:
    streamed, plain = Scene(True, strict=True), Scene(False, strict=True)
    for scene in (streamed, plain):
        scene.collect()
    groups = [streamed.rows[start : start + GROUP] for start in range(0, PROMPTS, GROUP)]
    assert plain.teacher.scored == [[(row, sample) for row in group for sample in range(SAMPLES)] for group in groups]
    assert sorted(streamed.teacher.scored) == sorted(plain.teacher.scored)
    assert streamed.teacher.scored != plain.teacher.scored, "groups are scored as they are complete"


def test_a_run_that_need_not_repeat_scores_in_one_call() -> None:
    scene = Scene(False)
    scene.collect()
    assert len(scene.teacher.scored) == 1


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "config",
    [
        {"prefix": {"student": 0.5, "dataset": 0.5}},
        {"prefix": {"student": 0.5, "dataset": 0.5, "per": "step"}},
        {"streams": {"s": {"writer": "dataset", "objective": {"type": "forward_kl"}}}},
    ],
    ids=str,
)
def test_other_text_is_scored_with_it(config: dict[str, Any], strict: bool) -> None:
    streamed, plain = Scene(True, strict=strict, **config), Scene(False, strict=strict, **config)
    (left, _), (right, _) = streamed.collect(), plain.collect()
    assert same(left, right)
    assert answers(streamed.teacher) == answers(plain.teacher)
    if strict:
        assert sorted(streamed.teacher.scored) == sorted(plain.teacher.scored)


def test_a_failure_of_the_teacher_ends_the_writing_at_once() -> None:
    scene = Scene(True)
    scene.teacher.failure = RuntimeError("the teacher died")
    with pytest.raises(RuntimeError, match="the teacher died"):
        scene.collect()
    assert scene.log.spans("write broken") == [(3.0, pytest.approx(3.6))]


def test_a_failure_of_the_engine_ends_the_scoring_at_once() -> None:
    scene = Scene(True, score=10.0)
    scene.engine.failing = 0
    with pytest.raises(RuntimeError, match="the engine died"):
        scene.collect()
    assert not scene.log.spans("score")


def test_the_engines_are_free_before_the_last_group_is_scored() -> None:
    scene = Scene(True, score=5.0)

    async def write_again() -> float:
        loop = asyncio.get_running_loop()
        drawing = asyncio.ensure_future(scene.collector.draw(0))
        await asyncio.sleep(0.5)
        async with scene.collector.writing:
            free = loop.time()
        await drawing
        return free

    assert run(write_again())[0] == pytest.approx(PROMPTS * 1.0)


def test_groups_of_less_than_a_whole_are_left_to_the_end() -> None:
    grouping = Grouping(prompts=2, samples=1, fixed=True)
    texts: list[Any] = [object() for _ in range(7)]
    known: Any = {id(text): None for text in texts[2:4]}
    assert list(grouping.calls(texts[:5], texts[5:], known)) == [texts[0:2], [texts[4]], texts[5:]]
    assert list(Grouping().calls(texts[:5], texts[5:], known)) == [[*texts[:2], texts[4], *texts[5:]]]
    assert list(Grouping().calls([], [], {})) == [] and list(grouping.calls([], [], {})) == []


@pytest.mark.parametrize(
    ("config", "streams"),
    [
        ({}, False),  # roles take turns at all cores
        ({"loop": {"stream": True}}, True),
        ({"cluster": {"threads": 2}}, True),
        ({"cluster": {"threads": 3}}, False),
        ({"cluster": {"threads": 1, "rollout": {"actors": 3}}}, True),
        ({"cluster": {"threads": 1, "rollout": {"actors": 4}}}, False),
        ({"cluster": {"threads": 1}, "loop": {"stream": False}}, False),
        ({"cluster": {"threads": 1, "roles": "local"}}, False),
        ({"cluster": {"threads": 1, "address": "auto"}}, False),
        ({"cluster": {"gpus": 3}}, True),
        ({"cluster": {"gpus": 2}}, False),  # three roles share two devices
        ({"cluster": {"gpus": 2, "learner": {"gpus": 0.5}, "teacher": {"gpus": 0.5}, "rollout": {"gpus": 1}}}, False),
        ({"teacher": {"backend": "server", "model": "t", "server": {"url": "http://t"}, "payload": "top_k"}}, True),
        ({"cluster": {"threads": 1}, "prefix": {"student": 0, "dataset": 1}}, False),
        ({"cluster": {"threads": 1}, "rollout": {"teacher_mix": 0.2}}, False),
    ],
    ids=str,
)
def test_answers_are_scored_as_they_finish_where_roles_share_no_cores(
    config: dict[str, Any], streams: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scoring, "cores", lambda: 4)
    assert scores_as_written(distill_config(**config)) is streams
