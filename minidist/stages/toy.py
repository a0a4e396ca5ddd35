"""Free distributions fitted to fixed ones: which part of the teacher each divergence fits first."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import with_config
from torch import Tensor
from typing_extensions import TypedDict

from minidist.config import ToyConfig
from minidist.config.divergences import Divergences
from minidist.config.toy import MixtureConfig, ZipfConfig
from minidist.errors import RunDirectoryError
from minidist.evaluation.picture import draw_toy
from minidist.losses.objectives import divergence
from minidist.losses.targets import Divergence
from minidist.run.directory import RunDirectory
from minidist.run.files import read_record, write_json
from minidist.run.tracking import log, start_log
from minidist.types import Array

_LEVELS = (0.5, 0.1)
"""Fractions of the initial error; a record holds the epoch at which the error falls below each."""


@with_config(extra="allow")
class Fit(TypedDict):
    """The fields of a record that are drawn: errors before each epoch of `epochs`, for each seed."""

    teacher: str
    objective: str
    epochs: list[int]
    head: list[list[float]]
    tail: list[list[float]]


async def toy(config: ToyConfig) -> dict[str, Any]:
    """Fit all divergences to all teachers, unless the run is finished; write toy.json and draw toy.png."""
    directory = RunDirectory(config)
    file = directory.path / "toy.json"
    if not directory.finished():
        directory.start()
        start_log(directory.path)
        write_json(file, await _fit_all(config), indent=None)
        directory.finish({})
    records = _read(file)
    curves: dict[str, dict[str, dict[str, Array]]] = {}
    for record in records:
        errors = (("head", np.array(record["head"])), ("tail", np.array(record["tail"])))
        relative = {part: values / values[:, :1] for part, values in errors}
        curves.setdefault(record["teacher"], {})[record["objective"]] = relative
    draw_toy(curves, records[0]["epochs"], directory.path / "toy.png")
    print(f"records and picture: {directory.path}/toy.json, toy.png")
    return directory.summary or {}


def _read(file: Path) -> list[Fit]:
    """The records of toy.json, at least one, each with an error for every epoch. Raises RunDirectoryError."""
    remedy = "set run.overwrite=true to fit again"
    records = read_record(file, list[Fit], remedy)
    rows = [(row, record["epochs"]) for record in records for part in (record["head"], record["tail"]) for row in part or [[]]]
    if not records or any(not row or len(row) != len(epochs) for row, epochs in rows):
        raise RunDirectoryError(f"{file} is of another shape (each record needs an error for every epoch); {remedy}")
    return records


def teacher(config: ZipfConfig | MixtureConfig) -> Tensor:
    """Probabilities of the classes, [classes], float64."""
    number = torch.arange(1, config.classes + 1, dtype=torch.float64)
    if isinstance(config, ZipfConfig):
        mass = number**-config.exponent
    else:
        modes = len(config.weights)
        centres = (torch.arange(modes, dtype=torch.float64) + 0.5) / modes * config.classes + 0.5
        bells = torch.exp(-0.5 * ((number[:, None] - centres) / config.width) ** 2)
        mass = bells @ torch.tensor(config.weights, dtype=torch.float64)
    return mass / mass.sum()


def head_of(teacher_C: Tensor) -> Tensor:
    """Which classes form the head: the fewest likeliest classes with at least half of the mass. [C], bool."""
    order = teacher_C.argsort(descending=True, stable=True)
    before = teacher_C[order].cumsum(0) - teacher_C[order]
    head = torch.zeros_like(teacher_C, dtype=torch.bool)
    head[order[before < 0.5]] = True
    return head


def fit(divergence: Divergence, teacher_C: Tensor, logits_SC: Tensor, *, lr: float, epochs: int) -> tuple[Tensor, Tensor]:
    """Sum of |p - q| over head and over tail before every epoch and after the last, each [S, epochs + 1].

    S independent students start from `logits_SC`; `lr` is the step size of the gradient descent.
    """
    head, teacher_SC = head_of(teacher_C), teacher_C.log().expand_as(logits_SC)
    logits_SC, errors = logits_SC.detach().clone(), []
    for epoch in range(epochs + 1):
        logits_SC.requires_grad_(True)
        student_SC = torch.log_softmax(logits_SC, -1)
        gap_SC = (student_SC.detach().exp() - teacher_C).abs()
        errors.append((gap_SC[:, head].sum(-1), gap_SC[:, ~head].sum(-1)))
        if epoch < epochs:
            (gradient,) = torch.autograd.grad(divergence(student_SC, teacher_SC).sum(), logits_SC)
            logits_SC = (logits_SC - lr * gradient).detach()
    heads, tails = zip(*errors, strict=True)
    return torch.stack(heads, 1), torch.stack(tails, 1)


async def _fit_all(config: ToyConfig) -> list[dict[str, Any]]:
    shown = _spaced(config.epochs, config.points)
    records = []
    for name, teacher_config in config.teachers.items():
        teacher_C = teacher(teacher_config)
        start_SC = torch.stack([_start(config, seed, len(teacher_C)) for seed in config.seeds])
        for objective, section in config.divergences.items():
            await asyncio.sleep(0)  # lets Ctrl-C in between two fits
            errors = fit(divergence(section), teacher_C, start_SC, lr=config.lr, epochs=config.epochs)
            head, tail = (part.numpy() for part in errors)
            parts = {"head": head, "tail": tail}
            record = {"teacher": name, "objective": objective, "options": _options(section, objective), "seeds": config.seeds}
            record |= {f"{part}_below_{level:g}": _first(parts[part], level) for part in parts for level in _LEVELS}
            record |= {f"{part}_end": errors[:, -1].tolist() for part, errors in parts.items()} | {"epochs": shown}
            records.append(record | {part: _rounded(errors[:, shown]) for part, errors in parts.items()})
            halves = [np.mean([epoch or config.epochs for epoch in _first(part, 0.5)]) for part in (head, tail)]
            text = "%s, %s: half the error at epoch %.0f (head) and %.0f (tail), %.2g and %.2g at the end"
            log.info(text, name, objective, *halves, head[:, -1].mean(), tail[:, -1].mean())
    return records


def _options(section: Divergences, name: str) -> dict[str, Any]:
    """The options as the configuration gives them."""
    return section.model_dump(mode="json", exclude_unset=True, exclude={"type"} if section.type == name else None)


def _start(config: ToyConfig, seed: int, classes: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return config.init * torch.randn(classes, generator=generator, dtype=torch.float64)


def _spaced(epochs: int, points: int) -> list[int]:
    """Epochs evenly spaced in the logarithm of epoch + 1, as whole numbers."""
    return sorted({round(value) - 1 for value in np.geomspace(1, epochs + 1, points).tolist()})


def _first(errors_SE: Array, level: float) -> list[int | None]:
    """For each seed the first epoch whose error is below `level` times the initial error; None if there is none."""
    below = errors_SE < level * errors_SE[:, :1]
    return [int(row.argmax()) if row.any() else None for row in below]


def _rounded(errors_SE: Array) -> list[list[float]]:
    return [[float(f"{value:.4g}") for value in row] for row in errors_SE.tolist()]
