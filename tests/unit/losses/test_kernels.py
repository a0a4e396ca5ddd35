"""Which divergences Liger's kernel forms; and the kernel itself, interpreted in a process of its own."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from minidist.losses import kernels
from minidist.losses.divergences import jeffreys, reverse_kl
from minidist.losses.kernels import in_one_pass
from minidist.losses.mixtures import jsd, jsd_normalised
from minidist.losses.objectives import KD, Match, PolicyGradient, Supervised
from tests.support.config import make_objective


def test_the_kernel_equals_the_plain_divergence() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/interpreted"]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    ran = subprocess.run(command, cwd=Path(__file__).parents[3], env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout[-5000:] + ran.stderr[-2000:]


@pytest.mark.parametrize(
    "objective", [Match(jeffreys), Match(partial(jsd_normalised, beta=0.5)), Supervised(), make_objective("sinkhorn")]
)
def test_objectives_without_a_kernel_are_unchanged(objective: Any) -> None:
    assert in_one_pass(objective) is objective


def test_the_kernel_computes_both_kls_and_jsd() -> None:
    for objective, beta in ((KD(0.5), 0.0), (make_objective("minillm"), 1.0), (Match(partial(jsd, beta=0.5)), 0.5)):
        assert isinstance(objective, KD | PolicyGradient | Match)
        fused = in_one_pass(objective)
        assert type(fused) is type(objective) and fused.divergence.beta == beta  # type: ignore[attr-defined]


def test_a_kernel_without_liger_raises_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    kernels._kernel.cache_clear()
    monkeypatch.setitem(sys.modules, "liger_kernel.functional", None)
    with pytest.raises(ImportError):
        in_one_pass(Match(reverse_kl))
    assert in_one_pass(Supervised()) == Supervised(), "where it is not needed it is not asked for"
