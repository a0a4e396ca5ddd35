"""A way's run in a process of its own, followed from outside: when each step ends, its tokens, and the peak of memory.

Both sides write a line a step, and one clock reads when the line appears. The first steps warm up; then come the timed steps;
in the first and in the last steps, which are not timed, memory is sampled.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from minidist.config.canaries import CanaryConfig
from tests.benchmarks.peers.memory import MemorySampler
from tests.benchmarks.peers.trl_side import PeerTask
from tests.benchmarks.peers.workloads import Prepared, minidist_config

POLL_S = 0.01
LIMIT_S = 1800


@dataclass(frozen=True)
class Steps:
    """Steps of a run: `warm_up`, then `timed`, then `sampled`, in which only memory is measured."""

    warm_up: int
    timed: int
    sampled: int = 1

    @property
    def total(self) -> int:
        return self.warm_up + self.timed + self.sampled


@dataclass
class Measured:
    """What a run showed.

    Args:
        seconds: of each timed step.
        tokens: useful tokens of each timed step.
        peak_bytes: of memory, over all processes.
        lines: of all steps, as the run wrote them.
        check_s: a step's share of the checks, seconds.
    """

    seconds: list[float]
    tokens: list[float]
    peak_bytes: int
    lines: list[dict[str, Any]] = field(repr=False)
    check_s: float = 0.0

    @property
    def step_s(self) -> float:
        """Median seconds of a step."""
        return statistics.median(self.seconds) + self.check_s

    @property
    def tokens_per_s(self) -> float:
        """Useful tokens a second over the timed steps."""
        return sum(self.tokens) / (sum(self.seconds) + self.check_s * len(self.seconds))


def run_peer(task: PeerTask, folder: Path, steps: Steps) -> Measured:
    """A TRL trainer's run."""
    command = [sys.executable, "-m", "tests.benchmarks.peers.trl_side", str(task.write(folder / "task.json"))]
    lines, ends, peak = _follow(command, Path(task.output), folder / "output.txt", steps)
    tokens = [float(sum(line["lengths"])) for line in lines]
    return Measured(_timed(ends, steps), tokens[steps.warm_up :][: steps.timed], peak, lines)


def run_minidist(prepared: Prepared, folder: Path, dtype: str, steps: Steps, overrides: Sequence[str] = ()) -> Measured:
    """A run of `minidist distill`, with `overrides` of its configuration.

    The first step and every twentieth (canaries.every) are checked. The timed steps are taken without their check; each carries
    its share of the run's last one.
    """
    run, file = folder / "run", folder / "distill.yaml"
    file.write_text(yaml.safe_dump(minidist_config(prepared, run, dtype, steps.total)))
    command = [sys.executable, "-m", "minidist.cli", "distill", str(file), *overrides]
    lines, ends, peak = _follow(command, run / "metrics.jsonl", folder / "output.txt", steps)
    timed = lines[steps.warm_up :][: steps.timed]
    every = CanaryConfig().every
    checks = [line.get("time/check_s", 0.0) for line in lines]
    seconds = [
        wall - (checks[index] if index % every == 0 else 0.0) for index, wall in enumerate(_timed(ends, steps), steps.warm_up)
    ]
    return Measured(seconds, [line["learner/loss_tokens"] for line in timed], peak, lines, _last_check(checks, every) / every)


def _last_check(checks: list[float], every: int) -> float:
    """Seconds of the last step's check that was timed: that of the first step is slower, with all caches cold."""
    return checks[(len(checks) - 1) // every * every]


def answers_of(folder: Path) -> Path:
    """The answers of the first step of a `minidist distill`."""
    return folder / "run" / "rollouts" / "step_000001.jsonl"


def phases(lines: list[dict[str, Any]], steps: Steps) -> dict[str, float]:
    """Median seconds of each phase of minidist's timed steps."""
    timed = lines[steps.warm_up :][: steps.timed]
    names = sorted({name for line in timed for name in line if name.startswith("time/")})
    return {
        name.removeprefix("time/").removesuffix("_s"): statistics.median(line.get(name, 0.0) for line in timed)
        for name in names
    }


def losses_of(task: PeerTask, folder: Path) -> dict[str, float]:
    """A trainer's loss on given answers."""
    command = [sys.executable, "-m", "tests.benchmarks.peers.trl_side", str(task.write(folder / "task.json"))]
    with (folder / "output.txt").open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=_environment())
        if process.wait(LIMIT_S):
            raise SystemExit(_failure(command, folder / "output.txt"))
    return json.loads(Path(task.output).read_text())


def _timed(ends: list[float], steps: Steps) -> list[float]:
    return [ends[index] - ends[index - 1] for index in range(steps.warm_up, steps.warm_up + steps.timed)]


def _follow(command: list[str], path: Path, output: Path, steps: Steps) -> tuple[list[dict[str, Any]], list[float], int]:
    """Start a process, and read the lines that it writes to `path`: all of them, when each appeared, and the peak of memory."""
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=_environment())
    sampler = MemorySampler(process.pid)
    lines: list[dict[str, Any]] = []
    ends: list[float] = []
    try:
        for line in _lines(process, path):
            ends.append(time.perf_counter())
            lines.append(line)
            if len(lines) == steps.warm_up:
                sampler.pause()
            elif len(lines) == steps.warm_up + steps.timed:
                sampler.go_on()
    finally:
        if process.poll() is None:
            process.terminate()
            process.wait(60)
        peak = sampler.end()
    if process.returncode or len(lines) != steps.total:
        raise SystemExit(_failure(command, output))
    return lines, ends, peak


def _lines(process: "subprocess.Popen[bytes]", path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a file, each when it is whole, until the process has ended."""
    started, read = time.monotonic(), 0
    while True:
        ended = process.poll() is not None
        text = path.read_bytes()[read:] if path.exists() and path.stat().st_size > read else b""
        whole = text.rfind(b"\n") + 1
        read += whole
        for line in text[:whole].splitlines():
            yield json.loads(line)
        if ended:
            return
        if time.monotonic() - started > LIMIT_S:
            process.terminate()
        time.sleep(POLL_S)


def _environment() -> dict[str, str]:
    return os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "ACCELERATE_USE_CPU": "true"}


def _failure(command: list[str], output: Path) -> str:
    last = "\n".join(output.read_text(errors="replace").splitlines()[-15:])
    return f"{' '.join(command)} failed or took another number of steps; its output ends with:\n{last}"
