"""Devices dealt to roles, what fits, and what is advised."""

from dataclasses import replace

import pytest

from minidist.preflight.forecast.advice import choose, choose_payload, designs, overrides, payloads
from minidist.preflight.forecast.layouts import deal, device_bytes, fits
from minidist.preflight.forecast.scenario import Design, Paths
from minidist.preflight.forecast.seconds import step_seconds
from minidist.preflight.memory import GIB
from tests.support.forecast import scenario


def test_devices_are_dealt_as_well_as_by_trying_every_layout() -> None:
    start = scenario("0.5B", (1, 1, 1), hidden=True)
    found = deal(start, 12)
    assert found is not None
    tried = [
        replace(start.layout, rollout=rollout, teacher=teacher, learner=12 - rollout - teacher)
        for rollout in range(1, 11)
        for teacher in range(1, 12 - rollout)
    ]
    best = min(step_seconds(start.with_layout(layout)) for layout in tried if fits(start.with_layout(layout)))
    assert step_seconds(found) == best


def test_roles_get_whole_engines_and_teachers() -> None:
    found = deal(scenario("70B", (1, 1, 1), zero=3, checkpointing=True), 64)
    assert found is not None
    layout = found.layout
    assert (layout.rollout % 8, layout.teacher % 16, layout.rollout + layout.teacher + layout.learner) == (0, 0, 64)


def test_a_model_that_no_layout_holds_is_not_dealt() -> None:
    assert deal(scenario("70B", (1, 1, 1), zero=3, checkpointing=True), 24) is None
    assert deal(scenario("8B", (1, 1, 1), zero=0, checkpointing=True), 8) is None


def test_memory_of_a_rank_is_that_of_the_memory_plan() -> None:
    found = scenario("8B", (1, 4, 3), zero=2, checkpointing=True)
    # Weights 16 GB; gradients and their float32 copies 4 + 4 bytes, optimizer 12 bytes, each by 3 ranks.
    weights = 16e9 + 20 * 8e9 / 3
    assert weights < device_bytes(found)["learner"] < weights + 10 * GIB
    shared = replace(found.with_layout(replace(found.layout, rollout=8, teacher=8, learner=8)), design=Design.COLOCATED)
    asleep = 16e9 + 20 * 8e9 / 8
    assert device_bytes(shared)["rollout"] == pytest.approx(device_bytes(found)["rollout"] + asleep, rel=1e-3)


def test_text_of_an_earlier_student_is_advised_where_it_saves_much() -> None:
    options = designs(scenario("8B", (1, 4, 1), Paths("reference", "broadcast"), hidden=True), 64)
    by_name = {each.name: each for each in options}
    assert by_name["colocated"].seconds < by_name["stale"].seconds < by_name["streamed"].seconds < by_name["disjoint"].seconds
    assert choose(options).name == Design.COLOCATED
    apart = [each for each in options if each.name != Design.COLOCATED]
    assert choose(apart).name == Design.STALE
    near = [by_name["disjoint"], replace(by_name["disjoint"], name=Design.STALE)]
    assert choose(near).name == Design.DISJOINT


def test_hidden_states_are_advised_where_they_cost_little() -> None:
    sizes = {"sampled": 4.0, "top_k": 516.0, "hidden": 16_384.0}
    by_reference, by_driver = (scenario("8B", (20, 24, 20), Paths(scores)) for scores in ("reference", "driver"))  # type: ignore[arg-type]
    assert choose_payload(payloads(by_reference, sizes)).name == "hidden"
    assert choose_payload(payloads(by_driver, sizes)).name == "top_k"


def test_the_settings_of_a_colocated_layout_let_roles_hold_their_devices_in_turn() -> None:
    made = replace(scenario("0.5B", (8, 8, 8)), design=Design.COLOCATED)
    assert overrides(made)["cluster.residency"] == "true"
    assert "cluster.residency" not in overrides(replace(made, design=Design.STREAMED))
