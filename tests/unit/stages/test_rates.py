"""Rates from measured roles: the fixed part of a call and the rate of its work are found again, in virtual time."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minidist import cli
from minidist.errors import ConfigError
from minidist.preflight.forecast.probes import memory_bandwidth
from minidist.preflight.forecast.rates import PUBLISHED, Overheads, read_rates
from minidist.preflight.forecast.virtual import run
from minidist.run.flops import DecoderFlops, Work
from minidist.stages import rates
from minidist.stages.rates import ANSWER, PROMPT, VOCABULARY, Roles
from minidist.types import Batch, Payload, Prompt, Rollout, Sampling, TeacherScores, Update
from tests.support.config import load_stage

STUDENT, TEACHER = DecoderFlops(2e6, 100.0, 1e6), DecoderFlops(2e7, 1000.0, 2e6)
RATE, BANDWIDTH = 1e9, 1e10


class SlowTeacher:
    """Takes 30 ms a call and its operations at `RATE`."""

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        row = Work.row(PROMPT + ANSWER)
        await asyncio.sleep(0.03 + len(rollouts) * TEACHER.forward(row) / RATE)
        return [TeacherScores(Payload.SAMPLED, logprobs=np.zeros(ANSWER)) for _ in rollouts]


class SlowLearner:
    """Takes 90 ms an update, its operations at half of `RATE`, and its tables at `BANDWIDTH`."""

    async def update(self, batch: Batch) -> Update:
        row = Work.row(PROMPT + ANSWER, ANSWER)
        flops = STUDENT.forward(row) + STUDENT.backward(row) + TEACHER.head * ANSWER
        tables = Overheads().loss_passes * ANSWER * VOCABULARY * 4 / BANDWIDTH
        await asyncio.sleep(0.09 + len(batch.steps[0][0].rows) * (2 * flops / RATE + tables))
        return Update(1, {})


class SlowEngine:
    """Takes 4 ms a step and 0.1 ms a token beside its operations; its answers are half as long as asked."""

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        count, token = len(prompts), STUDENT.forward(Work(1, PROMPT + ANSWER / 2, 1)) / RATE
        read = count * PROMPT * STUDENT.token / RATE
        await asyncio.sleep((read + ANSWER * (4e-3 + count * (1e-4 + token))) / 2)
        return [Rollout.written(prompt, np.arange(ANSWER // 2), None, version=0, stopped=True) for prompt in prompts]


@pytest.fixture
def roles(monkeypatch: pytest.MonkeyPatch) -> Roles:
    monkeypatch.setattr("minidist.stages.rates.time.perf_counter", lambda: asyncio.get_running_loop().time())
    return Roles(SlowEngine(), SlowTeacher(), SlowLearner(), STUDENT, TEACHER, 1000, 0.0)


def test_rates_and_fixed_parts_of_the_roles_are_found_again(roles: Roles) -> None:
    assert run(rates._scoring(roles))[0] == pytest.approx((RATE, 0.03))
    assert run(rates._learning(roles, BANDWIDTH))[0] == pytest.approx((RATE / 2, 0.09))
    assert run(rates._writing(roles, RATE, BANDWIDTH))[0] == pytest.approx((4e-3, 1e-4))


def test_memory_is_read_at_a_rate() -> None:
    assert 1e8 < memory_bandwidth() < 1e13


def test_rates_are_kept_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    asked: list[Any] = []

    async def measured(*arguments: Any) -> Any:
        asked.append(arguments)
        return PUBLISHED["a100"]

    monkeypatch.setattr("minidist.stages.rates.measure_rates", measured)
    file = tmp_path / "kept" / "rates.json"
    monkeypatch.setattr("sys.argv", ["minidist", "plan", "--measure", "--rates", str(file)])
    with pytest.raises(SystemExit):
        cli.main()
    assert capsys.readouterr().out == f"rates: {file}\n" and asked == [(None, "float32")]
    assert read_rates(str(file)) == PUBLISHED["a100"]


def test_gpus_are_not_measured(tmp_path: Path) -> None:
    config = load_stage(tmp_path, "distill", "cluster.gpus=3")
    with pytest.raises(ConfigError, match=r"--measure measures the cores of this machine; for cluster.gpus use --rates h100"):
        cli._measure_rates(config, None)
