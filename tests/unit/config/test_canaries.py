"""The tolerances of the canaries."""

import pytest

from minidist.config.canaries import CanaryConfig


@pytest.mark.parametrize(
    ("dtypes", "logprob", "sync"),
    [(["float32", "float32"], 1e-3, 5e-3), (["float32", "bfloat16"], 0.05, 0.5), (["float16", "float32"], 0.05, 0.5)],
)
def test_tolerance_is_that_of_the_coarsest_precision(dtypes: list[str], logprob: float, sync: float) -> None:
    assert (CanaryConfig().logprob_tolerance(*dtypes), CanaryConfig().sync_tolerance(*dtypes)) == (logprob, sync)


def test_a_configured_tolerance_holds_for_every_precision() -> None:
    config = CanaryConfig(logprob_tolerance_nats=0.3, sync_tolerance_nats=0.4)
    assert (config.logprob_tolerance("bfloat16"), config.sync_tolerance("float32")) == (0.3, 0.4)
