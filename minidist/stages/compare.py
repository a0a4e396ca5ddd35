"""One student through a list of objectives: the processes stay, the learner in them is made anew for each cell."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from minidist.cluster.cluster import Cluster
from minidist.concurrency import together
from minidist.config import CompareConfig, DistillConfig
from minidist.config.learner import LearnerConfig
from minidist.config.models import ModelConfig, StudentConfig
from minidist.config.rollout import RolloutConfig
from minidist.config.teacher import TeacherConfig
from minidist.errors import AlarmError, DivergedError
from minidist.evaluation.examiner import Examiner
from minidist.evaluation.picture import draw_comparison
from minidist.evaluation.records import BEFORE, TEACHER, Records, failures, over_runs
from minidist.evaluation.table import markdown, show
from minidist.learners.ranks import LearnerRanks
from minidist.preflight.compare import ComparePlan, plan_compare
from minidist.preflight.plan import Plan
from minidist.protocols import Learner
from minidist.roles.host import Roles
from minidist.roles.make import make_engine, make_learner
from minidist.roles.transfer import ObjectStoreTransfer
from minidist.rollout.pool import Engines
from minidist.run.canaries import tolerance
from minidist.run.directory import RunDirectory
from minidist.run.tracking import log, start_log
from minidist.stages.distill import distill
from minidist.teachers.pool import Teachers
from minidist.types import MAIN


async def compare(config: CompareConfig) -> dict[str, Any]:
    """Run what is not recorded yet, seed by seed, and show all of it as table.md and compare.png."""
    plan, directory = plan_compare(config), RunDirectory(config)
    directory.share()
    start_log(directory.path)
    for line in plan.lines:
        log.info("%s", line)
    records = Records(directory.path / "compare.json")
    order = [TEACHER, BEFORE, *config.cells]
    waiting = [(name, seed) for seed in config.seeds for name in config.cells if not _recorded(config, records, name, seed)]
    log.info("%d of %d runs are to be done", len(waiting), len(config.cells) * len(config.seeds))
    started = time.time()
    if waiting or records.find(BEFORE) is None:
        async with Cluster(config.cluster, directory.path / "logs", ("rollout", "teacher", "learner")) as cluster:
            bench = Bench(cluster, config, plan)
            for record in await bench.start() if records.find(BEFORE) is None else []:
                records.add(record, order)
            for name, seed in waiting:
                records.add(await bench.run(name, seed), order)
    show_records(records, [*order], directory.path)
    summary = {"stage": "compare", "runs": len(waiting), "seconds": round(time.time() - started, 1)}
    directory.finish(summary)
    return summary


def show_records(records: Records, order: list[str], path: Path) -> None:
    """The table, printed and as table.md, and the picture."""
    result, failed = over_runs(records.rows, order), failures(records.rows, order)
    show(result)
    (path / "table.md").write_text(markdown(result) + "".join(f"\n{sentence}\n" for sentence in failed))
    draw_comparison(records.rows, order, path / "compare.png")
    for sentence in failed:
        print(sentence)
    print(f"records, table and picture: {path}/compare.json, table.md, compare.png")


def settings(config: DistillConfig) -> dict[str, Any]:
    """What a record says of its cell."""
    kept = config.model_dump(mode="json", include={"method", "objective", "prefix", "streams"})
    return kept | {"teacher_mix": config.teacher_mix, "lr": config.learner.optimizer.lr}


def _recorded(config: CompareConfig, records: Records, name: str, seed: int) -> bool:
    cell, record = config.cell(name, seed), records.find(name, seed)
    return record is not None and record["settings"] == settings(cell) and not cell.run.overwrite


class Bench:
    """Engines, teachers and learner processes, which every cell finds warm. They start with the first that is asked for."""

    def __init__(self, cluster: Cluster, config: CompareConfig, plan: ComparePlan) -> None:
        self._cluster, self._config, self._plan = cluster, config, plan
        first = config.first
        self.shared = Roles(cluster, first, plan.shared)
        self._mixing = any(config.cell(name, config.seeds[0]).takes_turns for name in config.cells)
        dtypes = (first.student.dtype, first.teacher.dtype)
        self._tolerance = tolerance(first.canaries.logprob_tolerance_nats, dtypes, exact=1e-3, rounded=0.05)
        self._sync = tolerance(first.canaries.sync_tolerance_nats, dtypes, exact=5e-3, rounded=0.5)
        self._examiner: Examiner | None = None
        self._starting = asyncio.Lock()
        self.learner: Learner | None = None
        self.lockstep = False

    async def start(self) -> list[dict[str, Any]]:
        """Records of the student as it is before, and of the teacher."""
        first = self._config.first
        await self._learn(first, self._plan.shared)
        before = await self._examine(first)
        assert self._examiner is not None
        taught = await self._examiner.examine_teacher()
        return [{"objective": TEACHER, "seed": None, **_plain(taught)}, {"objective": BEFORE, "seed": None, **before}]

    async def run(self, name: str, seed: int) -> dict[str, Any]:
        """Train a cell, or go on with it, and measure it: its record."""
        config = self._config.cell(name, seed)
        directory, plan = RunDirectory(config), self._plan.cells[name]
        record = {"objective": name, "seed": seed, "settings": settings(config)}
        log.info("cell %s, seed %d", name, seed)
        try:
            if directory.finished():  # and was stopped before it was measured
                await (await self._learn(config, plan)).load(directory.final)
            else:
                await self._train(config, plan, directory)
        except (DivergedError, AlarmError) as error:
            log.warning("cell %s, seed %d failed: %s", name, seed, error)
            return record | {"failed": str(error)}
        summary = directory.summary or {}
        figures = await self._examine(config)
        shown = ", ".join(f"{key} {value:.4g}" for key, value in figures.items() if not key.endswith(("_se", "_sd")))
        log.info("cell %s, seed %d: %s", name, seed, shown)
        done = {"steps": summary["steps"], "optimizer_steps": summary["learner"]["optimizer_steps"]}
        return record | figures | {"seconds": _seconds(directory.path)} | done

    async def hosts(self) -> tuple[Engines, Teachers]:
        """Engines and teachers: started by the first who asks."""
        async with self._starting:
            if self._examiner is None:
                await self._start_hosts()
        return self.engines, self.teachers

    async def _start_hosts(self) -> None:
        first = self._config.first
        hosted: list[Any] = await together(
            [
                self.shared.engines(first.student, first.rollout, teacher=first.teacher if self.lockstep else None),
                self.shared.teachers(first.teacher, mixing=self._mixing),
            ]
        )
        self.engines, self.teachers = hosted
        self._examiner = Examiner(
            self._plan.test,
            self.teachers,
            max_new_tokens=self._plan.max_new_tokens,
            seeds=self._config.evaluation.seeds,
            graded=self._config.evaluation.test.task is not None,
            tolerance_nats=self._tolerance,
        )

    async def _train(self, config: DistillConfig, plan: Plan, directory: RunDirectory) -> None:
        """As the stage distill does, with roles that are warm."""
        checkpoint, started = directory.start(), time.time()
        if checkpoint is not None:
            log.info("going on from %s", checkpoint.path)
        summary = await distill(config, plan, directory, WarmRoles(self._cluster, config, plan, self), checkpoint)
        for counted in ("tokens_written", "requests_aborted"):  # since the engines started, over all cells
            summary.get("engine", {}).pop(counted, None)
        directory.finish({"stage": config.stage, "seconds": round(time.time() - started, 1), **summary})

    async def _learn(self, config: DistillConfig, plan: Plan) -> Learner:
        """The learner of a cell, its student as it starts. Engines and teachers start beside the first."""
        objectives = {MAIN: config.objective.model_dump()}
        roles = WarmRoles(self._cluster, config, plan, self)
        learning = roles.learner(config.student, config.learner, objectives, teacher=config.teacher)
        started: list[Any] = await together([learning, self.hosts()])
        return started[0]

    async def _examine(self, config: DistillConfig) -> dict[str, float]:
        """Figures of the student that the learner holds."""
        await self.hosts()
        assert self._examiner is not None and self.learner is not None
        await ObjectStoreTransfer(self._sync).publish(self.learner, self.engines.members)
        return _plain(await self._examiner.examine(self.engines, self.learner))


class WarmRoles(Roles):
    """The roles of one cell: engines and teachers as they are, the learner made anew in its processes."""

    def __init__(self, cluster: Cluster, config: DistillConfig, plan: Plan, bench: Bench) -> None:
        super().__init__(cluster, config, plan)
        self._bench, self._teacher_config = bench, config.teacher

    async def engines(self, model: ModelConfig, rollout: RolloutConfig, *, teacher: TeacherConfig | None = None) -> Engines:
        """The warm ones. Those in transformers hold a teacher when a cell mixes: they too are made anew then."""
        bench = self._bench
        engines, _ = await bench.hosts()
        if (teacher is not None) != bench.lockstep:
            arguments = bench.shared.engine_arguments(model, rollout, teacher)
            anew = await together(self._cluster.restart([member], make_engine, **arguments) for member in engines.members)
            bench.engines = Engines([engine for [engine] in anew])
            bench.lockstep = teacher is not None
        return bench.engines

    async def teachers(self, config: TeacherConfig, *, mixing: bool = False) -> Teachers:
        """The warm ones."""
        return (await self._bench.hosts())[1]

    async def learner(
        self,
        student: StudentConfig,
        config: LearnerConfig,
        objectives: dict[str, dict[str, Any]],
        *,
        teacher: TeacherConfig | None,
    ) -> Learner:
        """With the teacher's head, whether its objective needs it or not: it is measured by it afterwards."""
        learner = await super().learner(student, config, objectives, teacher=teacher or self._teacher_config)
        self._bench.learner = learner
        return learner

    async def _ranks(self, count: int, **arguments: Any) -> list[Learner]:
        if (before := self._bench.learner) is None:
            return await super()._ranks(count, **arguments)
        members = before.members if isinstance(before, LearnerRanks) else [before]
        return await self._cluster.restart(members, make_learner, **arguments)


def _plain(figures: dict[str, float]) -> dict[str, float]:
    """Without the points of curves."""
    return {name: float(value) for name, value in figures.items() if "_at_" not in name}


def _seconds(path: Path) -> float:
    """Of all steps, wherever the run was stopped in between: collecting, updating, publishing; no start, no evaluation."""
    steps = (json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines())
    return round(sum(value for step in steps for name, value in step.items() if name.startswith("time/")), 2)
