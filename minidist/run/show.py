"""Prompts and answers of a run, each token coloured by how much the student and the teacher differ about it."""

import io
import json
import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.style import Style
from rich.text import Text

from minidist.errors import DataError

Colour = tuple[int, int, int]

_GREY, _RED, _GREEN, _VIOLET = (225, 225, 225), (240, 90, 80), (60, 180, 90), (150, 110, 230)


@dataclass(frozen=True)
class Scale:
    """How a token's figure becomes a colour and, where there are none, a mark.

    From `low` to `full` nats: the full colour at and beyond `full`, `above` for positive figures, `below` for negative ones.
    Without colours a figure beyond `mark` nats stands behind its token.
    """

    title: str
    ends: tuple[str, str]
    low: float
    full: float
    mark: float
    above: Colour
    below: Colour

    def colour(self, value: float) -> str:
        """`#rrggbb` of a figure in nats; grey at 0 and for what is no number."""
        share = 0.0 if math.isnan(value) else max(-1.0, min(1.0, value / self.full))
        end = self.above if share > 0 else self.below
        mixed = [round(grey + abs(share) * (full - grey)) for grey, full in zip(_GREY, end, strict=True)]
        return "#" + "".join(f"{part:02x}" for part in mixed)


DIFFERENCE = Scale(
    "log q - log p of each token, student minus teacher, nats",
    ("the teacher finds it likelier", "the student finds it likelier"),
    low=-3.0,
    full=3.0,
    mark=1.0,
    above=_RED,
    below=_GREEN,
)
SURPRISE = Scale(
    "-log q of each token, the student's own surprise, nats (no log-probabilities of the teacher were recorded)",
    ("certain", "surprising"),
    low=0.0,
    full=6.0,
    mark=3.0,
    above=_VIOLET,
    below=_GREY,
)


@dataclass(frozen=True)
class Sample:
    """One answer of a rollouts file. `pieces` are the texts of its tokens; log-probabilities are in nats, NaN where the file
    has none of a token; `coins`, of teacher-mixed sampling, are 1 where the teacher chose it.

    What the file does not hold is None: older runs recorded no pieces, answers out of a data set have no `student`.
    """

    prompt: str
    answer: str
    finish: str
    pieces: list[str] | None
    student: list[float] | None
    teacher: list[float] | None
    coins: list[int] | None = None

    @property
    def scale(self) -> Scale | None:
        """What its tokens can be coloured by."""
        if self.student is None:
            return None
        return SURPRISE if self.teacher is None else DIFFERENCE

    @property
    def figures(self) -> list[float]:
        """A figure for each token, on its scale."""
        if self.student is None:
            return []
        if self.teacher is None:
            return [-q for q in self.student]
        return [q - p for q, p in zip(self.student, self.teacher, strict=True)]


def read_samples(directory: Path, step: int | None = None) -> tuple[Path, list[Sample]]:
    """The answers of a step (None: the last one recorded), and their file. Raises DataError with one sentence."""
    if not directory.is_dir():
        raise DataError(f"no run directory at {directory}")
    files = sorted((directory / "rollouts").glob("step_*.jsonl"))
    if not files:
        raise DataError(f"{directory} holds no rollouts/step_*.jsonl; run.rollouts_every says how often a run writes them")
    found = {int(file.stem.removeprefix("step_")): file for file in files if file.stem.removeprefix("step_").isdigit()}
    if step is not None and step not in found:
        raise DataError(f"{directory} has no rollouts of step {step}; it has {', '.join(map(str, sorted(found)))}")
    file = found[max(found) if step is None else step]
    return file, [_sample(file, line, number) for number, line in enumerate(file.read_text("utf-8").splitlines(), start=1)]


def _sample(file: Path, line: str, number: int) -> Sample:
    try:
        row: dict[str, Any] = json.loads(line)
        student = row.get("student_logprobs") or row.get("logprobs")
        if student is not None:
            student = [math.nan if value is None else value for value in student]
        teacher, coins = row.get("teacher_logprobs"), row.get("coins")
        sample = Sample(row["prompt"], row["answer"], row["finish"], row.get("pieces"), student, teacher, coins)
        columns = (row["tokens"], sample.pieces, sample.student, sample.teacher, sample.coins)
        lengths = {len(column) for column in columns if column is not None}
    except (json.JSONDecodeError, KeyError, TypeError):
        raise DataError(f"{file}: line {number} is no recorded rollout; the run may have ended while it wrote it") from None
    if len(lengths) > 1:
        raise DataError(f"{file}: line {number} has columns of different lengths; each must have one entry a token")
    return sample


def show(directory: Path, *, step: int | None, rows: int, html: Path | None, console: Console | None = None) -> None:
    """Print the first `rows` answers of a step; with `html`, leave the same as a page there."""
    file, samples = read_samples(directory, step)
    if html is not None and not html.absolute().parent.is_dir():
        raise DataError(f"no directory {html.absolute().parent} for the page {html.name}")
    console = console or Console(soft_wrap=True)
    _print(console, file, samples, rows)
    if html is None:
        return
    page = Console(record=True, width=110, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    _print(page, file, samples, rows)
    html.write_text(page.export_html(inline_styles=True), encoding="utf-8")


def _print(console: Console, file: Path, samples: Sequence[Sample], rows: int) -> None:
    colours = console.is_terminal and not console.no_color
    shown = samples[:rows]
    console.print(Text(f"{file}: {len(shown)} of {len(samples)} answers"))
    for scale in dict.fromkeys(sample.scale for sample in shown):
        if scale is not None:
            console.print(_legend(scale, colours=colours))
    for number, sample in enumerate(shown, start=1):
        console.print(Text(f"\n[{number}] ", style="bold").append(_readable(sample.prompt.rstrip("\n")), style="bold"))
        console.print(_answer(sample, colours=colours))
        for line in _summary(sample):
            console.print(Text("    " + line, style="dim"))


def _legend(scale: Scale, *, colours: bool) -> Text:
    if not colours:
        return Text(f"[figure] behind a token, where it is beyond {scale.mark:g}: {scale.title}")
    legend = Text(f"{scale.title}\n{scale.ends[0]} ")
    for part in range(7):
        value = scale.low + part * (scale.full - scale.low) / 6
        legend.append(f" {value:g} ", style=_style(scale, value))
    return legend.append(" " + scale.ends[1])


def _answer(sample: Sample, *, colours: bool) -> Text:
    """The answer token by token."""
    scale, pieces = sample.scale, sample.pieces
    if scale is None or pieces is None:
        why = "no log-probabilities" if pieces is not None else "no texts of tokens"
        return Text(_readable(sample.answer) + f"  ({why} were recorded with it)")
    text = Text()
    for piece, value in zip(pieces, sample.figures, strict=True):
        if colours:
            # A line's end has no width to colour, so it gets a sign.
            text.append(_readable(piece).replace("\n", "↵\n"), style=_style(scale, value))
        else:
            text.append(_readable(piece) + (f"[{value:+.1f}]" if abs(value) > scale.mark else ""))
    return text


def _summary(sample: Sample) -> list[str]:
    """What stands under an answer."""
    if not sample.student:
        return [f"finish {sample.finish}"]
    figures, count = sample.figures, len(sample.student)
    chosen = "" if sample.coins is None else f" ({sum(sample.coins)} chosen by the teacher)"
    line = f"{count} tokens{chosen}, finish {sample.finish}, mean log q {_mean(sample.student):.3f}"
    if sample.teacher is None:
        return [line + " nats"]
    line += f", mean log p {_mean(sample.teacher):.3f}, mean difference {_mean(figures):+.3f} nats"
    known = [index for index in range(count) if not math.isnan(figures[index])]
    widest = sorted(known, key=lambda index: -abs(figures[index]))[:3]
    names = [repr(sample.pieces[index]) if sample.pieces else "token" for index in widest]
    gaps = (f"{name} at {index} ({figures[index]:+.2f})" for name, index in zip(names, widest, strict=True))
    return [line, "largest gaps: " + ", ".join(gaps)]


def _mean(values: Sequence[float]) -> float:
    """Of those that are numbers; NaN where none is."""
    said = [value for value in values if not math.isnan(value)]
    return sum(said) / len(said) if said else math.nan


def _style(scale: Scale, value: float) -> Style:
    return Style(color="#000000", bgcolor=scale.colour(value))


def _readable(text: str) -> str:
    """Control characters shown as what they are not, so that no answer can move the cursor of a terminal."""
    kept = ("\n", "\t")
    return "".join("\ufffd" if unicodedata.category(letter) == "Cc" and letter not in kept else letter for letter in text)
