"""Generation: the rows of a data set are answered, shard after shard; a job that was stopped goes on after its last shard."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

from minidist.cluster.cluster import Cluster
from minidist.config import GenerateConfig
from minidist.pipelines.card import write_card
from minidist.pipelines.job import Tally
from minidist.pipelines.shards import Shards
from minidist.pipelines.steps import Plain, Programmed, Step
from minidist.pipelines.writers import EngineWriter, ServerWriter, TextWriter
from minidist.preflight.generate import GeneratePlan, plan_generate
from minidist.roles.host import Roles
from minidist.run.directory import RunDirectory
from minidist.run.files import rename, writing
from minidist.run.tracking import log
from minidist.stages.pipeline import counted, missing, opened, through
from minidist.types import Sampling

_SIDE = ("trace", "votes", "tokens", "answer_tokens", "truncated", "kept", "agreement", "right")
"""Columns of a program's results that are not columns of the kept rows."""


async def generate(config: GenerateConfig) -> dict[str, Any]:
    """Answer the rows that no shard holds yet, and write what is kept; the summary is printed and written."""
    plan = plan_generate(config)
    directory = RunDirectory(config)
    shards = opened(directory, config, plan.lines)
    started = time.perf_counter()
    left = missing(shards, plan.rows)
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
    if config.server is not None:
        server = ServerWriter(config.server, sampling)
        try:
            log.info("server: model %s at %s", await server.start(), server.connection.address)
            return await _through(config, plan, shards, server)
        finally:
            await server.connection.close()
    assert config.model is not None and plan.renderer is not None
    async with Cluster(config.cluster, config.run.directory / "logs", ("rollout",)) as cluster:
        engines = await Roles(cluster, config, plan).engines(config.model, rollout)  # type: ignore[arg-type]
        writer = EngineWriter(engines.members, plan.renderer, sampling, max_prompt_tokens=config.data.max_prompt_tokens)
        return await _through(config, plan, shards, writer)


async def _through(config: GenerateConfig, plan: GeneratePlan, shards: Shards, writer: TextWriter) -> Tally:
    reader = plan.reader(config)
    step: Step = Plain(writer, reader, config.rollout.samples_per_prompt, config.files.tokens)
    if plan.program is not None:
        step = Programmed(writer, reader, plan.program)
    return await through(config, step, shards, plan.rows)


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
