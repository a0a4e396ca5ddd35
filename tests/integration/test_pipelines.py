"""Pipelines on Ray Data, over the engines and teachers of the shared cluster: the rows of one process, whatever dies."""

import json
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest

from minidist.config.data import SourceConfig
from minidist.config.generate import ChatServerConfig
from minidist.config.pipelines import FilesConfig
from minidist.config.score_table import ScoreTableConfig
from minidist.data.exchanges import ExchangeReader
from minidist.data.tasks import generate
from minidist.errors import DataError, RoleError
from minidist.pipelines.gathering import Gathering
from minidist.pipelines.job import Job, Runner
from minidist.pipelines.local import run_in_process
from minidist.pipelines.ray_data import Work, run_on_ray
from minidist.pipelines.scoring import Scored
from minidist.pipelines.shards import Shards
from minidist.pipelines.steps import Item, Plain, Step
from minidist.pipelines.tally import Tally
from minidist.pipelines.workers import Block, ShardWorker, missing
from minidist.pipelines.writers import EngineWriter, ServerWriter, TextWriter
from minidist.roles.make import RoleContext, make_teacher
from minidist.types import Sampling
from tests.integration.conftest import Stack
from tests.integration.live_server import Live
from tests.support.doubling import Doubling, blocks_of, shards_of, worker_of, written

ROWS = 24


def run(stack: Stack, folder: Path, runner: Runner) -> Tally:
    return stack.run(Job(shards_of(folder), FilesConfig(shard_rows=10), lambda *figures: None).run(runner))


def doubled(stack: Stack, step: Doubling, rows: int, workers: int = 2) -> Tally:
    work = Work(partial(blocks_of, step.folder, rows), partial(worker_of, step), workers, 2, step.folder)
    return run(stack, step.folder, partial(run_on_ray, work))


def lines(path: Path) -> list[int]:
    return [int(line) for line in path.read_text().split()]


def test_every_row_is_written_once_and_in_order_by_two_workers(stack: Stack, tmp_path: Path) -> None:
    tally = doubled(stack, Doubling(tmp_path, bad=frozenset({3})), 95)
    assert [row["doubled"] for row in written(tmp_path) if row["key"] != "3"] == [2 * n for n in range(95) if n != 3]
    assert tally.summary() == {"rows": 95, "rows_failed": 1, "tokens": 94, "reasons": {"too long": 1}}
    assert sorted(lines(tmp_path / "begun")) == list(range(95))


def test_a_worker_that_is_killed_loses_and_repeats_nothing_that_was_written(stack: Stack, tmp_path: Path) -> None:
    doubled(stack, Doubling(tmp_path, dies_at=57), 100)
    assert (tmp_path / "died").exists()
    assert [row["doubled"] for row in written(tmp_path)] == list(range(0, 200, 2))
    again = len(lines(tmp_path / "begun")) - 100
    assert 0 < again <= 4 * 10  # two shards in each of two workers


def test_what_fails_in_a_worker_is_raised_as_itself_and_whole_shards_stay(stack: Stack, tmp_path: Path) -> None:
    with pytest.raises(RoleError, match=r"^the rollout died$"):
        doubled(stack, Doubling(tmp_path, fails_at=45), 2000)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.glob("rows/*")}
    assert 0 < len(kept) < 100
    doubled(stack, Doubling(tmp_path), 300)
    assert all(path.stat().st_mtime_ns == time_ns for path, time_ns in kept.items())
    assert [row["doubled"] for row in written(tmp_path)][:300] == list(range(0, 600, 2))


def test_too_many_failed_rows_stop_the_workers(stack: Stack, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"files.failed_frac=0.05; .* too long"):
        doubled(stack, Doubling(tmp_path, bad=frozenset(range(0, 4000, 2))), 4000)
    time.sleep(1)
    begun = len(lines(tmp_path / "begun"))
    assert begun < 2000
    time.sleep(1)
    assert len(lines(tmp_path / "begun")) == begun


def _answering(stack_parts: tuple[Any, Any], folder: Path) -> ShardWorker:
    """Two samples of each row, from the engines."""
    engines, renderer = stack_parts
    writer = EngineWriter(engines, renderer, Sampling(max_new_tokens=8, seed=5), max_prompt_tokens=30)
    reader = ExchangeReader(SourceConfig(path="rows.jsonl"), renderer.guard)
    return ShardWorker(Plain(writer, reader, 2, True), Shards(folder, "jsonl", 6), 12)


def _scoring(stack_parts: tuple[Any, Any], config: ScoreTableConfig, folder: Path) -> ShardWorker:
    teachers, renderer = stack_parts
    reader = ExchangeReader(config.data.rows, renderer.guard)
    step: Step = Scored(config, reader, renderer, Gathering(teachers, _score))
    return ShardWorker(step, Shards(folder, "jsonl", 6), 12)


async def _score(teacher: Any, rollouts: list[Any]) -> list[Any]:
    return await teacher.score(rollouts)


def _blocks(folder: Path, rows: list[dict[str, Any]]) -> list[Block]:
    return list(missing((Item(n, str(n), row) for n, row in enumerate(rows)), Shards(folder, "jsonl", 6)))


def _both(stack: Stack, folder: Path, make: Any, rows: list[dict[str, Any]]) -> list[list[str]]:
    """The lines that workers on Ray write, and those of one worker in this process."""
    found = []
    for name in ("ray", "here"):
        where = folder / name
        blocks, worker = partial(_blocks, where, rows), partial(make, where)
        work = Work(blocks, worker, 2, 2, where)
        runner = partial(run_on_ray, work) if name == "ray" else partial(run_in_process, worker(), blocks(), 2)
        stack.run(Job(Shards(where, "jsonl", 6), FilesConfig(), lambda *figures: None).run(runner))
        found.append([line for path in sorted(where.glob("rows/*")) for line in path.read_text().splitlines()])
    return found


def test_two_workers_and_two_engines_write_the_samples_of_one_process(stack: Stack, tmp_path: Path) -> None:
    parts = (stack.engines.members, stack.renderer)
    rows = generate("sort", split="train", rows=ROWS, seed=4)
    on_ray, here = _both(stack, tmp_path, lambda folder: _answering(parts, folder), rows)
    texts = [[json.loads(line)["answers"] for line in each] for each in (on_ray, here)]
    assert texts[0] == texts[1] and len(texts[0]) == ROWS
    for left, right in zip(on_ray, here, strict=True):
        assert json.loads(left)["logprobs"] == [pytest.approx(each, abs=1e-4) for each in json.loads(right)["logprobs"]]


def test_a_vllm_server_writes_what_an_engine_writes(stack: Stack, server: Live) -> None:
    # Greedy: the server draws with vLLM's own sampler, the engine with one number a token.
    sampling, asked = Sampling(max_new_tokens=8, temperature=0.0), ["b=", "hgfedcba=", "zyx="]

    async def texts(writer: TextWriter) -> list[list[str]]:
        found = [await writer.write(text, text, 3) for text in asked]
        await writer.close()
        assert all(1 <= each.tokens <= 8 for samples in found for each in samples)
        # q ends an engine's answers alone, and a server leaves special tokens out of the text.
        return [[each.text.replace("<unk>", "").partition("q")[0] for each in samples] for samples in found]

    engine = stack.run(texts(EngineWriter([stack.engine], stack.renderer, sampling, max_prompt_tokens=30)))
    served = ServerWriter(ChatServerConfig(url=server.url, model="teacher"), sampling)
    assert stack.run(texts(served)) == engine
    assert len({text for samples in engine for text in samples}) > 1


def test_two_workers_score_as_one_process(stack: Stack, tmp_path: Path) -> None:
    source = {"path": "rows.jsonl", "answer": "{{ answer }}"}
    config = ScoreTableConfig.model_validate(
        {
            "stage": "score_table",
            "run": {"directory": str(tmp_path)},
            "teacher": {"model": str(stack.teacher_path), "payload": "sampled"},
            "data": {"rows": source},
        }
    )
    teacher = stack.run(stack.cluster.host("teacher", make_teacher, context=RoleContext(stack.renderer), config=config.teacher))
    parts = ([teacher], stack.renderer)
    rows = generate("sort", split="train", rows=ROWS, seed=4)
    on_ray, here = _both(stack, tmp_path, lambda folder: _scoring(parts, config, folder), rows)
    stack.dismiss(teacher)
    scores = [[json.loads(line)["teacher_logprob_sums"] for line in each] for each in (on_ray, here)]
    assert scores[0] == pytest.approx(scores[1], abs=1e-4) and len(cast(list[float], scores[0])) == ROWS
