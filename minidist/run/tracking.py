"""Progress of a run: a progress bar, metrics.jsonl, TensorBoard, the time of each phase, and answers to read."""

import json
import logging
import math
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from itertools import repeat
from pathlib import Path
from typing import Any, Protocol, TextIO

import numpy as np
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from minidist.run.files import full_disk, write_text, writing
from minidist.run.timeline import Calls, SpanLog
from minidist.text import readable, without_secrets
from minidist.types import MAIN, Array, Batch, Measures, Rollout, Update, Writer

log = logging.getLogger("minidist")


def _readable(record: logging.LogRecord) -> bool:
    """Have a line of the log show what others wrote as messages of errors do. True: every line is kept."""
    record.msg, record.args = without_secrets(readable(record.getMessage())), None
    return True


log.addFilter(_readable)
console = Console(stderr=True, markup=False)
Pieces = Callable[[Array], list[str]]
"""Gives the text of each token."""


class Board(Protocol):
    """A place beside the run's directory that shows its metrics."""

    def add(self, step: int, metrics: Mapping[str, float]) -> None: ...

    def close(self) -> None: ...


class Clock:
    """Seconds of each phase of the current step, as `time/<phase>_s`, and when the phases were. `now`: the time, seconds."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.now = now
        self._spans: dict[str, float] = {}
        self._log = SpanLog()

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Add the time spent inside to phase `name`."""
        start = self.now()
        try:
            with self._log.call(name):
                yield
        finally:
            self._spans[name] = self._spans.get(name, 0.0) + self.now() - start

    def take(self) -> dict[str, float]:
        """The times of all phases since the last call."""
        spans, self._spans = self._spans, {}
        return {f"time/{name}_s": seconds for name, seconds in spans.items()}

    def phases(self) -> Calls:
        """When the phases were, since the last call."""
        return self._log.take()


class Recorder:
    """Writes a run's metrics and rollouts, and shows a progress bar.

    Args:
        directory: of the run.
        steps: those that the run still takes; a resumed run does not begin at 0.
        tensorboard: write metrics as TensorBoard events too.
        shown: labels of the metrics beside the progress bar.
        pieces: gives the text of each token of an answer; None leaves these texts out of the rollouts files.
        boards: other places that show the metrics; closed with the recorder.
    """

    def __init__(
        self,
        directory: Path,
        steps: range,
        *,
        tensorboard: bool,
        shown: Mapping[str, str],
        pieces: Pieces | None = None,
        boards: Sequence[Board] = (),
    ) -> None:
        self._directory = directory
        self._shown = shown
        self._pieces = pieces
        self._boards = list(boards)
        self._metrics = (directory / "metrics.jsonl").open("a", encoding="utf-8")
        if tensorboard:
            self._boards.append(_TensorBoard(directory / "tensorboard", purge_step=steps.start or None))
        clocks = (TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[figures]}", markup=False))
        columns = (TextColumn("{task.description}", markup=False), BarColumn(bar_width=20), MofNCompleteColumn(), *clocks)
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._task = self._bar.add_task(directory.name, total=steps.stop, completed=steps.start, figures="")
        self._bar.start()

    def step(self, step: int, metrics: dict[str, float]) -> None:
        """Write the metrics of a step and advance the progress bar."""
        self.write(step, metrics)
        figures = "  ".join(f"{label} {metrics[name]:.4g}" for name, label in self._shown.items() if name in metrics)
        self._bar.update(self._task, completed=step + 1, figures=figures)
        if not console.is_terminal and (step + 1) % 20 == 0:
            log.info("step %d  %s", step + 1, figures)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """Write metrics that belong to a step without ending it, such as those of an evaluation."""
        with writing(self._directory / "metrics.jsonl"):
            self._metrics.write(json.dumps({"step": step, **metrics}) + "\n")
            self._metrics.flush()
        for board in self._boards:
            board.add(step, metrics)

    def rollouts(self, step: int, rollouts: Sequence[Rollout], measures: Measures | None = None) -> None:
        """Write prompts and answers to rollouts/step_000020.jsonl, with the `measures` of all their tokens in order."""
        folder = self._directory / "rollouts"
        folder.mkdir(exist_ok=True)
        borders = np.cumsum([len(rollout.tokens) for rollout in rollouts])[:-1]
        measured = (measures.student_logprob, measures.teacher_logprob) if measures else (None, None)
        logprobs = [repeat(None) if values is None else np.split(values, borders) for values in measured]
        rows = map(self._row, rollouts, *logprobs)
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        write_text(folder / f"step_{step:06d}.jsonl", lines)

    def _row(self, rollout: Rollout, student_logprobs: Array | None, teacher_logprobs: Array | None) -> dict[str, object]:
        """`logprobs` are of the sampled distribution, the others of the untruncated ones at temperature 1, nats.

        `coins`, in teacher-mixed sampling: 1 where the teacher chose the token; `logprobs` are then the student's.
        `teacher_prompt`: what the teacher read in place of the prompt, special tokens included. `teacher`: name of the row's
        teacher, of several.
        """
        row: dict[str, object] = {"prompt": rollout.prompt.text, "answer": rollout.text, "finish": rollout.finish.value}
        if rollout.prompt.teacher_text is not None:
            row["teacher_prompt"] = rollout.prompt.teacher_text
        if rollout.prompt.teacher:
            row["teacher"] = rollout.prompt.teacher
        row |= {"tokens": rollout.tokens.tolist(), "logprobs": _rounded(rollout.logprobs)}
        row |= {"student_logprobs": _rounded(student_logprobs), "teacher_logprobs": _rounded(teacher_logprobs)}
        version = int(rollout.versions[0]) if len(rollout.versions) else None
        row |= {"writer": rollout.writer.value, "version": version}
        if rollout.coins is not None:
            row["coins"] = rollout.coins.astype(int).tolist()
        return row if self._pieces is None else row | {"pieces": self._pieces(rollout.tokens)}

    def position(self) -> int:
        """Length of metrics.jsonl so far, bytes."""
        self._metrics.flush()
        return self._metrics.tell()

    def close(self) -> None:
        self._bar.stop()
        with ExitStack() as closing:
            for board in self._boards:
                closing.callback(board.close)
            with writing(self._directory / "metrics.jsonl"):
                self._metrics.close()


class _TensorBoard:
    """TensorBoard events in a directory. `purge_step`: first step of a resumed run; its earlier events are void."""

    def __init__(self, directory: Path, purge_step: int | None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._directory = directory
        threading.excepthook = _quiet_when_full
        with writing(directory):
            self._board: Any = SummaryWriter(str(directory), purge_step=purge_step)

    def add(self, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step."""
        with writing(self._directory):
            self._board.file_writer.add_summary(_summary(metrics), step)

    def close(self) -> None:
        with writing(self._directory):
            self._board.close()


def step_metrics(objective: str, metrics: dict[str, float], batch: Batch, update: Update) -> dict[str, float]:
    """Figures of a distillation step that its batch, its update and its times give together."""
    figures = {"speed/loss_tokens_per_s": metrics["learner/loss_tokens"] / metrics["speed/seconds_per_step"]}
    if objective in ("forward_kl", "reverse_kl"):  # the loss is the divergence
        figures[f"kl/{objective.removesuffix('_kl')}_nats"] = metrics[f"{MAIN}/loss_nats_per_token"]
    elif batch.measures is not None and (values := batch.measures.reverse_kl) is not None and not np.isnan(values).any():
        # Of the student that wrote the text, over every loss token: exact, at no extra cost.
        figures["kl/reverse_nats"] = float(values.mean())
    versions = [int(rollout.versions.min()) for rollout in batch.rollouts if rollout.writer is Writer.STUDENT]
    if versions:
        # Optimizer steps between the weights that wrote a token and those it is used on; 0 is strictly on-policy.
        figures["age/updates_max"] = float(update.version - 1 - min(versions))
    return figures


def start_log(directory: Path | None) -> None:
    """Send messages to the terminal and, with a run directory, to its log.txt."""
    log.setLevel(logging.INFO)
    # On a terminal messages are coloured and wrapped; in a file or a pipe each message is one line.
    shown = RichHandler(console=console, show_path=False, show_level=False) if console.is_terminal else _plain(sys.stderr)
    log.handlers = [shown]
    log.propagate = False
    if directory is not None:
        kept = _plain((directory / "log.txt").open("a", encoding="utf-8"))
        kept.handleError = lambda record: None  # a full disk ends the run where its numbers are written
        log.addHandler(kept)


def _rounded(logprobs: Array | None) -> list[float | None] | None:
    """Log-probabilities for JSON, which has no NaN: null for a token without one."""
    return None if logprobs is None else [None if math.isnan(value) else round(value, 4) for value in logprobs.tolist()]


def _summary(metrics: Mapping[str, float]) -> Any:
    """All metrics of a step in one event: an event for each takes ten times as long, some per cent of a small run's steps."""
    from tensorboard.compat.proto import summary_pb2

    kind: Any = summary_pb2
    return kind.Summary(value=[kind.Summary.Value(tag=name, simple_value=value) for name, value in metrics.items()])


def _quiet_when_full(failed: threading.ExceptHookArgs) -> None:
    """Errors of threads as Python prints them, but for a full disk: TensorBoard's thread hands that on to the next write."""
    if failed.exc_value is None or full_disk(failed.exc_value) is None:
        threading.__excepthook__(failed)


def _plain(stream: TextIO) -> logging.Handler:
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", datefmt="%Y-%m-%d %H:%M:%S"))
    return handler
