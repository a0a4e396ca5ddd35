"""Evaluation of a list of models against one teacher, as one table."""

from pathlib import Path
from typing import Any

from minidist.concurrency import both, nothing, one_by_one
from minidist.config import EvaluateConfig
from minidist.config.learner import LearnerConfig
from minidist.config.models import StudentConfig
from minidist.evaluation.examiner import Examiner, HeldOut
from minidist.evaluation.figures import curves, one_line, to_record
from minidist.evaluation.table import show_result
from minidist.models.files import resolve
from minidist.preflight.plan import EvaluatePlan, as_model
from minidist.protocols import Learner
from minidist.roles.host import Roles
from minidist.roles.make import LearnerSetup
from minidist.roles.warm import WarmRoles
from minidist.rollout.pool import Engines
from minidist.run.files import read_record, write_json
from minidist.run.tracking import log
from minidist.stages import StageRun
from minidist.types import Sampling


async def evaluate(run: StageRun[EvaluateConfig, EvaluatePlan], roles: Roles) -> dict[str, Any]:
    """Measure each model, write result.json, print the table."""
    config, directory = run.config, run.directory
    teacher_path = resolve(config.teacher.model or "", "teacher.model").resolve()
    paths = {name: resolve(model, f"models.{name}").resolve() for name, model in config.models.items()}
    # A teacher in a context of its own is another distribution than its weights without that context.
    itself = None if config.teacher.context is not None else teacher_path
    students = [path for path in paths.values() if path != itself]
    models = Models(config, WarmRoles(roles))
    # The teacher and the first student start side by side, since most of a start is imports; where they share devices the
    # student comes first, and its engine before all.
    student, teaching = models.load(students[0]) if students else nothing(), roles.teachers(config.teacher)
    if config.cluster.shares_devices:
        _, teacher = await one_by_one(student, teaching)
    else:
        _, teacher = await both(student, teaching)
    held_out = HeldOut(run.plan.prompts, config.data.test.task is not None, run.plan.questions)
    rollout, tolerance = config.rollout, config.canaries.logprob_tolerance(config.dtype)
    fields = rollout.model_dump(include={"max_new_tokens", "temperature", "top_p", "no_repeat_ngram_size"})
    sampling = Sampling(**fields)
    seeds = config.seeds or [config.run.seed]
    examiner = Examiner(held_out, teacher, sampling, seeds=seeds, tolerance_nats=tolerance)
    result: dict[str, Any] = {}
    for name, path in paths.items():
        if path == itself:
            figures = await examiner.examine_teacher(await models.any_learner(path) if run.plan.questions else None)
        else:
            figures = await examiner.examine(*await models.load(path))
        result[name] = to_record(figures) | curves(figures) | _training_facts(Path(config.models[name]))
        log.info("%s: %s", name, one_line(figures))
    write_json(directory.path / "result.json", result)
    show_result(result)
    print(f"result: {directory.path / 'result.json'}")
    return {"result": result}


class Models:
    """The models of the table, one after another, in engines and a learner that stay warm."""

    def __init__(self, config: EvaluateConfig, roles: WarmRoles) -> None:
        self._config = config
        self._roles = roles

    async def load(self, path: Path) -> tuple[Engines, Learner]:
        """Engines and learner with the weights at `path`."""
        return await self._roles.student(path, self._start)

    async def any_learner(self, path: Path) -> Learner:
        """The warm learner, whichever student it holds; else a learner with the weights at `path`."""
        return (await self.load(self._roles.path or path))[1]

    async def _start(self, path: Path) -> tuple[Engines, Learner]:
        config, model = self._config, as_model(self._config, str(path))
        student = StudentConfig(**model.model_dump())
        learner = LearnerConfig(backend="single", **config.learner.model_dump())
        setup = LearnerSetup(student, learner, {}, config.teacher)
        return await both(self._roles.engines(model, config.rollout), self._roles.learner(setup))


def _training_facts(path: Path) -> dict[str, Any]:
    """From the run that trained a model: which engines, tokens written, syncs proved."""
    file = path.parent / "summary.json"
    if not file.is_file():
        return {}
    summary = read_record(file, dict[str, Any], "remove it; it only adds facts of the training to the result")
    kept = ("stage", "steps", "seconds", "engine", "learner", "teacher", "syncs_proved", "best", "stopped_improving")
    return {"run": str(path.parent), "training": {key: summary[key] for key in kept if key in summary}}
