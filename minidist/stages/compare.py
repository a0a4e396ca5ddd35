"""One student trained with each of a list of objectives: processes stay, the learner in them is made anew for each cell."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from minidist.cluster.cluster import Cluster
from minidist.concurrency import both
from minidist.config import CompareConfig, DistillConfig
from minidist.errors import AlarmError, DivergedError, RunDirectoryError
from minidist.evaluation.examiner import Examiner, HeldOut
from minidist.evaluation.figures import Figures, one_line, to_record
from minidist.evaluation.picture import draw_comparison
from minidist.evaluation.records import BEFORE, TEACHER, Records, failures, over_runs
from minidist.evaluation.table import markdown, show
from minidist.preflight.compare import ComparePlan, plan_compare
from minidist.preflight.plan import DistillPlan
from minidist.protocols import Learner
from minidist.roles.host import Roles
from minidist.roles.make import LearnerSetup
from minidist.roles.transfer import ObjectStoreTransfer
from minidist.roles.warm import WarmRoles
from minidist.rollout.pool import Engines
from minidist.run.directory import RunDirectory
from minidist.run.files import shaped
from minidist.run.tracking import log, start_log
from minidist.stages import StageRun
from minidist.stages.distill import DistillRun, distill
from minidist.types import MAIN, Sampling


async def compare(config: CompareConfig) -> dict[str, Any]:
    """Run the cells that have no record yet, seed by seed, and write all records as compare.json, table.md and compare.png."""
    plan, directory = plan_compare(config), RunDirectory(config)
    directory.share()
    start_log(directory.path)
    for line in plan.lines:
        log.info("%s", line)
    records = Records(directory.path / "compare.json")
    order = [TEACHER, BEFORE, *config.cells]
    waiting = [(name, seed) for seed in config.seeds for name in config.cells if not _recorded(config, records, name, seed)]
    log.info("%d of %d runs are left", len(waiting), len(config.cells) * len(config.seeds))
    if waiting or records.find(BEFORE) is None:
        async with Cluster(config.cluster, directory.path / "logs", at_once=config.roles_at_once) as cluster:
            cells = Cells(warm_roles(cluster, config, plan), config, plan)
            for record in await cells.baselines() if records.find(BEFORE) is None else []:
                records.add(record, order)
            for name, seed in waiting:
                records.add(await cells.run(name, seed), order)
    show_records(records, order, directory.path)
    return directory.finish({"runs": len(waiting)})


def warm_roles(cluster: Cluster, config: CompareConfig, plan: ComparePlan) -> WarmRoles:
    """Roles for every cell: teachers that also take turns where one cell mixes."""
    mixing = any(config.cell(name, config.seeds[0]).takes_turns for name in config.cells)
    return WarmRoles(Roles(cluster, config.first, plan.shared), teacher=config.first.teacher, mixing=mixing)


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
    """The settings of a cell in its record."""
    kept = config.model_dump(mode="json", include={"method", "objective", "prefix", "streams"})
    kept |= {"teacher_mix": config.teacher_mix, "lr": config.learner.optimizer.lr}
    overlap = config.loop.model_dump(mode="json", exclude={"stream"})
    return kept | ({"loop": overlap} if config.loop.max_staleness else {})


def _recorded(config: CompareConfig, records: Records, name: str, seed: int) -> bool:
    cell, record = config.cell(name, seed), records.find(name, seed)
    if record is None or cell.run.overwrite:
        return False
    return record.get("settings") == settings(cell) and record.get("steps", cell.run.steps) >= cell.run.steps


class Cells:
    """Trains and measures the cells of a comparison, one after another, in processes that stay warm."""

    def __init__(self, roles: WarmRoles, config: CompareConfig, plan: ComparePlan) -> None:
        self.roles = roles
        self._config = config
        self._plan = plan
        self._first = config.first
        dtypes = self._first.dtypes.values()
        self._tolerance = self._first.canaries.logprob_tolerance(*dtypes)
        self._transfer_tolerance = self._first.canaries.sync_tolerance(*dtypes)
        self._examiner: Examiner | None = None

    async def baselines(self) -> list[dict[str, Any]]:
        """Records of the teacher, and of the student before training."""
        learner, (engines, examiner) = await both(self._learner(self._first, self._plan.shared), self._measuring())
        before = to_record(await self._examine(learner, engines, examiner))
        teacher = to_record(await examiner.examine_teacher())
        return [{"objective": TEACHER, "seed": None, **teacher}, {"objective": BEFORE, "seed": None, **before}]

    async def run(self, name: str, seed: int) -> dict[str, Any]:
        """Train a cell, or resume it, and measure it: its record."""
        config = self._config.cell(name, seed)
        run = StageRun(config, self._plan.cells[name], RunDirectory(config))
        record = {"objective": name, "seed": seed, "settings": settings(config)}
        log.info("cell %s, seed %d", name, seed)
        try:
            learner = await (self._trained(run) if run.directory.finished() else self._train(run))
        except (DivergedError, AlarmError) as error:
            log.warning("cell %s, seed %d failed: %s", name, seed, error)
            return record | {"failed": str(error)}
        summary = run.directory.summary or {}
        figures = await self._examine(learner, *await self._measuring())
        log.info("cell %s, seed %d: %s", name, seed, one_line(figures))
        done = {"steps": summary["steps"], "optimizer_steps": summary["learner"]["optimizer_steps"]}
        return record | to_record(figures) | {"seconds": _seconds(run.directory.path)} | done

    async def _trained(self, run: DistillRun) -> Learner:
        """A learner with the final weights of a cell that was stopped before it was measured."""
        learner, _ = await both(self._learner(run.config, run.plan), self._measuring())
        await learner.load(run.directory.final)
        return learner

    async def _train(self, run: DistillRun) -> Learner:
        """Run the stage distill with warm roles."""
        checkpoint = run.directory.start()
        if checkpoint is not None:
            log.info("resuming from %s", checkpoint.path)
        summary = await distill(replace(run, checkpoint=checkpoint), self.roles.serve(run.config, run.plan))
        for counted in ("tokens_written", "requests_aborted"):  # since the engines started, over all cells
            summary.get("engine", {}).pop(counted, None)
        run.directory.finish(summary)
        return self.roles.warm_learner

    async def _learner(self, config: DistillConfig, plan: DistillPlan) -> Learner:
        """The learner of a cell before its first step."""
        setup = LearnerSetup(config.student, config.learner, {MAIN: config.objective}, config.teacher)
        return await self.roles.serve(config, plan).learner(setup)

    async def _measuring(self) -> tuple[Engines, Examiner]:
        """The warm engines, and the examiner with the warm teachers."""
        first = self._first
        starting = self.roles.warm_engines(first.student, first.rollout)
        engines, teachers = await both(starting, self.roles.teachers(first.teacher))
        if self._examiner is None:
            evaluation, sampling = self._config.evaluation, Sampling(max_new_tokens=self._plan.max_new_tokens)
            held_out, seeds = HeldOut(self._plan.test, evaluation.test.task is not None), evaluation.seeds
            self._examiner = Examiner(held_out, teachers, sampling, seeds=seeds, tolerance_nats=self._tolerance)
        return engines, self._examiner

    async def _examine(self, learner: Learner, engines: Engines, examiner: Examiner) -> Figures:
        """Figures of the student that the learner holds."""
        await ObjectStoreTransfer(self._transfer_tolerance).publish(learner, engines.members)
        return await examiner.examine(engines, learner)


def _seconds(path: Path) -> float:
    """Seconds of all steps, also those before a stop: collecting, updating and publishing; no start, no evaluation."""
    file, remedy = path / "metrics.jsonl", "set run.overwrite=true to train the cell again"
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise RunDirectoryError(f"{file} cannot be read ({error}); {remedy}") from None
    steps = shaped(lines, list[dict[str, Any]], f"{file} is of another shape", remedy)
    times = [value for step in steps for value in _times(step)]
    return round(sum(shaped(times, list[float], f"{file} has times that are no numbers", remedy)), 2)


def _times(step: dict[str, Any]) -> list[Any]:
    """The seconds of a step; of its phases, which did not overlap, where an earlier version recorded them alone."""
    whole = "speed/seconds_per_step"
    return [step[whole]] if whole in step else [value for name, value in step.items() if name.startswith("time/")]
