"""The learner of a labelled task: a lesson, its models and their files, in one process or as one rank of several."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from minidist.concurrency import Worker
from minidist.evaluation.layers import compare_layers
from minidist.learners.group import Group
from minidist.learners.state import StateReader, save_state, whole_pieces
from minidist.losses.imitation import label_loss
from minidist.models.internals import internals, joined
from minidist.run.files import writing
from minidist.teaching.learning import Learning
from minidist.teaching.lesson import Lesson
from minidist.types import Array, Exercise, Judged, LabelledRow, Update

Whose = Literal["student", "teacher"]


class LessonLearner:
    """Takes the optimizer steps of a lesson. Its verbs are async, like those of every role.

    Args:
        lesson: the lesson with its models.
        micro_rows: most rows of one forward pass.
        group: the ranks that share each step's rows; each holds all models whole.
    """

    def __init__(self, lesson: Lesson, *, micro_rows: int, group: Group) -> None:
        self._lesson = lesson
        self._micro_rows = micro_rows
        self._group = group
        self._steps = 0
        self._worker = Worker("learner")

    async def update(self, exercise: Exercise) -> Update:
        """The step of an exercise; the influence in the result is that of this rank's rows."""
        return await self._worker.run(self._update, exercise)

    async def judge(self, whose: Whose, rows: Sequence[LabelledRow]) -> Judged:
        """A model's predictions of rows as it reads them, without training."""
        return await self._worker.run(self._judge, whose, rows)

    async def influence(self, exercise: Exercise) -> Array:
        """The influence of each row of an exercise on the student's loss on its feedback rows, [B]; nothing is trained."""
        return await self._worker.run(lambda: self._lesson.influence(exercise).cpu().numpy())

    async def layers(self, student: Sequence[LabelledRow], teacher: Sequence[LabelledRow]) -> dict[str, Any]:
        """Student and teacher compared layer by layer on the same rows, as each reads them; see `evaluation.layers`."""
        return await self._worker.run(self._layers, student, teacher)

    async def save(self, path: Path) -> dict[str, str]:
        """Write the student as transformers loads it and, where it learns, the teacher into the directory `teacher`."""
        await self._worker.run(self._save, path)
        return {}

    async def save_state(self, path: Path) -> dict[str, str]:
        """Write all trained weights and the optimizers' states into a checkpoint, as safetensors."""
        return await self._worker.run(self._save_state, path)

    async def resume(self, path: Path) -> None:
        """Go on from a checkpoint of `save_state`, written by any number of ranks."""
        await self._worker.run(self._resume, path)

    async def describe(self) -> dict[str, object]:
        """Class, steps, ranks: for the run's summary."""
        return {"class": type(self._lesson).__name__, "optimizer_steps": self._steps, "ranks": self._group.size}

    async def close(self) -> None:
        self._worker.close()

    def _update(self, exercise: Exercise) -> Update:
        outcome = self._lesson.teach(exercise)
        self._steps += 1
        influence = None if outcome.influence is None else outcome.influence.double().cpu().numpy()
        return Update(self._steps, outcome.metrics, influence)

    def _judge(self, whose: Whose, rows: Sequence[LabelledRow]) -> Judged:
        model = self._lesson.pair.models[whose]
        parts = [self._judge_some(model, rows[at : at + self._micro_rows]) for at in range(0, len(rows), self._micro_rows)]
        empty = Judged(*(np.zeros(0) for _ in range(3)))
        columns = zip(*((part.predicted, part.labels, part.loss) for part in parts or [empty]), strict=True)
        return Judged(*map(np.concatenate, columns))

    def _judge_some(self, model: Learning, rows: Sequence[LabelledRow]) -> Judged:
        found = model.predict(rows)
        predicted = found.logits_NC[:, 0] if found.scores else found.logits_NC.argmax(-1)
        loss_B = found.row_means(label_loss(found))
        return Judged(*(each.double().cpu().numpy() for each in (predicted, found.labels_N, loss_B)))

    def _layers(self, student: Sequence[LabelledRow], teacher: Sequence[LabelledRow]) -> dict[str, Any]:
        found = {}
        for whose, rows in (("student", student), ("teacher", teacher)):
            predictor, starts = self._lesson.pair.models[whose].predictor, range(0, len(rows), self._micro_rows)
            found[whose] = joined([internals(predictor, rows[at : at + self._micro_rows]) for at in starts])
        labels = np.array([row.label for row in student])
        return compare_layers(found["student"], found["teacher"], labels, scores=predictor.task.kind == "score")

    def _save(self, path: Path) -> None:
        if self._group.rank > 0:
            return
        with writing(path):
            path.mkdir(parents=True, exist_ok=True)
            self._lesson.pair.student.save(path)
            teacher = self._lesson.pair.teacher
            if teacher is not None and teacher.learns:
                teacher.save(path / "teacher")

    def _save_state(self, path: Path) -> dict[str, str]:
        if self._group.rank > 0:
            return {}
        state = chain.from_iterable(model.read_state() for model in self._lesson.models.values())
        with writing(path):
            return save_state(path, self._steps, whole_pieces(state))

    def _resume(self, path: Path) -> None:
        reader = StateReader(path)
        self._steps = reader.steps
        with torch.no_grad():
            for model in self._lesson.models.values():
                model.write_state(reader)
