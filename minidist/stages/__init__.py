"""The stages a user calls: one row each in STAGES, and the course of a run from its plan to its summary."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

if TYPE_CHECKING:
    from minidist.config import Command
    from minidist.config.cluster import Role
    from minidist.run.checkpoint import Checkpoint
    from minidist.run.directory import RunDirectory

C = TypeVar("C")
P = TypeVar("P")


@dataclass(frozen=True)
class Stage:
    """A stage. Its code is named as `module:function` and imported when it is called, so that the command line starts fast.

    Args:
        verb: the stage runs as `minidist VERB`; stages may share one.
        help: one sentence for `minidist --help`.
        plan: `plan(config)` checks the configuration against files and machine; the plan's `lines` are printed.
        run: `await run(StageRun, Roles)` returns the summary; `await run(config)` where the stage starts its roles itself.
        hosts: the stage has roles (`StageSection.hosted`) of its own; else they are another stage's, or there are none.
        starts_roles: the stage starts its roles itself, where it has work for them.
        publishes: the stage publishes weights to its engines before they write: they may come from an earlier start of the run.
        reruns: a finished run is called again: the stage finds what is left to do, and draws its results again.
        show: `show(summary["result"])` prints the result of a finished run again.
        ending: `ending(summary)` prints more of a run that has just finished.
    """

    verb: str
    help: str
    plan: str
    run: str
    hosts: bool = False
    starts_roles: bool = False
    publishes: bool = False
    reruns: bool = False
    show: str | None = None
    ending: str | None = None

    @property
    def alone(self) -> bool:
        """Whether `run` takes the configuration alone."""
        return not self.hosts or self.starts_roles


@dataclass(frozen=True)
class StageRun(Generic[C, P]):
    """One run of a stage: its configuration and plan, its directory, and the checkpoint from which it resumes."""

    config: C
    plan: P
    directory: "RunDirectory"
    checkpoint: "Checkpoint | None" = None

    @property
    def start(self) -> int:
        """The first step to take."""
        return 0 if self.checkpoint is None else self.checkpoint.step


STAGES: dict[str, Stage] = {
    "sft": Stage(
        "sft",
        "Train a model on answers or plain text, from a checkpoint or from scratch.",
        plan="minidist.preflight.plan:plan_sft",
        run="minidist.stages.sft:sft",
        hosts=True,
    ),
    "distill": Stage(
        "distill",
        "Distil a teacher into a student on the student's own text.",
        plan="minidist.preflight.plan:plan_distill",
        run="minidist.stages.distill:distill",
        hosts=True,
        publishes=True,
        ending="minidist.run.accounting:show",
    ),
    "teach": Stage(
        "teach",
        "Distil a classifier, a regressor or a decoder from a teacher that may learn to teach it.",
        plan="minidist.preflight.lessons:plan_teach",
        run="minidist.stages.teach:teach",
        hosts=True,
    ),
    "evaluate": Stage(
        "evaluate",
        "Measure models against their teacher and gold answers; print a table.",
        plan="minidist.preflight.plan:plan_evaluate",
        run="minidist.stages.evaluate:evaluate",
        hosts=True,
        show="minidist.evaluation.table:show_result",
    ),
    "evaluate_programs": Stage(
        "evaluate",
        "Measure accuracy and cost of programs of several calls; print a table.",
        plan="minidist.preflight.generate:plan_programs",
        run="minidist.stages.evaluate_programs:evaluate_programs",
        hosts=True,
        starts_roles=True,
        reruns=True,
    ),
    "generate": Stage(
        "generate",
        "Answer the rows of a data set, plainly or by a program of several calls, and keep the consistent answers.",
        plan="minidist.preflight.generate:plan_generate",
        run="minidist.stages.generate:generate",
        hosts=True,
        starts_roles=True,
        reruns=True,
    ),
    "score": Stage(
        "score",
        "Write a teacher's scores of given text to disk, for training without the teacher.",
        plan="minidist.preflight.plan:plan_score",
        run="minidist.stages.score:score",
        hosts=True,
    ),
    "score_table": Stage(
        "score",
        "Write each row of a data set with its answers' log-probabilities under a teacher.",
        plan="minidist.preflight.score_table:plan_score_table",
        run="minidist.stages.score_table:score_table",
        hosts=True,
        starts_roles=True,
        reruns=True,
    ),
    "compare": Stage(
        "compare",
        "Train one student with each of a list of objectives, all else equal; write records, a table and a picture.",
        plan="minidist.preflight.compare:plan_compare",
        run="minidist.stages.compare:compare",
        reruns=True,
    ),
    "compare_lessons": Stage(
        "compare",
        "Teach one task with each of a list of methods; write records, a table and pictures.",
        plan="minidist.preflight.lessons:plan_lessons",
        run="minidist.stages.compare_lessons:compare_lessons",
        reruns=True,
    ),
    "toy": Stage(
        "compare",
        "Fit free distributions to fixed teachers with each divergence.",
        plan="minidist.preflight.compare:plan_toy",
        run="minidist.stages.toy:toy",
        reruns=True,
    ),
}


def verbs() -> dict[str, str]:
    """Each verb of the command line with its help; stages may share one."""
    return {name: stage.help for name, stage in STAGES.items() if name == stage.verb}


def code(reference: str) -> Callable[..., Any]:
    """The function that `module:function` names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


def roles_of(config: "Command") -> "tuple[Role, ...]":
    """The roles for which a configuration needs actors; none where they are those of another stage."""
    return getattr(config, "hosted", ()) if STAGES[config.stage].hosts else ()


async def run_stage(config: "Command") -> dict[str, Any]:
    """Run a stage from start to end and return its summary."""
    from minidist.run.mirror import mirror_of

    stage, mirror = STAGES[config.stage], mirror_of(config)
    mirror.pull(overwrite=config.run.overwrite)
    summary = await (code(stage.run)(config) if stage.alone else _run_with_roles(stage, config))
    mirror.push(last=True)
    return summary


async def _run_with_roles(stage: Stage, config: Any) -> dict[str, Any]:
    from minidist.run.directory import RunDirectory
    from minidist.run.garbage import no_collection
    from minidist.run.tracking import log, start_log

    directory = RunDirectory(config)
    with no_collection():
        plan = code(stage.plan)(config)  # before anything heavy is imported or started
    checkpoint = directory.start()
    start_log(directory.path)
    for line in plan.lines:
        log.info("%s", line)
    if checkpoint is not None:
        log.info("resuming from %s", checkpoint.path)

    from minidist.stages.recovery import Recovery

    written = config
    if config.stage in ("sft", "distill") and config.student.init is not None:
        config = code("minidist.stages.initial:with_initial")(config, directory.path / "initial")
    result = await Recovery(stage, config, plan, directory, checkpoint).run()
    summary = code("minidist.publishing.ending:finish")(directory, written, result)
    log.info("%s finished in %.0f s: %s", config.stage, summary["seconds"], directory.path)
    if stage.ending is not None:
        code(stage.ending)(summary)
    return summary
