"""The stages a user calls: each plans, hosts its roles, runs, and leaves a summary."""

import time
from typing import Any

from minidist.cluster.cluster import Cluster
from minidist.config import Command, CompareConfig, DistillConfig, ScoreConfig, SftConfig, ToyConfig
from minidist.preflight.plan import make_plan
from minidist.roles.host import Roles, hosted
from minidist.run.directory import RunDirectory
from minidist.run.tracking import log, start_log
from minidist.stages.compare import compare
from minidist.stages.distill import distill
from minidist.stages.evaluate import evaluate
from minidist.stages.score import score
from minidist.stages.sft import sft
from minidist.stages.toy import toy


async def run_stage(config: Command) -> dict[str, Any]:
    """Run a stage from its start to its end and return its summary."""
    if isinstance(config, CompareConfig | ToyConfig):
        return await (compare(config) if isinstance(config, CompareConfig) else toy(config))
    directory = RunDirectory(config)
    plan = make_plan(config)
    checkpoint = directory.start()
    start_log(directory.path)
    for line in plan.lines:
        log.info("%s", line)
    started = time.time()
    if checkpoint is not None:
        log.info("going on from %s", checkpoint.path)
    async with Cluster(config.cluster, directory.path / "logs", hosted(config)) as cluster:
        roles = Roles(cluster, config, plan)
        if isinstance(config, SftConfig):
            summary = await sft(config, plan, directory, roles, checkpoint)
        elif isinstance(config, DistillConfig):
            summary = await distill(config, plan, directory, roles, checkpoint)
        elif isinstance(config, ScoreConfig):
            summary = await score(config, plan, directory, roles)
        else:
            summary = await evaluate(config, plan, directory, roles)
    summary = {"stage": config.stage, "seconds": round(time.time() - started, 1), **summary}
    directory.finish(summary)
    log.info("%s finished in %.0f s: %s", config.stage, summary["seconds"], directory.path)
    return summary
