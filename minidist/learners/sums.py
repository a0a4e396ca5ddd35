"""Sums over the loss tokens of one stream, and the metrics that they become."""

import math
from collections.abc import Sequence
from typing import Self

import numpy as np
import torch
from torch import Tensor

from minidist.errors import CanaryError, DivergedError
from minidist.learners.group import Group
from minidist.losses.chunked import LossTerms
from minidist.losses.targets import Objective
from minidist.types import MAIN, Stream

_NAMES = ("loss", "student_logprob", "teacher_logprob", "tokens", "micro_batches")


class StreamSums:
    """Float64 sums by name; those of micro-batches and of ranks add up.

    `loss`, `student_logprob` and `teacher_logprob` of the labels in nats (the last is nan without a teacher), `tokens`,
    `micro_batches`, each of the objective's figures, and, of each of several `teachers`, the loss and the number of its tokens.
    """

    def __init__(self, figures: Sequence[str], values: Tensor | None = None, *, teachers: Sequence[str] = ()) -> None:
        self._figures = tuple(figures)
        self._teachers = tuple(teachers)
        of_teachers = [f"teacher/{name}/{kind}" for kind in ("loss", "tokens") for name in teachers]
        self._names = (*_NAMES, *figures, *of_teachers)
        self._values = torch.zeros(len(self._names), dtype=torch.float64) if values is None else values
        """On the device of the terms: the process does not wait for it before all have been added."""

    def __getitem__(self, name: str) -> float:
        return float(self._values[self._names.index(name)])

    def __add__(self, terms: LossTerms) -> Self:
        """With the terms of another micro-batch."""
        sums = torch.stack([terms.loss.detach().double(), terms.logprob.double(), terms.teacher_logprob.double()])
        counts = sums.new_full((2,), 1.0)
        counts[0] = terms.tokens
        numbers = torch.cat([sums, counts, terms.figures_F.double()])
        return self._with(self._values.to(numbers.device, non_blocking=True) + numbers)

    def over(self, group: Group) -> Self:
        """The sums of all ranks."""
        return self._with(torch.from_numpy(group.total(self._values.cpu().numpy())))

    def _with(self, values: Tensor) -> Self:
        return type(self)(self._figures, values, teachers=self._teachers)

    def check(self, stream: Stream) -> None:
        """Raise DivergedError if the loss is not finite, and CanaryError unless every label of the stream was trained."""
        if not math.isfinite(self["loss"]):
            raise DivergedError(f"the loss of stream {stream.name} is {self['loss']}; the optimizer did not move")
        if self["tokens"] != stream.loss_tokens:
            raise CanaryError(
                f"stream {stream.name}: {stream.loss_tokens} labels were counted but {self['tokens']:g} trained, so the loss "
                "would be scaled wrongly; the optimizer did not move"
            )

    def metrics(self, stream: Stream) -> dict[str, float]:
        """Means over the stream's loss tokens. The objective's figures keep their names on the main stream; on other streams
        they begin with the stream's name, so that two streams with the same objective do not overwrite one another."""
        means = {"loss_nats_per_token": self["loss"], "student_logprob_nats": self["student_logprob"]}
        if not math.isnan(self["teacher_logprob"]):
            means["teacher_logprob_nats"] = self["teacher_logprob"]
        sums = {f"{stream.name}/{name}": value for name, value in means.items()}
        prefix = "" if stream.objective == MAIN else f"{stream.name}/"
        sums |= {f"{prefix}{name}": self[name] for name in self._figures}
        return {name: value / stream.loss_tokens for name, value in sums.items()} | self._by_teacher(prefix)

    def _by_teacher(self, prefix: str) -> dict[str, float]:
        """The mean loss of each teacher's tokens, of those that have some."""
        counts = {name: self[f"teacher/{name}/tokens"] for name in self._teachers}
        return {
            f"{prefix}teacher/{name}/loss_nats_per_token": self[f"teacher/{name}/loss"] / count
            for name, count in counts.items()
            if count
        }


def of_steps(taken: Sequence[dict[str, float]]) -> dict[str, float]:
    """The metrics of several optimizer steps as those of one: sums of counts, the last rate, and means of all else, over the
    steps that have it: a minibatch may have no row of a teacher."""
    found = {name: [step[name] for step in taken if name in step] for step in taken for name in step}
    sums = {name: sum(values) for name, values in found.items()}
    counts = ("learner/loss_tokens", "learner/micro_batches")
    means = {name: value if name in counts else value / len(found[name]) for name, value in sums.items()}
    return means | {"learner/lr": taken[-1]["learner/lr"]}


def peaks(objective: Objective, group: Group) -> dict[str, float]:
    """The objective's largest values on any rank since the last call, by metric name."""
    own = objective.peaks()
    return dict(zip(own, group.peak(np.array([*own.values()])).tolist(), strict=True)) if own else {}
