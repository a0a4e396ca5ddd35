"""The figures that a step's batch, update and times give together."""

from dataclasses import replace

import numpy as np
import pytest

from minidist.run.tracking import step_metrics
from minidist.types import Batch, Measures, Update, Writer
from tests.support.tiny import random_rollouts

METRICS = {"learner/loss_tokens": 30.0, "main/loss_nats_per_token": 0.7, "time/generate_s": 1.0, "time/update_s": 2.0}
UPDATE = Update(9, {})


def batch(*versions: int, measures: Measures | None = None, writer: Writer = Writer.STUDENT) -> Batch:
    rollouts = random_rollouts([(2, 3)] * len(versions))
    written = [replace(each, versions=np.full(3, at), writer=writer) for each, at in zip(rollouts, versions, strict=True)]
    return Batch(0, (), tuple(written), measures=measures)


def test_speed_is_loss_tokens_over_the_seconds_of_all_phases() -> None:
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
