"""A teacher that learns along: it lives in the learner's process, and takes a step of its own before each of the student's."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from minidist.data.batching import MicroBatch
from minidist.learners.state import StateReader
from minidist.losses.chunked import Head
from minidist.types import MAIN, Stream

_TAUGHT = MAIN  # the objective whose streams a tutor teaches; others bring scores of their own, or need none

Look = Callable[[slice, Tensor], Tensor]
"""Sees which of a micro-batch's loss tokens a chunk holds, and the student's log-probabilities of them [chunk, V], which carry
no gradient; returns figures of these tokens [chunk, F]. May be shown chunks without tokens."""


@dataclass(frozen=True)
class Lesson:
    """A micro-batch of the student's text, and the student: `ask` shows a look what it says of all loss tokens, chunk by chunk,
    and gives the figures of all [L, F]. Ranks share the student: each lesson is asked for exactly once, in order."""

    micro: MicroBatch
    ask: Callable[[Look], Tensor]


class Tutor(Protocol):
    """The whole of it is in every rank, alike to the last bit, and outside of what the ranks divide among them."""

    @property
    def head(self) -> Head:
        """Its hidden states to logits."""
        ...

    def hidden(self, micro: MicroBatch) -> Tensor:
        """Hidden states [L, E] at the micro-batch's loss tokens, as the student shall match them; no gradient."""
        ...

    def learn(self, lessons: Iterable[Lesson], *, tokens: int, step: int) -> dict[str, float]:
        """One optimizer step on the lessons of all ranks, which hold `tokens` loss tokens together; `step` counts the student's
        from 0. Returns figures for the run's metrics. Raises DivergedError before its optimizer moves."""
        ...

    def state(self) -> Iterable[tuple[str, dict[str, Tensor]]]:
        """What a checkpoint must hold: `weight` and the optimizer's moments, by parameter name."""
        ...

    def restore(self, reader: StateReader) -> None:
        """Go on from what `state` gave."""
        ...

    def save(self, path: Path) -> None:
        """What it has learned, as safetensors in a directory of its own."""
        ...


class Tutoring:
    """What a learner does with its tutor, and nothing where it has none."""

    def __init__(self, tutor: Tutor | None) -> None:
        self._tutor = tutor

    def step(
        self, stream: Stream, micros: Iterable[tuple[MicroBatch, int]], forward: Callable[..., Any], step: int
    ) -> dict[str, float]:
        """The tutor's own step on the student's text, before the student learns from it; its figures. `micros`: with into how
        many chunks each is cut; `forward`: the student's."""
        if self._tutor is None or stream.objective != _TAUGHT:
            return {}

        def lesson(micro: MicroBatch, chunks: int) -> Lesson:
            return Lesson(micro, torch.no_grad()(lambda look: forward(micro, None, chunks, look=look)))

        lessons = (lesson(micro, chunks) for micro, chunks in micros)
        return self._tutor.learn(lessons, tokens=stream.loss_tokens, step=step)

    def hidden(self, stream: Stream, micro: MicroBatch) -> Tensor | None:
        """The tutor's hidden states, where the stream is its own and nobody has scored it."""
        own = stream.objective == _TAUGHT and micro.scores is None
        return self._tutor.hidden(micro) if self._tutor is not None and own else None

    def state(self) -> Iterable[tuple[str, dict[str, Tensor]]]:
        return () if self._tutor is None else self._tutor.state()

    def restore(self, reader: StateReader) -> None:
        if self._tutor is not None:
            self._tutor.restore(reader)

    def save(self, path: Path) -> None:
        """Beside the student's model, in a directory of its own: vLLM would take another safetensors file for a part of it."""
        if self._tutor is not None:
            self._tutor.save(path / "teacher")
