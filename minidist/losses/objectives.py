"""Objectives: what a stream's loss tokens are trained towards. Each is one small class; `OBJECTIVES` gives it its name."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from minidist.losses.divergences import forward_kl, reverse_kl
from minidist.protocols import Divergence
from minidist.types import Detail


@dataclass(frozen=True)
class Match:
    """The student's distribution at each token, drawn to the teacher's by a divergence over the full vocabulary.

    Both models' logits are divided by `temperature` before the softmax.
    """

    divergence: Divergence
    temperature: float = 1.0
    needs: ClassVar[Detail | None] = Detail.HIDDEN

    def __call__(self, student_NV: Tensor, labels_N: Tensor, teacher_NV: Tensor | None) -> Tensor:
        """[N] nats. The labels do not enter: the sum over the vocabulary is exact."""
        assert teacher_NV is not None
        return self.divergence(student_NV, teacher_NV)


@dataclass(frozen=True)
class Supervised:
    """Cross-entropy on given labels: -log q(label)."""

    temperature: float = 1.0
    needs: ClassVar[Detail | None] = None

    def __call__(self, student_NV: Tensor, labels_N: Tensor, teacher_NV: Tensor | None) -> Tensor:
        """[N] nats."""
        return -student_NV.gather(-1, labels_N[:, None]).squeeze(-1)


def make_objective(type: str, temperature: float = 1.0) -> Match | Supervised:
    """The objective of a configuration's `objective.type`."""
    if type == "supervised":
        return Supervised(temperature)
    return Match({"forward_kl": forward_kl, "reverse_kl": reverse_kl}[type], temperature)
