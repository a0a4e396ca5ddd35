"""Which rows a step takes, and who answers its prompts."""

import doctest
from collections import Counter
from typing import Any

import numpy as np
import pytest

from minidist.config.rollout import RolloutConfig
from minidist.config.text import PrefixConfig
from minidist.experience import draw
from minidist.experience.draw import Mixture, Part, Shuffled, collection_sampling, draw_rows, draw_writers
from minidist.types import Sampling, Writer

STUDENT, TEACHER, DATASET = Writer.STUDENT, Writer.TEACHER, Writer.DATASET
MIXED = PrefixConfig(student=0.45, teacher=0.25, dataset=0.3)


def shares(per: Any = "row", **parts: float) -> PrefixConfig:
    return PrefixConfig(**({"student": 0.0} | parts), per=per)


@pytest.mark.parametrize(("count", "size"), [(10, 5), (10, 3), (7, 4), (3, 7), (1, 2), (5, 5)])
def test_every_row_is_drawn_once_a_pass(count: int, size: int) -> None:
    steps = 3 * count
    stream = [index for step in range(steps) for index in draw_rows(count, size, step=step, seed=1)]
    assert len(stream) == steps * size
    for start in range(0, len(stream), count):
        assert sorted(stream[start : start + count]) == list(range(count))


def test_rows_are_a_function_of_step_and_seed() -> None:
    late = draw_rows(50, 8, step=20, seed=3)
    for step in range(9):
        draw_rows(50, 8, step=step, seed=4)
    assert draw_rows(50, 8, step=20, seed=3) == late
    assert draw_rows(50, 8, step=20, seed=4) != late
    assert draw_rows(50, 50, step=0, seed=3) != draw_rows(50, 50, step=1, seed=3), "each pass has an order of its own"
    assert Shuffled(list("abcdef"), 4, 2).at(3) == ["abcdef"[index] for index in draw_rows(6, 4, step=3, seed=2)]


def mixed(*shares: float, size: int = 7) -> Mixture[str]:
    """Ten items of each source, which are named by their source and number."""
    parts = [Part([f"{source}{n}" for n in range(10)], share, seed=source) for source, share in enumerate(shares, start=1)]
    return Mixture(Shuffled([f"0{n}" for n in range(10)], size, seed=0), parts)


@pytest.mark.parametrize("shares", [(0.25,), (0.3, 0.1), (0.5, 0.2, 0.29), (0.99,), (0.001,)])
def test_every_source_of_a_mixture_has_its_share(shares: tuple[float, ...]) -> None:
    stream = [item for step in range(300) for item in mixed(*shares).at(step)]
    assert len(stream) == 300 * 7
    for length in (7, 50, 700, 2100):
        counts = Counter(item[0] for item in stream[:length])
        for source, share in enumerate(shares, start=1):
            assert abs(counts[str(source)] - share * length) <= 1 + (source > 2)


def test_a_mixture_reads_each_source_in_whole_passes() -> None:
    stream = [item for step in range(200) for item in mixed(0.3, 0.1).at(step)]
    for source in "012":
        items = [item for item in stream if item[0] == source]
        for start in range(0, len(items) - 9, 10):
            assert len(set(items[start : start + 10])) == 10


def test_steps_of_a_mixture_are_a_function_of_the_step() -> None:
    whole = [mixed(0.3, 0.1).at(step) for step in range(20)]
    assert mixed(0.3, 0.1).at(17) == whole[17] and whole[16] != whole[17]


def test_a_mixture_without_parts_is_the_rows_alone() -> None:
    assert mixed().at(5) == mixed().main.at(5)


@pytest.mark.parametrize("count", [1, 3, 7, 16, 64])
@pytest.mark.parametrize("prefix", [MIXED, shares(student=0.5, dataset=0.5), shares(teacher=0.9, dataset=0.1)])
def test_every_step_has_its_share_of_every_writer(prefix: PrefixConfig, count: int) -> None:
    for step in range(50):
        found = Counter(draw_writers(prefix, count, step=step, seed=4))
        for writer, share in zip(Writer, (prefix.student, prefix.teacher, prefix.dataset), strict=True):
            assert abs(found[writer] - share * count) < 1
            assert share or not found[writer]


@pytest.mark.parametrize("per", ["row", "step"])
def test_over_many_steps_each_row_has_the_configured_shares(per: Any) -> None:
    """3,000 draws a row: the standard error of a share is 0.009 at most."""
    prefix = MIXED.model_copy(update={"per": per})
    table = np.array([[writer.value for writer in draw_writers(prefix, 5, step=step, seed=0)] for step in range(3000)])
    for writer, share in ((STUDENT, 0.45), (TEACHER, 0.25), (DATASET, 0.3)):
        assert np.abs((table == writer.value).mean(0) - share).max() < 0.04
    same_writer = (table == table[:, :1]).all(1)
    assert same_writer.all() if per == "step" else not same_writer.all()


@pytest.mark.parametrize("per", ["row", "step"])
def test_writers_are_a_function_of_seed_and_step(per: Any) -> None:
    prefix = MIXED.model_copy(update={"per": per})
    first = [draw_writers(prefix, 8, step=step, seed=3) for step in range(20)]
    assert [draw_writers(prefix, 8, step=step, seed=3) for step in reversed(range(20))] == first[::-1]
    assert [draw_writers(prefix, 8, step=step, seed=5) for step in range(20)] != first
    assert len({tuple(each) for each in first}) > 1


@pytest.mark.parametrize("per", ["row", "step"])
@pytest.mark.parametrize("point", [0.0, 0.5, 1 - 2**-53])
def test_a_writer_without_a_share_writes_nothing(monkeypatch: pytest.MonkeyPatch, per: Any, point: float) -> None:
    """Shares that are rounded by hand add up to a little less than 1."""

    class Edge:
        def random(self) -> float:
            return point

        def permutation(self, count: int) -> np.ndarray:
            return np.arange(count)

    monkeypatch.setattr("minidist.experience.draw.np.random.default_rng", lambda seed: Edge())
    assert DATASET not in draw_writers(shares(per, student=0.3333333, teacher=0.6666666), 9, step=0, seed=0)
    assert set(draw_writers(shares(per, teacher=0.9999995), 9, step=0, seed=0)) == {TEACHER}


def test_a_collections_sampling_is_that_of_rollout_with_a_seed_of_run_and_step() -> None:
    config = RolloutConfig(samples_per_prompt=2, max_new_tokens=3, temperature=0.5, top_p=0.9)
    found = {(run, step): collection_sampling(config, step, seed=run) for run in (0, 1) for step in (0, 1)}
    assert len({sampling.seed for sampling in found.values()}) == 4
    seed = found[0, 1].seed
    assert found[0, 1] == Sampling(samples=2, max_new_tokens=3, temperature=0.5, top_p=0.9, seed=seed)
    assert collection_sampling(config, 1, seed=0) == found[0, 1]
    assert seed == 3964924996, "a resumed run of an earlier release samples alike"


@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_rollout_and_sampling_agree_on_truncation(top_p: float) -> None:
    config = RolloutConfig(top_p=top_p)
    assert config.truncated == collection_sampling(config, 0, seed=0).truncated == (top_p < 1)


def test_docstring_examples() -> None:
    done = doctest.testmod(draw)
    assert done.attempted and done.failed == 0
