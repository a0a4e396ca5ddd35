"""Seconds and bytes of a step against values worked by hand, and against an independent table of the same workload."""

from dataclasses import replace

import pytest

from minidist.preflight.forecast.rates import PUBLISHED
from minidist.preflight.forecast.scenario import Design, Paths
from minidist.preflight.forecast.seconds import (
    engine_step,
    moving,
    phases,
    pipelined,
    publishing,
    scoring,
    step_seconds,
    updating,
)
from minidist.preflight.forecast.volumes import gathered_bytes, score_bytes, text_bytes
from minidist.run.flops import Work
from tests.support.forecast import scenario, with_costs

BEFORE = Paths("driver", "host", even=True)

TABLE = {
    ("0.5B", (3, 3, 2)): (598, 558),
    ("0.5B", (21, 28, 15)): (110, 249),
    ("0.5B", (337, 445, 242)): (45, 177),
    ("8B", (2, 4, 2)): (5362, 5541),
    ("8B", (20, 24, 20)): (1101, 1458),
    ("8B", (311, 416, 297)): (162, 482),
    ("70B", (8, 32, 24)): (6485, 7201),
    ("70B", (240, 416, 368)): (1550, 2202),
}
"""Seconds of a step with top-k scores and with hidden states, estimated independently of these formulas from the same rates."""


@pytest.mark.parametrize(("pair", "seconds"), TABLE.items(), ids=str)
def test_a_serial_step_through_the_driver_takes_what_an_independent_estimate_says(
    pair: tuple[str, tuple[int, int, int]], seconds: tuple[int, int]
) -> None:
    name, dealt = pair
    settings = {"zero": 2} if name == "0.5B" else {"zero": 3, "checkpointing": True}
    for hidden, expected in zip((False, True), seconds, strict=True):
        found = scenario(name, dealt, BEFORE, hidden=hidden, chunk=261, **settings)
        # That estimate had Python objects for every class of the top k, and no passes over tables of logits.
        found = with_costs(found, top_k_token=53e-6, loss_passes=0.0)
        assert step_seconds(found) == pytest.approx(expected, rel=0.1)


def test_an_engine_reads_its_weights_and_caches_once_a_step() -> None:
    found = scenario("8B", (1, 4, 1))
    # 16 GB of weights and 100 sequences of 2,000 tokens of 131,072 bytes, at 0.7 x 3.35 TB/s; 2 ms beside.
    assert engine_step(found, 100, 2000) == pytest.approx(2e-3 + (16e9 + 100 * 2000 * 131_072) / 2.345e12)


def test_a_split_engine_reads_a_part_and_exchanges_sums() -> None:
    found = scenario("70B", (8, 16, 8))
    reading = (140e9 + 10 * 1000 * 327_680) / (8 * 2.345e12)
    exchange = 80 * 2 * 2 * 7 / 8 * 10 * 8192 * 2 / 300e9
    assert engine_step(found, 10, 1000) == pytest.approx(2e-3 + reading + exchange)


def test_python_hides_behind_the_device_where_scheduling_is_asynchronous() -> None:
    found = with_costs(scenario("0.5B", (1, 1, 1)), written_token=1e-3)
    assert engine_step(found, 10, 100) == pytest.approx(2e-3 + 10e-3)
    device = (1e9 + 10 * 100 * 12_288) / 2.345e12
    assert engine_step(with_costs(found, overlaps=False), 10, 100) == pytest.approx(2e-3 + 10e-3 + device)


def test_a_teacher_takes_two_operations_a_parameter_and_token() -> None:
    found = scenario("8B", (1, 4, 1), hidden=True)
    assert scoring(found, Work(1e6, 0, 0)) == pytest.approx(2 * 70e9 * 1e6 / (4 * 0.45 * 989.5e12))


def test_an_update_takes_six_operations_and_eight_with_checkpointing() -> None:
    found = with_costs(scenario("8B", (1, 4, 1), Paths(even=True)), loss_passes=0.0)
    each = 18_874_368 * 8e9 / (0.4 * 989.5e12)
    optimizer = 28 * 8e9 / 2.345e12
    assert updating(found)[0] == pytest.approx(6 * each + optimizer)
    checkpointing = found.with_layout(replace(found.layout, checkpointing=True))
    assert updating(checkpointing)[0] == pytest.approx(8 * each + optimizer)


def test_bytes_of_a_step_are_those_of_its_tokens() -> None:
    found = scenario("70B", (8, 16, 8), hidden=True)
    assert score_bytes(found) == 512 * 8 * 4096 * 32_768
    assert text_bytes(found) == 512 * 8 * 4096 * 52


def test_zero_3_exchanges_eight_bytes_a_parameter_and_the_head_of_each_chunk() -> None:
    found = scenario("8B", (1, 4, 2), zero=3, chunk=1024)
    head = 128_256 * 4096 * 2
    assert gathered_bytes(found) == pytest.approx(64e9 + 3 * 8 * head)
    assert gathered_bytes(replace(found, paths=Paths(head_per_chunk=False))) == pytest.approx(64e9 + 3 * head)
    assert gathered_bytes(found.with_layout(replace(found.layout, zero=2))) == 16e9
    assert gathered_bytes(found.with_layout(replace(found.layout, learner=1))) == 0


def test_overlap_leaves_of_the_exchange_what_the_computation_does_not_hide() -> None:
    shown = scenario("8B", (20, 24, 20), Paths(even=True), zero=3)
    hidden = replace(shown, paths=Paths(overlap=True, even=True))
    computing, exchange = updating(shown)
    assert updating(hidden)[1] == pytest.approx(exchange - (computing - 28 * 8e9 / 20 / 2.345e12))


@pytest.mark.parametrize(("paths", "seconds"), [("host", 4 + 3.2 + 2 * 8 + 3.2), ("broadcast", 0.4)])
def test_weights_go_through_the_host_or_once_over_the_wire(paths: str, seconds: float) -> None:
    found = scenario("8B", (20, 24, 20), Paths(weights=paths))  # type: ignore[arg-type]
    assert publishing(found) == pytest.approx(1 + seconds)


def test_scores_by_reference_hide_behind_the_update() -> None:
    driver, reference = (scenario("8B", (20, 24, 20), Paths(scores), hidden=True) for scores in ("driver", "reference"))  # type: ignore[arg-type]
    size = 512 * 8 * 4096 * 16_384
    assert moving(driver) == pytest.approx(size * ((1 / 5e9 + 1 / 4e9) / 3 + 1 / 5e9 + 2 / 2e9))
    assert moving(reference) == pytest.approx(size * (1 / 5e9 + 1 / 4e9) / 6)


def test_a_step_is_the_sum_or_the_slower_side() -> None:
    found = scenario("8B", (20, 24, 20))
    each = phases(found)
    beside = each.total - each.generate - each.decode - each.publish
    assert step_seconds(found) == pytest.approx(each.total)
    longer = max(each.generate + each.decode, beside)
    assert step_seconds(replace(found, design=Design.STALE)) == pytest.approx(longer + each.publish)
    streamed = step_seconds(replace(found, design=Design.STREAMED))
    assert beside + each.publish < streamed < each.total
    assert pipelined(4.0, 12.0, 4) == 1 + 3 * 3 + 3


def test_faster_devices_take_less_time() -> None:
    found = scenario("8B", (20, 24, 20))
    assert step_seconds(found) < step_seconds(replace(found, rates=PUBLISHED["a100"]))
