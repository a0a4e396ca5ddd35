"""Which models differ, over seeds and prompts."""

import numpy as np
import pytest
from scipy import stats

from minidist.evaluation.differences import difference, rank, ranking_lines, rankings
from minidist.types import Array


def simulated(
    rng: np.random.Generator, *, gap: float, of_seeds: float, seeds: int = 3, prompts: int = 60
) -> tuple[Array, Array]:
    """Two models with the same prompts; the left one is ahead by `gap`."""
    prompt_P = rng.normal(0, 1, prompts)
    made = [
        prompt_P + rng.normal(0, of_seeds, (seeds, 1)) + rng.normal(0, 0.2, prompts) + rng.normal(0, 0.5, (seeds, prompts))
        for _ in range(2)
    ]
    return made[0] + gap, made[1]


def test_one_seed_is_the_paired_t_test_over_prompts() -> None:
    left, right = simulated(np.random.default_rng(0), gap=0.2, of_seeds=0, seeds=1)
    found, known = difference(left, right), stats.ttest_rel(left[0], right[0])
    low, high = known.confidence_interval()  # type: ignore[attr-defined]
    assert (found.p, found.low, found.high) == pytest.approx((known.pvalue, low, high))  # type: ignore[attr-defined]


def test_where_seeds_alone_matter_it_is_the_paired_t_test_over_seeds() -> None:
    left = np.array([[1.0], [2.0], [4.0]]).repeat(5, axis=1)
    found, known = difference(left, np.zeros((3, 5))), stats.ttest_1samp([1.0, 2.0, 4.0], 0)
    assert found.mean == pytest.approx(7 / 3) and found.p == pytest.approx(known.pvalue)  # type: ignore[attr-defined]


def test_a_value_worked_by_hand() -> None:
    """Means 2 and 4 of seeds, 2 and 4 of prompts; the rest is +-1: MS_seed = 4, MS_prompt = 4, MS_rest = 4."""
    found = difference(np.array([[2.0, 2.0], [2.0, 6.0]]), np.zeros((2, 2)))
    error = (4 / 4) ** 0.5
    assert found.mean == 3.0
    freedom = 16 / 48
    assert (found.low, found.high) == pytest.approx(
        (3 - stats.t.ppf(0.975, freedom) * error, 3 + stats.t.ppf(0.975, freedom) * error)
    )


def test_seeds_that_happen_to_agree_do_not_narrow_the_interval() -> None:
    """Both seeds have mean 1, both prompts too: MS_seed = MS_prompt = 0 < MS_rest = 4, and no variance is negative."""
    found = difference(np.array([[2.0, 0.0], [0.0, 2.0]]), np.zeros((2, 2)))
    half = stats.t.ppf(0.975, 16 / 48) * (4 / 4) ** 0.5
    assert (found.low, found.high) == pytest.approx((1 - half, 1 + half))


def test_equal_models_do_not_differ_and_a_constant_difference_is_certain() -> None:
    same = np.arange(6.0).reshape(2, 3)
    assert (difference(same, same).mean, difference(same, same).p) == (0.0, 1.0)
    assert (difference(same + 1, same).low, difference(same + 1, same).p) == (1.0, 0.0)


@pytest.mark.parametrize("of_seeds", [0.0, 0.05, 0.3])
def test_intervals_hold_the_true_difference(of_seeds: float) -> None:
    """In at least 93 % of 400 simulations, also where the noise of seeds is small; the t test over prompts alone would not."""
    rng = np.random.default_rng(1)
    pairs = [simulated(rng, gap=0.1, of_seeds=of_seeds) for _ in range(400)]
    found = [difference(*pair) for pair in pairs]
    assert np.mean([each.low <= 0.1 <= each.high for each in found]) >= 0.93
    if of_seeds == 0.3:
        naive = [stats.ttest_rel(left.mean(0), right.mean(0)).confidence_interval() for left, right in pairs]  # type: ignore[attr-defined]
        assert np.mean([low <= 0.1 <= high for low, high in naive]) < 0.6


def test_a_ranking_says_what_holds() -> None:
    rng = np.random.default_rng(2)
    base_P = rng.normal(0, 1, 200)
    models = {name: base_P + mean + rng.normal(0, 0.05, (3, 200)) for name, mean in {"c": 0.5, "a": 0.0, "b": 0.001}.items()}
    ranking = rank("reverse_kl", models)
    assert sorted(ranking.names[:2]) == ["a", "b"] and ranking.names[2] == "c"
    assert all(ranking.behind(name) == ["c"] and len(ranking.undecided(name)) == 1 for name in "ab")
    assert ranking.behind("c") == ranking.undecided("c") == []
    assert rank("accuracy", models).names[0] == "c", "higher is better"
    pairs = ranking.records()
    assert [pair["holds"] for pair in pairs] == [False, True, True] and pairs[1]["worse"] == "c" and pairs[1]["difference"] < 0
    lines = ranking_lines(ranking)
    assert lines[0] == "## Order by reverse KL (lower is better)" and "3 seeds and 200 prompts" in lines[-2]
    assert lines[4].endswith("| c | b |") or lines[4].endswith("| c | a |")


def test_many_pairs_are_adjusted_for() -> None:
    """Of 190 pairs of equal models some have p < 0.05, and none is called certain."""
    rng = np.random.default_rng(3)
    ranking = rank("reverse_kl", {f"m{index}": rng.normal(0, 1, (1, 50)) for index in range(20)})
    assert any(each.p < 0.05 for each in ranking.differences.values())
    assert not any(each.holds for each in ranking.differences.values())


def test_rankings_are_of_figures_and_seeds_that_all_models_have() -> None:
    values = {"reverse_kl": [0.1, 0.2, 0.4]}
    runs = {"a": {0: values | {"accuracy": [1.0, 0.0, 1.0]}, 1: values}, "b": {0: values}}
    [only] = rankings(runs)
    assert (only.figure, only.seeds, only.prompts) == ("reverse_kl", 1, 3)
    assert rankings({}) == []
