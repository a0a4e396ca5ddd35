"""A run's directory as the report reads it: what is missing or broken there becomes a sentence, and the rest is shown."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import with_config
from typing_extensions import TypedDict

from minidist.config.secrets import without_secret_settings
from minidist.errors import DataError, RunDirectoryError
from minidist.report.curves import MetricsFile, size
from minidist.report.timeline import Step, read_step
from minidist.run.files import read_record
from minidist.run.show import Sample, read_sample, rollout_files

_LEFT_OUT = "the page is made without it"
_ALARM_BYTES = 4 * 2**20
_LARGEST = 64 * 2**20
_SHOWN_STEPS = 3
_SHOWN_ANSWERS = 6


@with_config(extra="allow")
class _Config(TypedDict, total=False):
    """The fields of config.json that are read by name."""

    stage: str
    run: dict[str, Any]


@with_config(extra="allow")
class _Summary(TypedDict, total=False):
    """The fields of summary.json that are read by name."""

    stage: str
    seconds: float
    steps: int
    canaries: dict[str, Any]
    time: dict[str, Any]
    result: dict[str, Any]
    supervision: dict[str, Any]


@dataclass
class RunFiles:
    """What a run's directory holds, as far as it can be read.

    name: by which the page calls the run. written: when the newest of its files changed, seconds of `time.time()`.
    problems: one sentence about each file that could not be used.
    """

    path: Path
    name: str
    metrics: MetricsFile
    config: Mapping[str, Any] = field(default_factory=dict)
    summary: Mapping[str, Any] | None = None
    alarms: list[str] = field(default_factory=list)
    samples: dict[int, list[Sample]] = field(default_factory=dict)
    step: Step | None = None
    written: float = 0.0
    problems: list[str] = field(default_factory=list)

    @property
    def stage(self) -> str:
        return str(self.config.get("stage") or (self.summary or {}).get("stage") or "")

    @property
    def seed(self) -> Any:
        run = self.config.get("run")
        return run.get("seed") if isinstance(run, dict) else None

    @property
    def steps_asked(self) -> int | None:
        run = self.config.get("run")
        steps = run.get("steps") if isinstance(run, dict) else None
        return steps if isinstance(steps, int) else None

    @property
    def steps_taken(self) -> int:
        taken = (self.summary or {}).get("steps")
        return taken if isinstance(taken, int) else max(0, self.metrics.last_step)

    @property
    def state(self) -> str:
        """Whether it has finished; of a run that has not, when it last wrote."""
        if self.summary is not None:
            return "finished"
        if time.time() - self.written < 120:
            return "running"
        return f"not finished, last written {time.strftime('%Y-%m-%d %H:%M', time.localtime(self.written))}"

    @property
    def seconds(self) -> float | None:
        """That the run took; None of one that has not finished."""
        return (self.summary or {}).get("seconds")

    def record(self, name: str, shape: Any) -> Any:
        """The values of one more JSON file of the directory; None without it, and where it cannot be used."""
        file = self.path / name
        if not file.exists():
            return None
        try:
            return read_record(file, shape, _LEFT_OUT)
        except RunDirectoryError as error:
            self.problems.append(str(error))
            return None

    def text(self, name: str, most: int = 2**20) -> str | None:
        """The beginning of one more text file of the directory; None without it."""
        file = self.path / name
        if not file.is_file():
            return None
        try:
            with file.open("rb") as stream:
                return stream.read(most).decode("utf-8", errors="replace")
        except OSError as error:
            self.problems.append(f"{file} cannot be read ({error.strerror}); {_LEFT_OUT}")
            return None


class Reader:
    """Reads a run's directory, again and again while the run goes on; of metrics.jsonl only what is new."""

    def __init__(self, path: Path, name: str) -> None:
        self.path = path
        self.name = name
        self._metrics = MetricsFile(path / "metrics.jsonl")

    def signature(self) -> tuple[object, ...]:
        """Changes when the run has written anything that the page shows."""
        names = ("config.json", "metrics.jsonl", "summary.json", "log.txt", "timeline.json", "influence.jsonl", "compare.json")
        return (*(size(self.path / name) for name in names), size(self.path / "rollouts"))

    def read(self) -> RunFiles:
        """What the directory holds now."""
        found = RunFiles(self.path, self.name, self._metrics)
        found.config = found.record("config.json", _Config) or {}
        if not found.config and not (self.path / "config.json").exists():
            found.problems.append(f"{self.path / 'config.json'} is missing; {_LEFT_OUT}")
        found.summary = found.record("summary.json", _Summary)
        self._read_metrics(found)
        found.alarms = _alarms(found)
        _read_samples(found)
        _read_step(found)
        files = (size(self.path / name)[1] for name in ("config.json", "metrics.jsonl", "log.txt", "summary.json"))
        found.written = max(files) / 1e9
        return found

    def _read_metrics(self, found: RunFiles) -> None:
        file = self._metrics.path
        if not file.exists():
            return  # stages without steps write none
        try:
            if not file.is_file():  # a pipe would never end
                raise OSError(0, "it is not a file")
            self._metrics.read()
        except OSError as error:
            found.problems.append(f"{file} cannot be read ({error.strerror}); {_LEFT_OUT}")
        found.problems += self._metrics.problems


def _alarms(found: RunFiles) -> list[str]:
    """Alarms of a finished run's summary; else those of its log."""
    canaries = (found.summary or {}).get("canaries") or {}
    if isinstance(raised := canaries.get("alarms"), list):
        return [str(alarm) for alarm in raised]
    text = found.text("log.txt", _ALARM_BYTES) or ""
    return list(dict.fromkeys(line.partition("ALARM ")[2] for line in text.splitlines() if "ALARM " in line))


def _read_samples(found: RunFiles) -> None:
    """The first answers of the first, a middle and the last recorded step."""
    files = rollout_files(found.path)
    steps = sorted(files)
    chosen = {steps[round(part * (len(steps) - 1) / (_SHOWN_STEPS - 1))] for part in range(_SHOWN_STEPS)} if steps else set()
    for step in sorted(chosen):
        samples: list[Sample] = []
        try:
            if files[step].stat().st_size > _LARGEST:
                raise ValueError("it has more than 64 MiB")
            with files[step].open(encoding="utf-8") as stream:
                for number, line in enumerate(stream, start=1):
                    if len(samples) == _SHOWN_ANSWERS:
                        break
                    try:
                        samples.append(read_sample(files[step], line, number))
                    except DataError as error:
                        found.problems.append(str(error))
        except (OSError, ValueError) as error:
            found.problems.append(f"{files[step]} cannot be read ({error}); {_LEFT_OUT}")
        if samples:
            found.samples[step] = samples


def _read_step(found: RunFiles) -> None:
    file = found.path / "timeline.json"
    try:
        found.step = read_step(file) if file.is_file() else None
    except OSError as error:
        found.problems.append(f"{file} cannot be read ({error.strerror}); {_LEFT_OUT}")


def flat(config: Any) -> dict[str, Any]:
    """The settings of a configuration by their dotted names, secrets not shown."""
    return dict(_flat(without_secret_settings(config), ""))


def _flat(settings: Any, key: str) -> Iterator[tuple[str, Any]]:
    if isinstance(settings, dict) and settings:
        for name, value in settings.items():
            yield from _flat(value, f"{key}.{name}".lstrip("."))
    else:
        yield key, settings
