"""What a followed run shows: seconds between lines, tokens, memory, and a failure with its reason."""

import sys
from pathlib import Path

import pytest

from tests.benchmarks.peers import runs
from tests.benchmarks.peers.memory import MemorySampler, proportional_bytes
from tests.benchmarks.peers.runs import Measured, Steps

MIB = 2**20
WRITER = """
import json, sys, time
path, count, held = sys.argv[1], int(sys.argv[2]), b"x" * (int(sys.argv[3]) << 20)
for step in range(count):
    time.sleep(0.4 if step == 2 else 0.2)
    with open(path, "a") as lines:
        lines.write(json.dumps({"step": step}) + chr(10))
time.sleep(0.5)
"""


def follow(folder: Path, *, count: int = 4, mib: int = 1) -> tuple[list[dict[str, object]], list[float], int]:
    path = folder / "lines.jsonl"
    command = [sys.executable, "-c", WRITER, str(path), str(count), str(mib)]
    return runs._follow(command, path, folder / "output.txt", Steps(1, 2, 1))


def test_a_step_lasts_from_line_to_line(tmp_path: Path) -> None:
    lines, ends, _ = follow(tmp_path)
    assert [line["step"] for line in lines] == [0, 1, 2, 3]
    assert runs._timed(ends, Steps(1, 2, 1)) == pytest.approx([0.2, 0.4], abs=0.1)


def test_memory_is_that_of_the_process(tmp_path: Path) -> None:
    _, _, small = follow(tmp_path)
    (tmp_path / "lines.jsonl").unlink()
    _, _, large = follow(tmp_path, mib=200)
    assert large - small == pytest.approx(200 * MIB, abs=5 * MIB)


def test_a_run_of_other_steps_is_refused_with_its_output(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="another number of steps"):
        follow(tmp_path, count=3)


def test_a_process_that_fails_is_refused_with_its_last_words(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no more memory"):
        command = [sys.executable, "-c", "raise SystemExit('no more memory')"]
        runs._follow(command, tmp_path / "lines.jsonl", tmp_path / "output.txt", Steps(1, 1, 1))


def test_a_process_that_is_gone_has_no_memory() -> None:
    assert proportional_bytes(2**22 + 1) == 0


def test_a_paused_sampler_does_not_look() -> None:
    sampler = MemorySampler(1)
    sampler.pause()
    sampler.peak_bytes = 0
    assert sampler.end() >= 0


def test_tokens_a_second_carry_a_share_of_the_checks() -> None:
    measured = Measured([1.0, 3.0], [10.0, 20.0], 0, [], check_s=0.5)
    assert measured.step_s == 2.5
    assert measured.tokens_per_s == 30 / 5


def test_the_last_check_is_that_of_the_last_checked_step() -> None:
    assert runs._last_check([9.0] + [0.0] * 19 + [2.0, 0.0], 20) == 2.0
    assert runs._last_check([9.0, 0.0], 20) == 9.0


def test_phases_are_medians_of_the_timed_steps() -> None:
    lines = [{"time/score_s": seconds} for seconds in (9.0, 1.0, 2.0, 3.0, 9.0)]
    assert runs.phases(lines, Steps(1, 3, 1)) == {"score": 2.0}
