"""What stages other than a single training run leave: tables and pictures of comparisons, influence of rows, programs."""

import base64
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import with_config
from typing_extensions import TypedDict

from minidist.errors import DataError
from minidist.evaluation.figures import from_record
from minidist.evaluation.records import Row
from minidist.evaluation.table import markdown
from minidist.report.curves import Curve
from minidist.report.figures import curve_data, figure
from minidist.report.groups import COLOURS
from minidist.report.runs import RunFiles
from minidist.report.text import facts, from_markdown, number, shown
from minidist.run.files import shaped

PICTURES = {
    "compare.png": "Every run of the comparison is a dot",
    "toy.png": "Which part of each teacher is fitted first",
    "lessons.png": "Every run of the comparison is a dot",
    "curves.png": "Student and teacher over steps",
    "layers.png": "Student and teacher layer by layer",
}
"""Pictures that stages draw."""

_PNG = b"\x89PNG\r\n\x1a\n"
_PICTURE_BYTES = 4 * 2**20
_FOLLOWED = 12


class Influence(TypedDict):
    """A line of influence.jsonl."""

    step: int
    row: int
    influence: float
    sampled: bool


@with_config(extra="allow")
class Generated(TypedDict, total=False):
    """The fields of a generation's summary.json that are shown."""

    rows: int
    rows_failed: int
    rows_kept: int
    accept_frac: float
    accuracy: float
    accuracy_kept: float | None
    tokens: int
    answer_tokens_mean: float


def comparison_html(run: RunFiles) -> str:
    """Tables and pictures of a run, as its stage made them."""
    return "".join([_tables(run), _generated(run), *_pictures(run)])


def _tables(run: RunFiles) -> str:
    """table.md of a comparison; result.json of an evaluation as the table that its stage prints."""
    found = from_markdown(page) if (page := run.text("table.md")) else ""
    result = run.record("result.json", dict[str, dict[str, Any]])
    if result and (models := {name: from_record(record) for name, record in result.items()}):
        found += from_markdown(markdown(models))
    return found


def _generated(run: RunFiles) -> str:
    """What a program of System 2, or a plain generation, answered and kept."""
    if run.stage != "generate" or run.summary is None:
        return ""
    summary = shaped(dict(run.summary), Generated, f"{run.path}/summary.json", "the page is made without it", DataError)
    known = [(name, summary[name]) for name in Generated.__annotations__ if summary.get(name) is not None]
    return facts((name.replace("_", " "), number(value)) for name, value in known)


def _pictures(run: RunFiles) -> Iterator[str]:
    for name, title in PICTURES.items():
        if (content := _picture(run, name)) is not None:
            data = base64.b64encode(content).decode()
            image = f'<img src="data:image/png;base64,{data}" alt="{shown(title)}">'
            yield f'<figure class="picture"><figcaption><b>{shown(title)}</b><code>{name}</code></figcaption>{image}</figure>'


def _picture(run: RunFiles, name: str) -> bytes | None:
    """A picture of the run's directory; that of a comparison is drawn from its records where it is missing."""
    file = run.path / name
    if not file.is_file():
        return _drawn(run) if name == "compare.png" else None
    if file.stat().st_size > _PICTURE_BYTES or not (content := file.read_bytes()).startswith(_PNG):
        run.problems.append(f"{file} is no PNG picture of less than 4 MiB; the page is made without it")
        return None
    return content


def _drawn(run: RunFiles) -> bytes | None:
    records = run.record("compare.json", list[Row])
    if not records:
        return None
    from minidist.evaluation.picture import draw_comparison

    picture = io.BytesIO()
    draw_comparison(records, list(dict.fromkeys(record["objective"] for record in records)), picture)
    return picture.getvalue()


def influence_html(run: RunFiles) -> str:
    """Influence of the traced rows over steps: each row that is followed, and the mean of the sampled ones."""
    text = run.text("influence.jsonl", 64 * 2**20)
    followed, sampled = _influence(run, text) if text else ({}, {})
    series = []
    if sampled:
        steps = np.array(sorted(sampled), float)
        values = [np.array(sampled[step]) for step in sorted(sampled)]
        low, high = (np.array([np.quantile(each, part) for each in values]) for part in (0.25, 0.75))
        mean = Curve(steps, np.array([each.mean() for each in values]), low, high)
        series.append(curve_data(f"mean of {len(values[0])} rows, middle half", "--ink", mean))
    for index, (row, points) in enumerate(list(followed.items())[:_FOLLOWED]):
        steps, values = (np.array(part, float) for part in zip(*sorted(points.items()), strict=True))
        series.append(curve_data(f"row {row}", f"--series-{index % COLOURS}", Curve(steps, values)))
    if not series:
        return ""
    data = {"kind": "curves", "series": series, "legend": True, "smooth": False}
    return figure(f"Influence of rows, {run.name}", data, name="influence.jsonl", note="on the held-out loss", wide=True)


def _influence(run: RunFiles, text: str) -> tuple[Mapping[int, dict[int, float]], Mapping[int, list[float]]]:
    """Followed rows: influence by step, by row. Sampled rows: their influences by step."""
    followed: dict[int, dict[int, float]] = {}
    sampled: dict[int, list[float]] = {}
    bad = 0
    for line in text.splitlines():
        try:
            point = shaped(json.loads(line), Influence, "", "", DataError)
        except (ValueError, RecursionError):
            bad += 1
            continue
        if point["sampled"]:
            sampled.setdefault(point["step"], []).append(point["influence"])
        else:
            followed.setdefault(point["row"], {})[point["step"]] = point["influence"]
    if bad:
        run.problems.append(f"{run.path / 'influence.jsonl'}: {bad} lines are no influence of a row; left out")
    return followed, sampled


def cells(path: Path) -> list[Path]:
    """The runs of a comparison."""
    folder = path / "cells"
    return sorted(cell for cell in folder.iterdir() if (cell / "config.json").is_file()) if folder.is_dir() else []
