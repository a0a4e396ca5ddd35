"""Free distributions fitted to given ones: which part of the teacher each divergence fits first."""

import asyncio
import json
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minidist import losses
from minidist.config import ToyConfig
from minidist.config.toy import MixtureConfig, ZipfConfig
from minidist.errors import ConfigError
from minidist.evaluation.picture import draw_toy
from minidist.run.directory import RunDirectory
from minidist.run.files import write_json
from minidist.run.tracking import log, start_log
from minidist.types import Array

Divergence = Callable[[Tensor, Tensor], Tensor]
_LEVELS = (0.5, 0.1)  # of the first error: when a fit comes below them is written down


async def toy(config: ToyConfig) -> dict[str, Any]:
    """Fit, unless that was done before; leave toy.json and toy.png."""
    directory = RunDirectory(config)
    divergences = {name: divergence(name, options) for name, options in config.divergences.items()}
    file = directory.path / "toy.json"
    if not directory.finished():
        directory.start()
        start_log(directory.path)
        started = time.time()
        write_json(file, await _fit_all(config, divergences), indent=None)
        directory.finish({"stage": "toy", "seconds": round(time.time() - started, 1)})
    records = json.loads(file.read_text())
    curves: dict[str, dict[str, dict[str, Array]]] = {}
    for record in records:
        errors = {part: np.array(record[part]) for part in ("head", "tail")}
        curves.setdefault(record["teacher"], {})[record["objective"]] = {
            part: values / values[:, :1] for part, values in errors.items()
        }
    draw_toy(curves, records[0]["epochs"], directory.path / "toy.png")
    print(f"records and picture: {directory.path}/toy.json, toy.png")
    return directory.summary or {}


def divergence(name: str, options: dict[str, Any]) -> Divergence:
    """The function of minidist.losses with its options. Raises ConfigError for one that is out of range."""
    given = {key: value for key, value in options.items() if key != "type"}
    function: Divergence = partial(getattr(losses, options.get("type", name)), **given)
    uniform = torch.full((1, 2), 0.5, dtype=torch.float64).log()
    try:
        function(uniform, uniform)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"divergences.{name}: {error}") from None
    return function


def teacher(config: ZipfConfig | MixtureConfig) -> Tensor:
    """Probabilities of the classes, [classes], float64."""
    place = torch.arange(1, config.classes + 1, dtype=torch.float64)
    if isinstance(config, ZipfConfig):
        mass = place**-config.exponent
    else:
        modes = len(config.weights)
        centres = (torch.arange(modes, dtype=torch.float64) + 0.5) / modes * config.classes + 0.5
        bells = torch.exp(-0.5 * ((place[:, None] - centres) / config.width) ** 2)
        mass = bells @ torch.tensor(config.weights, dtype=torch.float64)
    return mass / mass.sum()


def head_of(teacher_C: Tensor) -> Tensor:
    """Which classes are the head: the likeliest, as few as hold at least half the mass. [C], bool."""
    order = teacher_C.argsort(descending=True, stable=True)
    before = teacher_C[order].cumsum(0) - teacher_C[order]
    head = torch.zeros_like(teacher_C, dtype=torch.bool)
    head[order[before < 0.5]] = True
    return head


def fit(divergence: Divergence, teacher_C: Tensor, logits_SC: Tensor, *, lr: float, epochs: int) -> tuple[Tensor, Tensor]:
    """Sum of |p - q| over head and over tail before every epoch and after the last, each [S, epochs + 1].

    Gradient descent of each of S students by itself, from `logits_SC`.
    """
    head, taught_SC = head_of(teacher_C), teacher_C.log().expand_as(logits_SC)
    logits_SC, errors = logits_SC.detach().clone(), []
    for epoch in range(epochs + 1):
        logits_SC.requires_grad_(True)
        student_SC = torch.log_softmax(logits_SC, -1)
        gap_SC = (student_SC.detach().exp() - teacher_C).abs()
        errors.append((gap_SC[:, head].sum(-1), gap_SC[:, ~head].sum(-1)))
        if epoch < epochs:
            (gradient,) = torch.autograd.grad(divergence(student_SC, taught_SC).sum(), logits_SC)
            logits_SC = (logits_SC - lr * gradient).detach()
    heads, tails = zip(*errors, strict=True)
    return torch.stack(heads, 1), torch.stack(tails, 1)


async def _fit_all(config: ToyConfig, divergences: dict[str, Divergence]) -> list[dict[str, Any]]:
    shown = _spaced(config.epochs, config.points)
    records = []
    for name, given in config.teachers.items():
        teacher_C = teacher(given)
        start_SC = torch.stack([_start(config, seed, len(teacher_C)) for seed in config.seeds])
        for objective, function in divergences.items():
            await asyncio.sleep(0)  # Ctrl-C is heard between two fits
            head, tail = (part.numpy() for part in fit(function, teacher_C, start_SC, lr=config.lr, epochs=config.epochs))
            record = {"teacher": name, "objective": objective, "options": config.divergences[objective], "seeds": config.seeds}
            record |= {
                f"{part}_below_{level:g}": _first(errors, level)
                for part, errors in (("head", head), ("tail", tail))
                for level in _LEVELS
            }
            record |= {"head_end": head[:, -1].tolist(), "tail_end": tail[:, -1].tolist(), "epochs": shown}
            record |= {"head": _rounded(head[:, shown]), "tail": _rounded(tail[:, shown])}
            records.append(record)
            halves = [np.mean([epoch or config.epochs for epoch in _first(part, 0.5)]) for part in (head, tail)]
            log.info(
                "%s, %s: half the error at epoch %.0f (head) and %.0f (tail), %.2g and %.2g at the end",
                *(name, objective, *halves, head[:, -1].mean(), tail[:, -1].mean()),
            )
    return records


def _start(config: ToyConfig, seed: int, classes: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return config.init * torch.randn(classes, generator=generator, dtype=torch.float64)


def _spaced(epochs: int, points: int) -> list[int]:
    """Epochs evenly spaced in the logarithm of epoch + 1, as whole numbers."""
    return sorted({round(value) - 1 for value in np.geomspace(1, epochs + 1, points).tolist()})


def _first(errors_SE: Array, level: float) -> list[int | None]:
    """Of each seed the first epoch at which the error is below `level` times its first one; None where it never is."""
    below = errors_SE < level * errors_SE[:, :1]
    return [int(row.argmax()) if row.any() else None for row in below]


def _rounded(errors_SE: Array) -> list[list[float]]:
    return [[float(f"{value:.4g}") for value in row] for row in errors_SE.tolist()]
