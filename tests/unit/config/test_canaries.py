"""Tolerances of the canaries, and the alarms that stop a run."""

from pathlib import Path

import pytest

from minidist.config.canaries import CanaryConfig
from tests.support.config import assert_refused


@pytest.mark.parametrize(
    ("dtypes", "logprob", "sync"),
    [(["float32", "float32"], 1e-3, 5e-3), (["float32", "bfloat16"], 0.05, 0.5), (["float16", "float32"], 0.05, 0.5)],
)
def test_tolerance_is_that_of_the_coarsest_precision(dtypes: list[str], logprob: float, sync: float) -> None:
    assert (CanaryConfig().logprob_tolerance(*dtypes), CanaryConfig().sync_tolerance(*dtypes)) == (logprob, sync)


def test_a_configured_tolerance_holds_for_every_precision() -> None:
    config = CanaryConfig(logprob_tolerance_nats=0.3, sync_tolerance_nats=0.4)
    assert (config.logprob_tolerance("bfloat16"), config.sync_tolerance("float32")) == (0.3, 0.4)


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (["canaries.stop_on=[truncate]"], ["canaries.stop_on names 'truncate'", "the alarms are length, truncated"]),
        (
            ["canaries.stop_on=[age]", "canaries.alarm_age=null"],
            ["canaries.stop_on names age", "canaries.alarm_age is null", "take the name out"],
        ),
    ],
)
def test_a_run_is_stopped_by_alarms_with_a_limit_only(tmp_path: Path, overrides: list[str], parts: list[str]) -> None:
    assert_refused(tmp_path, "distill", overrides, parts)
