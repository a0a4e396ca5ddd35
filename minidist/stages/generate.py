"""Generation: the rows of a data set are answered, shard after shard; a job that was stopped goes on after its last shard."""

import asyncio
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from minidist.cluster.cluster import Cluster
from minidist.config import GenerateConfig
from minidist.config.generate import ChatServerConfig
from minidist.pipelines.card import write_card
from minidist.pipelines.shards import Shards
from minidist.pipelines.steps import Plain, Programmed, Step
from minidist.pipelines.tally import Tally
from minidist.pipelines.writers import EngineWriter, ServerWriter, TextWriter
from minidist.preflight.generate import GeneratePlan, plan_generate
from minidist.roles.host import Roles
from minidist.run.directory import RunDirectory
from minidist.run.files import rename, writing
from minidist.run.tracking import log
from minidist.stages.pipeline import counted, left_over, opened, through
from minidist.types import Sampling

_SIDE = ("trace", "votes", "tokens", "answer_tokens", "truncated", "kept", "agreement", "right")
"""Columns of a program's results that are not columns of the kept rows."""


async def generate(config: GenerateConfig) -> dict[str, Any]:
    """Answer the rows that no shard holds yet, and write what is kept; the summary is printed and written."""
    plan = plan_generate(config)
    directory = RunDirectory(config)
    shards = opened(directory, config, plan.lines)
    started = time.perf_counter()
    left = left_over(shards, plan.rows)
    summary = (await _answered(config, plan, shards) if left else counted(shards)).summary()
    if left:
        summary["seconds_answering"] = round(time.perf_counter() - started, 1)
    if config.program is not None:
        summary["kept"] = str(await asyncio.to_thread(_write_kept, shards, directory.path / "kept.jsonl"))
    await asyncio.to_thread(write_card, shards)
    log.info("%s", _sentence(summary, shards))
    return directory.finish(summary)


async def _answered(config: GenerateConfig, plan: GeneratePlan, shards: Shards) -> Tally:
    rollout = config.rollout
    fields = rollout.model_dump(include={"max_new_tokens", "temperature", "top_p"})
    sampling = Sampling(**fields, seed=config.run.seed)
    logs = config.run.directory / "logs"
    if config.server is not None:
        model = await model_of(config.server, sampling)
        server = config.server.model_copy(update={"model": model})
        make = partial(_step, config, plan, partial(ServerWriter, server, sampling))
        async with Cluster(config.cluster, logs, ()):
            return await through(config, make, shards, plan.rows, 1)
    assert config.model is not None and plan.renderer is not None
    async with Cluster(config.cluster, logs, ("rollout",)) as cluster:
        engines = (await Roles(cluster, config, plan).engines(config.model, rollout)).members  # type: ignore[arg-type]
        longest = config.data.max_prompt_tokens
        writer = partial(EngineWriter, engines, plan.renderer, sampling, max_prompt_tokens=longest)
        return await through(config, partial(_step, config, plan, writer), shards, plan.rows, len(engines))


async def model_of(server: ChatServerConfig, sampling: Sampling) -> str:
    """The name of the server's model, as the server says it before anything is asked."""
    writer = ServerWriter(server, sampling)
    try:
        model = await writer.start()
        log.info("server: model %s at %s", model, writer.connection.address)
        return model
    finally:
        await writer.close()


def _step(config: GenerateConfig, plan: GeneratePlan, make: Callable[[], TextWriter]) -> Step:
    reader, writer = plan.reader(config), make()
    if plan.program is not None:
        return Programmed(writer, reader, plan.program)
    return Plain(writer, reader, config.rollout.samples_per_prompt, config.files.tokens)


def _write_kept(shards: Shards, path: Path) -> Path:
    """The rows whose answer is kept, with the answer in place of a gold one, and without any intermediate text."""
    partial = path.with_suffix(".partial")
    with writing(path), partial.open("w", encoding="utf-8") as file:
        for number in shards.numbers():
            for result in shards.read(number):
                if result.get("kept"):
                    row = {name: value for name, value in result.items() if name not in _SIDE}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
    rename(partial, path)
    return path


def _sentence(summary: dict[str, Any], shards: Shards) -> str:
    failed = f", {summary['rows_failed']:,} failed" if summary["rows_failed"] else ""
    kept = ""
    if "rows_kept" in summary:
        kept = f", {summary['rows_kept']:,} kept ({summary['accept_frac']:.1%})"
    if "accuracy" in summary:
        of_kept = summary["accuracy_kept"]
        kept += f", accuracy {summary['accuracy']:.3f}" + ("" if of_kept is None else f", of the kept {of_kept:.3f}")
    speed = f", {summary['tokens'] / summary['seconds_answering']:,.0f} tokens/s" if summary.get("seconds_answering") else ""
    return f"{summary['rows']:,} rows{failed}{kept}, {summary['tokens']:,} tokens{speed}: {shards.folder}"
