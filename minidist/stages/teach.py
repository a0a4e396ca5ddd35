"""Learning to teach: exercises through a lesson, measured on held-out rows, with the influence of single rows on request."""

import shutil
from contextlib import closing
from typing import Any

from minidist.config import TeachConfig
from minidist.config.origin import with_origin
from minidist.evaluation.layers import draw_layers
from minidist.evaluation.lessons import LessonCurve, draw_curves, score
from minidist.experience.exercises import TaskRows
from minidist.loop import Run, train
from minidist.preflight.lessons import TeachPlan
from minidist.roles.host import Roles
from minidist.roles.lessons import lesson_learner
from minidist.run.files import write_json
from minidist.run.tracking import Clock, Recorder, log
from minidist.stages import StageRun
from minidist.stages.watch import CheckpointWatch, make_recorder
from minidist.teaching.learner import LessonLearner, Whose
from minidist.teaching.trace import Trace
from minidist.types import Exercise, Update

TeachRun = StageRun[TeachConfig, TeachPlan]


async def teach(run: TeachRun, roles: Roles) -> dict[str, Any]:
    """Teach, measure, write final/."""
    config = run.config
    learner = await lesson_learner(roles.cluster, with_origin(config), run.plan.facts)
    shown = {"student/loss": "loss", "teacher/loss": "teacher", "influence/mean": "influence", "time/update_s": "update s"}
    with closing(make_recorder(run, shown)) as recorder:
        watch = TeachWatch(run, learner, recorder)
        loop = Run(config.run.steps, run.plan.exercises, learner, Clock(), watch, step=run.start)
        if run.checkpoint is not None:
            await watch.resume(run.checkpoint)
        else:
            await watch.examine(-1)
        steps = await train(loop)
        await watch.save_final()
    return {"steps": steps, "model": str(run.directory.final), "learner": await learner.describe(), **watch.summary()}


class TeachWatch(CheckpointWatch[LessonLearner]):
    """Evaluations of student and teacher, the best weights, and the influence of single rows."""

    def __init__(self, run: TeachRun, learner: LessonLearner, recorder: Recorder) -> None:
        super().__init__(run, learner, recorder)
        self._config = run.config
        self._plan = run.plan
        self._tested: dict[str, float] = {}
        self._evaluations: list[tuple[int, dict[str, float]]] = []
        self._best: tuple[float, int, dict[str, float]] | None = None
        self._trace = None if run.config.trace is None else Trace(run.config.trace, run.plan.exercises, run.directory.path)

    async def before_update(self, batch: Exercise) -> None:
        """The influence of the traced rows, on the weights that the step starts from."""
        if self._trace is not None and batch.step % self._trace.every == 0:
            rows = self._trace.exercise(batch.step)
            self._trace.add(batch.step, await self._learner.influence(rows))

    async def after_step(self, step: int, batch: Exercise, update: Update, metrics: dict[str, float]) -> bool:
        if update.influence is not None:
            metrics["influence/mean"] = float(update.influence.mean())
            metrics["influence/negative_frac"] = float((update.influence < 0).mean())
        self._recorder.step(step, metrics)
        every = self._config.evaluation.every
        if every is not None and (step + 1) % every == 0 and step + 1 < self._config.run.steps:
            await self.examine(step)
        if step + 1 == self._config.run.steps:
            await self.examine(step)
        await self.checkpoint(step + 1)
        return False

    async def examine(self, step: int) -> None:
        """Student and teacher on the validation rows; `step` -1 is before training."""
        if self._plan.validation is None or (step < 0 and self._config.evaluation.every is None):
            return
        figures = await self._measure(self._plan.validation, frozen=step < 0)
        self._evaluations.append((step + 1, figures))
        self._recorder.write(step, {f"validation/{name}": value for name, value in figures.items()})
        log.info("after %d steps: %s", step + 1, ", ".join(f"{name} {value:.4g}" for name, value in figures.items()))
        if self._config.evaluation.keep == "best" and step >= 0:
            await self._keep(step + 1, figures)

    async def _keep(self, step: int, figures: dict[str, float]) -> None:
        """Keep the weights where they are the best so far by the task's first metric, with their figures on the test rows."""
        value = figures[f"student/{self._plan.metrics[0]}"]
        if self._best is None or value > self._best[0]:
            self._best = value, step, await self._test()
            await self.save(self._directory.path / "best")

    async def _test(self) -> dict[str, float]:
        return {} if self._plan.test is None else await self._measure(self._plan.test, frozen=True)

    async def _measure(self, rows: TaskRows, *, frozen: bool = False) -> dict[str, float]:
        """Metrics and loss of student and teacher on rows; of a teacher that does not learn only with `frozen`."""
        sides: dict[Whose, Any] = {"student": rows.student}
        if self._config.lesson.teacher_learns or (frozen and self._config.lesson.type in ("frozen", "sequence")):
            sides["teacher"] = rows.teacher
        found = {}
        for whose, read in sides.items():
            judged = await self._learner.judge(whose, read)
            found |= {f"{whose}/{name}": value for name, value in score(self._plan.metrics, judged).items()}
        return found

    def state_dict(self) -> dict[str, Any]:
        trace = None if self._trace is None else self._trace.state_dict()
        state = {"evaluations": self._evaluations, "best": self._best, "trace": trace}
        return state | {"metrics_bytes": self._recorder.position()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._evaluations = [(step, figures) for step, figures in state["evaluations"]]
        best = state["best"]
        self._best = None if best is None else (best[0], best[1], best[2])
        if self._trace is not None:
            self._trace.load_state_dict(state["trace"])

    async def save_final(self) -> None:
        """Write final/, the result on the test rows, and the pictures."""
        best, final = self._directory.path / "best", self._directory.final
        if best.exists():
            shutil.rmtree(final, ignore_errors=True)
            best.rename(final)
        elif self._best is None or not final.exists():
            await self.save(final)
        self._tested = await self._test() if self._best is None else self._best[2]
        if len(self._evaluations) > 1:
            draw_curves([LessonCurve("", self._evaluations)], self._directory.path / "curves.png")
        if self._trace is not None:
            self._trace.draw()
        await self._compare_layers()

    async def _compare_layers(self) -> None:
        """Write layers.json and layers.png, where they are asked for."""
        count, rows = self._config.evaluation.layers, self._plan.validation
        if count is None or rows is None:
            return
        found = await self._learner.layers(rows.student[:count], rows.teacher[:count])
        write_json(self._directory.path / "layers.json", found)
        draw_layers(found, self._directory.path / "layers.png")

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = {"evaluations": [{"step": step, **figures} for step, figures in self._evaluations]}
        if self._best is not None:
            found["best"] = {"step": self._best[1], self._plan.metrics[0]: self._best[0]}
        found["majority"] = self._plan.majority
        last = self._evaluations[-1][1] if self._evaluations else {}
        return found | {"result": {"test": self._tested, "validation": last} if self._tested or last else {}}
