"""The temporary directory of a run, and the process that removes it."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from minidist.cluster.scratch import Scratch


def test_a_signal_to_all_processes_of_a_job_leaves_the_directory_until_the_run_ends() -> None:
    before = {child.pid for child in psutil.Process().children()}
    scratch = Scratch()
    [keeper] = [child for child in psutil.Process().children() if child.pid not in before]
    scratch.guard()
    while not _ignores(keeper.pid, signal.SIGTERM):  # the pause is that of its start
        time.sleep(0.01)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(keeper.pid, number)
    scratch.guard()
    assert scratch.path.is_dir()
    scratch.remove()
    assert not scratch.path.exists()
    assert not keeper.is_running() or keeper.status() == psutil.STATUS_ZOMBIE


def _ignores(process: int, number: int) -> bool:
    mask = re.search(r"^SigIgn:\s*(\w+)$", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return mask is not None and bool(int(mask[1], 16) >> (number - 1) & 1)


@pytest.mark.parametrize("orderly", [False, True])
def test_a_run_that_ends_without_a_word_is_spoken_for(orderly: bool) -> None:
    """As one does that is killed, or that Ray ends."""
    code = "from minidist.cluster.scratch import Scratch; import os, subprocess; scratch = Scratch(); "
    code += "child = subprocess.Popen(['sleep', '60']); scratch.guard(); "
    code += "child.kill(); child.wait(); scratch.remove()" if orderly else "os._exit(1)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert ("has ended without a word" in done.stderr and "the same command resumes it" in done.stderr) == (not orderly)
