"""Pipelines: `python -m tests.benchmarks.pipelines`. Tokens a second against the bare engine's, and memory against the rows.

Throughput: one vLLM engine in an actor, a random Llama, prompts of 24 tokens and answers of up to 64. The bare engine gets all
prompts in one call; the pipeline's clock runs from the first row that its worker takes to the last file. The two take turns.
Memory: a step without a model over rows of 1 KB, few and many; peaks of the driver, the reader and the worker.
"""

import asyncio
import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, LlamaConfig

from minidist.cluster.cluster import Cluster
from minidist.config.cluster import ClusterConfig
from minidist.config.data import RenderConfig, SourceConfig
from minidist.config.models import ModelConfig
from minidist.config.pipelines import FilesConfig
from minidist.config.rollout import RolloutConfig
from minidist.data.exchanges import ExchangeReader
from minidist.data.rendering import Renderer, character_tokenizer
from minidist.pipelines.job import Job
from minidist.pipelines.ray_data import Work, run_on_ray
from minidist.pipelines.shards import Shards
from minidist.pipelines.steps import Item, Plain
from minidist.pipelines.workers import Block, ShardWorker, missing, open_at_once
from minidist.pipelines.writers import EngineWriter, Sample, number_of
from minidist.roles.make import RoleContext, make_engine
from minidist.types import Prompt, Sampling

ROWS, REPEATS, SHARD_ROWS, IN_FLIGHT = 2000, 3, 100, 256
MEMORY_ROWS = (2_000, 20_000, 100_000)
ALPHABET = "".join(chr(0x4E00 + i) for i in range(4094))
RESULTS = Path("runs/bench/pipelines.json")
SAMPLING = Sampling(max_new_tokens=64, seed=1)


class TimedWriter(EngineWriter):
    """Touches `began` when it is asked for the first time."""

    began: Path | None = None

    async def write(self, *arguments: Any) -> list[Sample]:
        if self.began is not None:
            self.began.touch()
            self.began = None
        return await super().write(*arguments)


def rows() -> list[dict[str, str]]:
    draw = random.Random(0)
    return [{"prompt": "".join(draw.choices(ALPHABET, k=24))} for _ in range(ROWS)]


def answering(engine: Any, renderer: Renderer, folder: Path) -> ShardWorker:
    writer = TimedWriter([engine], renderer, SAMPLING, max_prompt_tokens=64)
    writer.began = folder / "began"
    reader = ExchangeReader(SourceConfig(path="rows.jsonl"), renderer.guard)
    return ShardWorker(Plain(writer, reader, 1, False), Shards(folder, "jsonl", SHARD_ROWS), IN_FLIGHT)


def blocks(folder: Path) -> Iterator[Block]:
    return missing((Item(n, str(n), row) for n, row in enumerate(rows())), Shards(folder, "jsonl", SHARD_ROWS))


async def through(engine: Any, renderer: Renderer, folder: Path) -> float:
    """Tokens a second of the pipeline."""
    folder.mkdir()
    worker = partial(answering, engine, renderer, folder)
    work = Work(partial(blocks, folder), worker, 1, open_at_once(IN_FLIGHT, SHARD_ROWS), folder)
    job = Job(Shards(folder, "jsonl", SHARD_ROWS), FilesConfig(shard_rows=SHARD_ROWS), lambda *figures: None)
    tally = await job.run(partial(run_on_ray, work))
    ended = max(path.stat().st_mtime for path in folder.glob("rows/*"))
    return tally.tokens / (ended - (folder / "began").stat().st_mtime)


async def bare(engine: Any, renderer: Renderer) -> float:
    """Tokens a second of the engine alone, on the same prompts with the same seeds."""
    prompts = [Prompt(number_of(str(n)), renderer.prompt(row["prompt"]), "") for n, row in enumerate(rows())]
    started = time.perf_counter()
    rollouts = await engine.generate(prompts, SAMPLING)
    return sum(len(each.tokens) for each in rollouts) / (time.perf_counter() - started)


async def throughput(folder: Path) -> dict[str, Any]:
    renderer = Renderer(character_tokenizer(ALPHABET), RenderConfig())
    width = len(renderer.tokenizer)
    shape = LlamaConfig(
        vocab_size=width,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=4,
        tie_word_embeddings=True,
    )
    AutoModelForCausalLM.from_config(shape).save_pretrained(folder / "model")
    renderer.tokenizer.save_pretrained(folder / "model")
    async with Cluster(ClusterConfig(), folder / "logs", ("rollout",)) as cluster:
        context = RoleContext(renderer, max_tokens=128)
        engine = await cluster.host(
            "rollout", make_engine, context=context, model=ModelConfig(model=str(folder / "model")), rollout=RolloutConfig()
        )
        await bare(engine, renderer)
        pairs = []
        for turn in range(REPEATS):
            pairs.append((await bare(engine, renderer), await through(engine, renderer, folder / f"turn{turn}")))
            print(f"tokens/s: engine {pairs[-1][0]:,.0f}, pipeline {pairs[-1][1]:,.0f}", flush=True)
    ratios = [pipeline / engine for engine, pipeline in pairs]
    return {"tokens_per_s": pairs, "ratio": statistics.median(ratios)}


class Echo:
    """Answers with a text of 1 KB, and the peak memory of its process."""

    async def run(self, item: Item) -> dict[str, Any]:
        await asyncio.sleep(0)
        return {**item.columns, "answers": ["x" * 1000], "tokens": 1, "peak": peak_mib()}

    async def close(self) -> None:
        pass


def peak_mib() -> int:
    """Peak memory of this process without the pages of Ray's object store, which all processes share."""
    found = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return (int(found["VmHWM"].split()[0]) - int(found["RssShmem"].split()[0])) // 1024


def many(folder: Path, count: int) -> Iterator[Block]:
    items = (Item(n, str(n), {"prompt": f"{n} " + "y" * 1000}) for n in range(count))
    yield from missing(items, Shards(folder, "jsonl", 500))
    (folder / "reader").write_text(str(peak_mib()))


def echoing(folder: Path) -> ShardWorker:
    return ShardWorker(Echo(), Shards(folder, "jsonl", 500), IN_FLIGHT)


async def memory(folder: Path, count: int) -> dict[str, int]:
    """Peaks in MiB of a job of `count` rows."""
    async with Cluster(ClusterConfig(), folder / "logs", ()):
        work = Work(partial(many, folder, count), partial(echoing, folder), 1, 2, folder)
        started = time.perf_counter()
        await Job(Shards(folder, "jsonl", 500), FilesConfig(), lambda *figures: None).run(partial(run_on_ray, work))
        seconds = time.perf_counter() - started
    last = sorted(folder.glob("rows/*"))[-1].read_text().splitlines()[-1]
    found = {"driver": peak_mib(), "reader": int((folder / "reader").read_text()), "worker": json.loads(last)["peak"]}
    return {"rows": count, "rows_per_s": round(count / seconds), **found}


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        found: dict[str, Any] = asyncio.run(throughput(Path(folder)))
    print(f"pipeline / engine: {found['ratio']:.3f}")
    found["memory_mib"] = []
    for count in MEMORY_ROWS:
        command = [sys.executable, "-m", "tests.benchmarks.pipelines", str(count)]
        done = subprocess.run(command, capture_output=True, check=True, text=True)
        found["memory_mib"].append(json.loads(done.stdout.splitlines()[-1]))
        print(found["memory_mib"][-1], flush=True)
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        with tempfile.TemporaryDirectory() as folder:
            print(json.dumps(asyncio.run(memory(Path(folder), int(sys.argv[1])))))
    else:
        main()
