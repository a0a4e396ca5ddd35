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
from minidist.evaluation.records import BEFORE, TEACHER, Record
from minidist.preflight.compare import ComparePlan, plan_compare
from minidist.preflight.plan import DistillPlan
from minidist.protocols import Learner
from minidist.publishing.ending import finish
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
from minidist.stages.ledger import Case, Ledger, settings
from minidist.types import MAIN, Sampling

TEST, VALIDATION = "test", "validation"
"""Prompts that a student is measured on: those of evaluation.test, or those that a setting is chosen on."""


async def compare(config: CompareConfig) -> dict[str, Any]:
    """Run the trials and the cells that have no record yet; write all records as compare.json, the pages table.md and
    orders.json, and compare.png; with `choose`, trials.json too."""
    plan, directory = plan_compare(config), RunDirectory(config)
    directory.share()
    start_log(directory.path)
    for line in plan.lines:
        log.info("%s", line)
    ledger, trained = Ledger(config, directory.path), 0
    trials = ledger.waiting_trials()
    log.info("%d of %d runs are left", len(trials) + (0 if trials else len(ledger.waiting())), ledger.count)
    if trials or ledger.waiting() or not ledger.has_baselines:
        async with Cluster(config.cluster, directory.path / "logs", at_once=config.roles_at_once) as cluster:
            cells = Cells(warm_roles(cluster, config, plan), config, plan)
            for record in [] if ledger.has_baselines else await cells.baselines():
                ledger.add(record)
            for case in trials:
                ledger.add_trial(case, (await cells.run(case, VALIDATION))[0])
            for case in (waiting := ledger.waiting()):
                ledger.add(*await cells.run(case, TEST))
            trained = len(trials) + len(waiting)
    ledger.show()
    return directory.finish({"runs": trained})


def warm_roles(cluster: Cluster, config: CompareConfig, plan: ComparePlan) -> WarmRoles:
    """Roles for every cell: teachers that also take turns where one cell mixes."""
    mixing = any(config.cell(name, config.seeds[0], value).takes_turns for name in config.cells for value in config.values)
    return WarmRoles(Roles(cluster, config.first, plan.shared, mixing=mixing), teacher=config.first.teacher)


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
        self._coarse = self._first.canaries.coarse(*dtypes)
        self._examiners: dict[str, Examiner] = {}
        self._done: set[Path] = set()  # trained by this object: not again, even where run.overwrite is set

    async def baselines(self) -> list[dict[str, Any]]:
        """Records of the teacher, and of the student before training."""
        learner, (engines, examiner) = await both(self._learner(self._first, self._plan.shared), self._measuring(TEST))
        before = to_record(await self._examine(learner, engines, examiner))
        teacher = to_record(await examiner.examine_teacher())
        return [{"objective": TEACHER, "seed": None, **teacher}, {"objective": BEFORE, "seed": None, **before}]

    async def run(self, case: Case, held_out: str) -> tuple[Record, Figures]:
        """Train a cell, resume it, or take it as it is, and measure it on prompts of the plan: its record, and its figures."""
        config = self._config.cell(case.name, case.seed, case.value)
        run = StageRun(config, self._plan.cells[case.name, case.value], RunDirectory(config))
        record = {"objective": case.name, "seed": case.seed, "settings": settings(self._config, case)}
        log.info("cell %s", case)
        done = run.directory.path in self._done or run.directory.finished()
        try:
            learner = await (self._trained(run) if done else self._train(run))
        except (DivergedError, AlarmError) as error:
            log.warning("cell %s failed: %s", case, error)
            return record | {"failed": str(error)}, {}
        self._done.add(run.directory.path)
        summary = run.directory.summary or {}
        figures = await self._examine(learner, *await self._measuring(held_out))
        log.info("cell %s, %s prompts: %s", case, held_out, one_line(figures))
        took = cost(run.directory.path)
        counts = {"steps": summary["steps"], "optimizer_steps": summary["learner"]["optimizer_steps"]}
        return record | to_record(figures) | took | counts, figures

    async def _trained(self, run: DistillRun) -> Learner:
        """A learner with the final weights of a cell that was stopped before it was measured."""
        learner, _ = await both(self._learner(run.config, run.plan), self._measuring(TEST))
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
        finish(run.directory, run.config, summary)
        return self.roles.warm_learner

    async def _learner(self, config: DistillConfig, plan: DistillPlan) -> Learner:
        """The learner of a cell before its first step."""
        setup = LearnerSetup(config.student, config.learner, {MAIN: config.objective}, config.teacher)
        return await self.roles.serve(config, plan).learner(setup)

    async def _measuring(self, held_out: str) -> tuple[Engines, Examiner]:
        """The warm engines, and the examiner on these prompts with the warm teachers."""
        first = self._first
        starting = self.roles.warm_engines(first.student, first.rollout)
        engines, teachers = await both(starting, self.roles.teachers(first.teacher))
        if held_out not in self._examiners:
            evaluation, sampling = self._config.evaluation, Sampling(max_new_tokens=self._plan.max_new_tokens)
            choose, plan = self._config.choose, self._plan
            source = evaluation.test if held_out == TEST or choose is None else choose.validation
            asked = HeldOut(plan.test if held_out == TEST else plan.validation, source.task is not None)
            made = Examiner(asked, teachers, sampling, seeds=evaluation.seeds, tolerance_nats=self._tolerance)
            self._examiners[held_out] = made
        return engines, self._examiners[held_out]

    async def _examine(self, learner: Learner, engines: Engines, examiner: Examiner) -> Figures:
        """Figures of the student that the learner holds."""
        await ObjectStoreTransfer(self._transfer_tolerance, coarse=self._coarse).publish(learner, engines.members)
        return await examiner.examine(engines, learner)


def cost(path: Path) -> dict[str, Any]:
    """`seconds` of all steps of a run, also those before a stop: collecting, updating and publishing; no start, no evaluation.
    `loss_tokens`, the labels that it was trained on, if its metrics have them."""
    file, remedy = path / "metrics.jsonl", "set run.overwrite=true to train the cell again"
    try:
        lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise RunDirectoryError(f"{file} cannot be read ({error}); {remedy}") from None
    steps = shaped(lines, list[dict[str, Any]], f"{file} is of another shape", remedy)
    times = [value for step in steps for value in _times(step)]
    seconds = round(sum(shaped(times, list[float], f"{file} has times that are no numbers", remedy)), 2)
    labels = [step["learner/loss_tokens"] for step in steps if "learner/loss_tokens" in step]
    counted = shaped(labels, list[float], f"{file} has loss tokens that are no numbers", remedy)
    return {"seconds": seconds} | ({"loss_tokens": int(sum(counted))} if counted else {})


def _times(step: dict[str, Any]) -> list[Any]:
    """The seconds of a step; of its phases, which did not overlap, where an earlier version recorded them alone."""
    whole = "speed/seconds_per_step"
    return [step[whole]] if whole in step else [value for name, value in step.items() if name.startswith("time/")]
