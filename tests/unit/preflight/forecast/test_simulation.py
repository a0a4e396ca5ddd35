"""The loop in virtual time against the closed formulas, and what different lengths cost it."""

import time
from dataclasses import replace
from typing import Any

import pytest

from minidist.preflight.forecast.scenario import Design, Paths, Scenario
from minidist.preflight.forecast.seconds import busy_share, phases, step_seconds, waves
from minidist.preflight.forecast.simulation import Spread, simulate
from tests.support.forecast import scenario, with_costs


def small(design: Design, **workload: Any) -> Scenario:
    """64 answers to 32 prompts, which 4 engines of 8 sequences, 2 teachers and 4 ranks share evenly."""
    dealt = (8, 8, 8) if design is Design.COLOCATED else (4, 8, 4)
    found = scenario("8B", dealt, hidden=True, max_sequences=8, checkpointing=True)
    sizes = {"prompts": 32, "samples": 2, "prompt": 128, "answer": 512} | workload
    return replace(found, workload=replace(found.workload, **sizes), design=design)


@pytest.mark.parametrize("design", Design)
@pytest.mark.parametrize("paths", [Paths(), Paths("driver", "host"), Paths("reference", "broadcast", overlap=True)], ids=str)
def test_with_answers_of_one_length_a_step_takes_what_the_formula_says(design: Design, paths: Paths) -> None:
    found = replace(small(design), paths=paths)
    simulated = simulate(found)
    assert simulated.step == pytest.approx(step_seconds(found), rel=1e-9)
    assert simulated.busy == pytest.approx(busy_share(found), rel=1e-9)


@pytest.mark.parametrize("design", Design)
def test_learning_that_is_slower_than_writing_takes_what_the_formula_says(design: Design) -> None:
    found = small(design, updates=3)
    slow = replace(found, rates=replace(found.rates, device=replace(found.rates.device, update_flops=1e13)))
    slow = with_costs(slow, micro_batch=0.5, update=2.0, step=0.3, counted_token=1e-5, decoded_token=1e-4)
    assert phases(slow).update > phases(slow).generate
    assert simulate(slow).step == pytest.approx(step_seconds(slow), rel=1e-9)


def test_a_scenario_of_two_waves_streams() -> None:
    found = small(Design.STREAMED)
    assert waves(found) == 2
    assert simulate(found).step < simulate(replace(found, design=Design.DISJOINT)).step - 0.5


def balanced(design: Design) -> Scenario:
    """A small scenario in which scoring and learning take about as long as writing."""
    found = small(design)
    device = replace(found.rates.device, score_flops=1e13, update_flops=2e13)
    return replace(found, rates=replace(found.rates, device=device))


def test_answers_of_different_lengths_leave_teachers_and_learner_waiting() -> None:
    found = balanced(Design.DISJOINT)
    even, ragged = simulate(found), simulate(found, Spread(0.8), steps=8)
    assert ragged.step > 1.05 * even.step
    assert ragged.by_role["teacher"] < even.by_role["teacher"] and ragged.by_role["learner"] < even.by_role["learner"]


def test_writing_ahead_hides_the_longest_answer() -> None:
    disjoint, stale = (simulate(balanced(design), Spread(0.8), steps=8) for design in (Design.DISJOINT, Design.STALE))
    assert stale.step < 0.85 * disjoint.step and stale.busy > disjoint.busy


def test_a_server_scores_in_no_time_of_ours() -> None:
    found = replace(small(Design.DISJOINT), teacher=None)
    assert simulate(found).step == pytest.approx(step_seconds(found), rel=1e-9)


def test_a_step_on_1024_devices_is_simulated_in_seconds() -> None:
    found = replace(scenario("8B", (312, 416, 296)), design=Design.STALE)
    began = time.process_time()
    simulated = simulate(found, Spread(0.6), steps=3)
    assert time.process_time() - began < 15
    assert 0 < simulated.busy < 1 and simulated.step > step_seconds(found) / 2
