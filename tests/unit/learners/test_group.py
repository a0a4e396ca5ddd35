"""The processes that share one model. tests/integration/test_ranks.py runs several."""

import os
import subprocess
import sys

import numpy as np

from minidist.learners.group import OneProcess


def test_one_process_is_the_first_of_one() -> None:
    assert (OneProcess().rank, OneProcess().size) == (0, 1)


def test_the_largest_values_of_one_process_are_its_own() -> None:
    assert OneProcess().largest([3, 1, 2]) == [3, 1, 2]


def test_the_totals_of_one_process_are_its_own() -> None:
    values = np.array([0.5, 1.5])
    assert OneProcess().total(values) is values


def test_the_peaks_of_one_process_are_its_own() -> None:
    values = np.array([0.5, 1.5])
    assert OneProcess().peak(values) is values


JOIN = """
from minidist.learners.group import ProcessGroup
from minidist.types import RankGroup

ProcessGroup(RankGroup(0, 1), "cpu")

from deepspeed.accelerator import get_accelerator

print(get_accelerator().device_name())
"""


def test_deepspeed_works_on_the_device_of_the_role_whatever_the_environment_says() -> None:
    environment = os.environ | {"DS_ACCELERATOR": "npu"}  # of another role, on a device that this process does not have
    done = subprocess.run([sys.executable, "-c", JOIN], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "cpu"
