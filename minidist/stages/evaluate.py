"""Evaluation of a list of models against one teacher, as one table."""

import json
import re
from pathlib import Path
from typing import Any

from minidist.concurrency import together
from minidist.config import EvaluateConfig
from minidist.config.learner import LearnerConfig
from minidist.config.models import StudentConfig
from minidist.evaluation.examiner import Examiner
from minidist.evaluation.table import show
from minidist.models.files import resolve
from minidist.preflight.plan import Plan, as_model
from minidist.protocols import Learner, Teacher
from minidist.roles.host import Roles
from minidist.roles.make import same_architecture
from minidist.rollout.pool import Engines
from minidist.run.canaries import tolerance
from minidist.run.directory import RunDirectory
from minidist.run.tracking import log


async def evaluate(config: EvaluateConfig, plan: Plan, directory: RunDirectory, roles: Roles) -> dict[str, Any]:
    """Measure each model, write result.json, print the table."""
    teacher_path = resolve(config.teacher.model or "", "teacher.model").resolve()
    paths = {name: resolve(model, f"models.{name}").resolve() for name, model in config.models.items()}
    students = [path for path in paths.values() if path != teacher_path]
    bench = _Bench(config, roles)
    # The teacher and the first student start side by side: most of a start is imports.
    started: list[Any] = await together([roles.teachers(config.teacher), *(bench.seat(path) for path in students[:1])])
    teacher: Teacher = started[0]
    graded = config.data.test.task is not None
    examiner = Examiner(
        plan.prompts,
        teacher,
        max_new_tokens=config.rollout.max_new_tokens,
        seeds=config.seeds or [config.run.seed],
        graded=graded,
        tolerance_nats=tolerance(config.canaries.logprob_tolerance_nats, (config.dtype,), exact=1e-3, rounded=0.05),
        no_repeat_ngram_size=config.rollout.no_repeat_ngram_size,
        questions=plan.questions,
    )
    result: dict[str, Any] = {}
    for name, path in paths.items():
        if path == teacher_path:
            learner = await bench.learner(students[0] if students else path) if plan.questions else None
            figures = await examiner.examine_teacher(learner)
        else:
            figures = await examiner.examine(*await bench.seat(path))
        result[name] = _with_curve(figures) | _training_facts(Path(config.models[name]))
        shown = {key: value for key, value in figures.items() if not re.search(r"_(se|sd)$|_at_\d+", key)}
        log.info("%s: %s", name, ", ".join(f"{key} {value:.4g}" for key, value in shown.items()))
    (directory.path / "result.json").write_text(json.dumps(result, indent=2) + "\n")
    show(result)
    print(f"result: {directory.path / 'result.json'}")
    return {"result": result}


class _Bench:
    """One engine and one learner; the next student of the same architecture takes their place by its weights alone."""

    def __init__(self, config: EvaluateConfig, roles: Roles) -> None:
        self._config, self._roles = config, roles
        self._seated: tuple[Path, Engines, Learner] | None = None

    async def seat(self, path: Path) -> tuple[Engines, Learner]:
        """Engine and learner with the weights at `path`."""
        if self._seated is not None and self._seated[0] == path:
            return self._seated[1:]
        if self._seated is not None and same_architecture(self._seated[0], path):
            _, engine, learner = self._seated
            await engine.load(path)
            await learner.load(path)
        else:
            if self._seated is not None:
                await self._roles.dismiss(*self._seated[1:])
            engine, learner = await self._host(path)
        self._seated = path, engine, learner
        return engine, learner

    async def learner(self, path: Path) -> Learner:
        """Whatever learner there is, else one with the weights at `path`."""
        return (self._seated or (path, *await self.seat(path)))[2]

    async def _host(self, path: Path) -> tuple[Engines, Learner]:
        model = as_model(self._config, str(path))
        student = StudentConfig(**model.model_dump())
        learner = LearnerConfig(backend="single", **self._config.learner.model_dump())
        hosted: list[Any] = await together(
            [
                self._roles.engines(model, self._config.rollout),
                self._roles.learner(student, learner, {}, teacher=self._config.teacher),
            ]
        )
        return hosted[0], hosted[1]


def _with_curve(figures: dict[str, float]) -> dict[str, Any]:
    """The exposure bias at each length as one curve, length to percent."""
    curve = {key.rpartition("_")[2]: value for key, value in figures.items() if "_at_" in key}
    rest = {key: value for key, value in figures.items() if "_at_" not in key}
    return rest | ({"exposure_bias_curve": curve} if curve else {})


def _training_facts(path: Path) -> dict[str, Any]:
    """From the run that trained a model: which engines, tokens written, syncs proved."""
    file = path.parent / "summary.json"
    if not file.is_file():
        return {}
    summary = json.loads(file.read_text())
    kept = ("stage", "steps", "seconds", "engine", "learner", "teacher", "syncs_proved", "best", "stopped_improving")
    return {"run": str(path.parent), "training": {key: summary[key] for key in kept if key in summary}}
