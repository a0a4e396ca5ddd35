"""Metrics, rollouts files and times of a run."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minidist.run.show import read_samples
from minidist.run.tracking import Clock, Recorder, step_metrics
from minidist.types import Array, Batch, Finish, Measures, Prompt, Rollout, Update, Writer
from tests.support.tiny import random_rollouts


def rollout(tokens: list[int], logprobs: Array | None) -> Rollout:
    versions = np.zeros(len(tokens), np.int32)
    return Rollout(Prompt(0, np.array([1]), "ask"), np.array(tokens), logprobs, versions, Finish.STOP, text="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("pieces", [None, lambda tokens: [f"<{token}>" for token in tokens]])
def test_log_probabilities_of_the_whole_distribution_are_recorded_where_measured(tmp_path: Path, pieces: Any) -> None:
    recorder = Recorder(tmp_path, range(1), tensorboard=False, shown={}, pieces=pieces)
    measures = Measures(np.array([0, 0, 1]), np.array([-1.5, -2.5, -3.0]), np.array([-0.12345, -0.5, -0.25]))
    recorder.rollouts(1, [rollout([7, 8], np.array([-1.0, -2.0])), rollout([9], None)], measures)
    recorder.rollouts(2, [rollout([7], np.array([-1.0])), rollout([8], None)])
    recorder.close()
    first, second = read_samples(tmp_path, 1)[1]
    assert (first.student, first.teacher) == ([-1.5, -2.5], [-0.1235, -0.5]), "not of the sampled distribution"
    assert first.pieces == (None if pieces is None else ["<7>", "<8>"])
    assert (second.student, second.teacher) == ([-3.0], [-0.25])
    unmeasured = read_samples(tmp_path)[1]
    assert [(each.student, each.teacher) for each in unmeasured] == [([-1.0], None), (None, None)]


def test_coins_and_missing_log_probabilities_are_recorded(tmp_path: Path) -> None:
    """JSON has no NaN: where the teacher chose, the engine's log-probability is null."""
    recorder = Recorder(tmp_path, range(1), tensorboard=False, shown={}, pieces=None)
    mixed = replace(rollout([7, 8, 9], np.array([-1.0, np.nan, -2.0])), coins=np.array([False, True, False]))
    recorder.rollouts(1, [mixed])
    recorder.close()
    line = (tmp_path / "rollouts" / "step_000001.jsonl").read_text()
    row = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert (row["logprobs"], row["coins"]) == ([-1.0, None, -2.0], [0, 1, 0])
    assert read_samples(tmp_path)[1][0].coins == [0, 1, 0]


def test_metrics_have_a_line_a_step_and_the_recorder_knows_their_length(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path, range(2), tensorboard=False, shown={"loss": "loss"})
    recorder.step(0, {"loss": 1.5})
    recorder.write(0, {"evaluation/accuracy": 0.5})
    position = recorder.position()
    recorder.step(1, {"loss": 1.25})
    recorder.close()
    content = (tmp_path / "metrics.jsonl").read_text()
    assert [json.loads(line) for line in content[:position].splitlines()] == [
        {"step": 0, "loss": 1.5},
        {"step": 0, "evaluation/accuracy": 0.5},
    ]
    assert json.loads(content[position:]) == {"step": 1, "loss": 1.25}


def test_a_clock_adds_the_spans_of_a_phase_and_starts_anew() -> None:
    times = iter([0.0, 1.0, 5.0, 7.5])
    clock = Clock(lambda: next(times))
    for _ in range(2):
        with clock.span("update"):
            pass
    assert clock.take() == {"time/update_s": 3.5} and clock.take() == {}


METRICS = {"learner/loss_tokens": 30.0, "main/loss_nats_per_token": 0.7, "speed/seconds_per_step": 3.0}
UPDATE = Update(9, {})


def batch(*versions: int, measures: Measures | None = None, writer: Writer = Writer.STUDENT) -> Batch:
    rollouts = random_rollouts([(2, 3)] * len(versions))
    written = [replace(each, versions=np.full(3, at), writer=writer) for each, at in zip(rollouts, versions, strict=True)]
    return Batch(0, (), tuple(written), measures=measures)


def test_speed_is_loss_tokens_over_the_seconds_of_the_step() -> None:
    assert step_metrics("kd", METRICS, batch(), UPDATE) == {"speed/loss_tokens_per_s": 10.0}


@pytest.mark.parametrize(("objective", "name"), [("forward_kl", "kl/forward_nats"), ("reverse_kl", "kl/reverse_nats")])
def test_the_loss_of_a_kl_objective_is_its_divergence(objective: str, name: str) -> None:
    assert step_metrics(objective, METRICS, batch(), UPDATE)[name] == 0.7


def test_another_objective_gives_the_exact_reverse_kl_where_it_was_measured() -> None:
    measures = Measures(np.zeros(2, np.int32), np.zeros(2), reverse_kl=np.array([0.1, 0.3]))
    assert step_metrics("minillm", METRICS, batch(measures=measures), UPDATE)["kl/reverse_nats"] == pytest.approx(0.2)
    without = batch(measures=replace(measures, reverse_kl=None))
    assert "kl/reverse_nats" not in step_metrics("minillm", METRICS, without, UPDATE)


def test_age_is_that_of_the_oldest_token_the_student_wrote() -> None:
    assert step_metrics("kd", METRICS, batch(8, 6), UPDATE)["age/updates_max"] == 2
    assert step_metrics("kd", METRICS, batch(8), UPDATE)["age/updates_max"] == 0, "strictly on-policy"
    assert "age/updates_max" not in step_metrics("kd", METRICS, batch(3, writer=Writer.DATASET), UPDATE)


def test_tensorboard_has_a_curve_of_every_metric(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recorder = Recorder(tmp_path, range(3), tensorboard=True, shown={})
    for step in range(3):
        recorder.step(step, {"loss/nats_per_token": 2.0 - step, "idle/teacher_s": 0.25})
    recorder.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert events.Tags()["scalars"] == ["loss/nats_per_token", "idle/teacher_s"]
    assert [(point.step, point.value) for point in events.Scalars("loss/nats_per_token")] == [(0, 2), (1, 1), (2, 0)]
