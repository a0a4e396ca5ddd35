"""The stages a user calls: one row each in STAGES, and the course of a run from its plan to its summary."""

import importlib
import time
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
        run: `await run(StageRun, Roles)` returns the summary; `await run(config)` where `roles` is None.
        roles: the roles for which a configuration needs actors. None: the stage starts its roles itself, if it has any.
        reruns: a finished run is called again: the stage finds what is left to do, and draws its results again.
        show: `show(summary["result"])` prints the result of a finished run again.
    """

    verb: str
    help: str
    plan: str
    run: str
    roles: "Callable[[Any], tuple[Role, ...]] | None" = None
    reruns: bool = False
    show: str | None = None


@dataclass(frozen=True)
class StageRun(Generic[C, P]):
    """One run of a stage: its configuration and plan, its directory, and the checkpoint from which it resumes."""

    config: C
    plan: P
    directory: "RunDirectory"
    checkpoint: "Checkpoint | None" = None


def _distill_roles(config: Any) -> "tuple[Role, ...]":
    """Teacher scores read from a cache need no actor."""
    asked: dict[Role, bool] = {
        "rollout": config.asks_engines,
        "teacher": config.asks_actors and config.teacher.live,
        "learner": True,
    }
    return tuple(role for role, wanted in asked.items() if wanted)


STAGES: dict[str, Stage] = {
    "sft": Stage(
        "sft",
        "Train a model on answers or plain text, from a checkpoint or from scratch.",
        plan="minidist.preflight.plan:plan_sft",
        run="minidist.stages.sft:sft",
        roles=lambda config: ("learner",),
    ),
    "distill": Stage(
        "distill",
        "Distil a teacher into a student on the student's own text.",
        plan="minidist.preflight.plan:plan_distill",
        run="minidist.stages.distill:distill",
        roles=_distill_roles,
    ),
    "evaluate": Stage(
        "evaluate",
        "Measure models against their teacher and gold answers; print a table.",
        plan="minidist.preflight.plan:plan_evaluate",
        run="minidist.stages.evaluate:evaluate",
        roles=lambda config: ("rollout", "teacher", "learner"),
        show="minidist.evaluation.table:show_result",
    ),
    "score": Stage(
        "score",
        "Write a teacher's scores of given text to disk, for training without the teacher.",
        plan="minidist.preflight.plan:plan_score",
        run="minidist.stages.score:score",
        roles=lambda config: ("teacher",),
    ),
    "compare": Stage(
        "compare",
        "Train one student with each of a list of objectives, all else equal; write records, a table and a picture.",
        plan="minidist.preflight.compare:plan_compare",
        run="minidist.stages.compare:compare",
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
    found: dict[str, str] = {}
    for stage in STAGES.values():
        found.setdefault(stage.verb, stage.help)
    return found


def code(reference: str) -> Callable[..., Any]:
    """The function that `module:function` names."""
    module, _, name = reference.partition(":")
    return getattr(importlib.import_module(module), name)


async def run_stage(config: "Command") -> dict[str, Any]:
    """Run a stage from start to end and return its summary."""
    stage = STAGES[config.stage]
    if stage.roles is None:
        return await code(stage.run)(config)
    return await _run_with_roles(stage, config, stage.roles(config))


async def _run_with_roles(stage: Stage, config: Any, roles: "tuple[Role, ...]") -> dict[str, Any]:
    from minidist.run.directory import RunDirectory
    from minidist.run.tracking import log, start_log

    directory = RunDirectory(config)
    plan = code(stage.plan)(config)  # before anything heavy is imported or started
    checkpoint = directory.start()
    start_log(directory.path)
    for line in plan.lines:
        log.info("%s", line)
    if checkpoint is not None:
        log.info("resuming from %s", checkpoint.path)

    from minidist.cluster.cluster import Cluster
    from minidist.roles.host import Roles

    run, started = code(stage.run), time.time()
    async with Cluster(config.cluster, directory.path / "logs", roles) as cluster:
        summary = await run(StageRun(config, plan, directory, checkpoint), Roles(cluster, config, plan))
    summary = {"stage": config.stage, "seconds": round(time.time() - started, 1), **summary}
    directory.finish(summary)
    log.info("%s finished in %.0f s: %s", config.stage, summary["seconds"], directory.path)
    return summary
