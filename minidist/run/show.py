"""Prompts and answers of a run, each token coloured by the student's log-probability minus the teacher's."""

import io
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NotRequired

from rich.console import Console
from rich.style import Style
from rich.text import Text
from typing_extensions import TypedDict

from minidist.errors import DataError
from minidist.run.files import shaped
from minidist.text import readable

Logprobs = list[float | None] | None


class Row(TypedDict):
    """A line of rollouts/step_000020.jsonl: the fields that are shown."""

    prompt: str
    answer: str
    finish: str
    tokens: list[int]
    pieces: NotRequired[list[str] | None]
    logprobs: NotRequired[Logprobs]
    student_logprobs: NotRequired[Logprobs]
    teacher_logprobs: NotRequired[Logprobs]
    coins: NotRequired[list[int] | None]


Colour = tuple[int, int, int]

_GREY, _ORANGE, _BLUE, _VIOLET = (225, 225, 225), (240, 125, 40), (70, 155, 225), (150, 110, 230)


@dataclass(frozen=True)
class Scale:
    """How a token's value becomes a colour or, on a console without colours, a number after the token.

    Args:
        title, ends: of the legend, and of the ends of its range.
        low, full: ends of the range, nats; values at and beyond `full` have the full colour.
        mark: on a console without colours, values beyond so many nats are printed after their token.
        above, below: colours of positive and of negative values.
    """

    title: str
    ends: tuple[str, str]
    low: float
    full: float
    mark: float
    above: Colour
    below: Colour

    def colour(self, value: float) -> str:
        """`#rrggbb` of a value in nats; grey at 0 and for NaN."""
        share = 0.0 if math.isnan(value) else max(-1.0, min(1.0, value / self.full))
        end = self.above if share > 0 else self.below
        mixed = [round(grey + abs(share) * (full - grey)) for grey, full in zip(_GREY, end, strict=True)]
        return "#" + "".join(f"{part:02x}" for part in mixed)

    def style(self, value: float) -> Style:
        """Black on the colour of the value."""
        return Style(color="#000000", bgcolor=self.colour(value))


DIFFERENCE = Scale(
    "log q - log p of each token, student minus teacher, nats",
    ("the teacher finds it likelier", "the student finds it likelier"),
    low=-3.0,
    full=3.0,
    mark=1.0,
    above=_ORANGE,
    below=_BLUE,
)
SURPRISE = Scale(
    "-log q of each token, the student's surprise, nats (no log-probabilities of the teacher were recorded)",
    ("certain", "surprising"),
    low=0.0,
    full=6.0,
    mark=3.0,
    above=_VIOLET,
    below=_GREY,
)


@dataclass(frozen=True)
class Sample:
    """One answer of a rollouts file.

    `pieces` are the texts of its tokens; `student` and `teacher` are log-probabilities in nats, NaN for a token without one;
    `coins`, of teacher-mixed sampling, are 1 where the teacher chose the token. A column that the file lacks is None: older
    runs recorded no pieces, answers from a data set have no `student`.
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
        """The scale of the tokens' values; None without log-probabilities."""
        if self.student is None:
            return None
        return SURPRISE if self.teacher is None else DIFFERENCE

    @property
    def values(self) -> list[float]:
        """The value of each token on `scale`, nats."""
        if self.student is None:
            return []
        if self.teacher is None:
            return [-q for q in self.student]
        return [q - p for q, p in zip(self.student, self.teacher, strict=True)]


def read_samples(directory: Path, step: int | None = None) -> tuple[Path, list[Sample]]:
    """The file of a step (None: the last step recorded) and its answers. Raises DataError if there are none."""
    if not directory.is_dir():
        raise DataError(f"no run directory at {directory}")
    if not (found := rollout_files(directory)):
        raise DataError(f"{directory} holds no rollouts/step_*.jsonl; run.rollouts_every sets how often a run writes them")
    if step is not None and step not in found:
        raise DataError(f"{directory} has no rollouts of step {step}; it has {', '.join(map(str, sorted(found)))}")
    file = found[max(found) if step is None else step]
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise DataError(f"{file} cannot be read ({error}); name another step") from None
    return file, [read_sample(file, line, number) for number, line in enumerate(lines, start=1)]


def rollout_files(directory: Path) -> dict[int, Path]:
    """The rollouts files of a run by their steps."""
    names = {file.stem.removeprefix("step_"): file for file in (directory / "rollouts").glob("step_*.jsonl")}
    return {int(name): file for name, file in names.items() if name.isdecimal() and file.is_file()}


def read_sample(file: Path, line: str, number: int) -> Sample:
    """The answer on a line of a rollouts file. Raises DataError."""
    where, remedy = f"{file}: line {number} is not a recorded rollout", "name another step"
    try:
        values = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"{where}; {remedy}") from None
    row = shaped(values, Row, where, remedy, DataError)
    student = _numbers(row.get("student_logprobs") or row.get("logprobs"))
    teacher, coins = _numbers(row.get("teacher_logprobs")), row.get("coins")
    sample = Sample(row["prompt"], row["answer"], row["finish"], row.get("pieces"), student, teacher, coins)
    columns = (row["tokens"], sample.pieces, sample.student, sample.teacher, sample.coins)
    if len({len(column) for column in columns if column is not None}) > 1:
        raise DataError(f"{file}: line {number} has columns of different lengths; each must have one entry a token")
    return sample


def _numbers(logprobs: Logprobs) -> list[float] | None:
    """Log-probabilities with NaN in place of null."""
    return None if logprobs is None else [math.nan if value is None else value for value in logprobs]


def show(directory: Path, *, step: int | None, rows: int, html: Path | None, console: Console | None = None) -> None:
    """Print the first `rows` answers of a step; with `html`, write them to that file as a page too."""
    file, samples = read_samples(directory, step)
    if html is not None and not html.absolute().parent.is_dir():
        raise DataError(f"no directory {html.absolute().parent} for the page {html.name}")
    console = console or Console(markup=False, soft_wrap=True)
    _print(console, file, samples, rows)
    if html is None:
        return
    page = Console(markup=False, record=True, width=110, file=io.StringIO(), force_terminal=True, color_system="truecolor")
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
        console.print(Text(f"\n[{number}] ", style="bold").append(readable(sample.prompt.rstrip("\n")), style="bold"))
        console.print(_answer(sample, colours=colours))
        for line in _summary(sample):
            console.print(Text("    " + line, style="dim"))


def _legend(scale: Scale, *, colours: bool) -> Text:
    if not colours:
        return Text(f"[number] after a token, where beyond {scale.mark:g}: {scale.title}")
    legend = Text(f"{scale.title}\n{scale.ends[0]} ")
    for part in range(7):
        value = scale.low + part * (scale.full - scale.low) / 6
        legend.append(f" {value:g} ", style=scale.style(value))
    return legend.append(" " + scale.ends[1])


def _answer(sample: Sample, *, colours: bool) -> Text:
    """The answer token by token."""
    scale, pieces = sample.scale, sample.pieces
    if scale is None or pieces is None:
        why = "no log-probabilities" if pieces is not None else "no texts of tokens"
        return Text(readable(sample.answer) + f"  ({why} were recorded)")
    text = Text()
    for piece, value in zip(pieces, sample.values, strict=True):
        if colours:
            # A line break has no width to colour, so a sign is shown.
            text.append(readable(piece).replace("\n", "↵\n"), style=scale.style(value))
        else:
            text.append(readable(piece) + (f"[{value:+.1f}]" if abs(value) > scale.mark else ""))
    return text


def _summary(sample: Sample) -> list[str]:
    """The lines below an answer."""
    finish = readable(sample.finish)
    if not sample.student:
        return [f"finish {finish}"]
    values, count = sample.values, len(sample.student)
    chosen = "" if sample.coins is None else f" ({sum(sample.coins)} chosen by the teacher)"
    line = f"{count} tokens{chosen}, finish {finish}, mean log q {_mean(sample.student):.3f}"
    if sample.teacher is None:
        return [line + " nats"]
    line += f", mean log p {_mean(sample.teacher):.3f}, mean difference {_mean(values):+.3f} nats"
    known = [index for index in range(count) if not math.isnan(values[index])]
    widest = sorted(known, key=lambda index: -abs(values[index]))[:3]
    names = [repr(sample.pieces[index]) if sample.pieces else "token" for index in widest]
    gaps = (f"{name} at {index} ({values[index]:+.2f})" for name, index in zip(names, widest, strict=True))
    return [line, "largest gaps: " + ", ".join(gaps)]


def _mean(values: Sequence[float]) -> float:
    """Mean of the values that are not NaN; NaN without any."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
