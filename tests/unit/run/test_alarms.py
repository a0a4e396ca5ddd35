"""Each alarm on the fault that it detects, planted in a run, and none on a healthy run; and a run that an alarm stops."""

import asyncio
import gc
import json
import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from minidist import cli
from minidist.config.canaries import ALARMS, CanaryConfig
from minidist.config.rollout import RolloutConfig
from minidist.experience.draw import Shuffled
from minidist.experience.source import Collector
from minidist.experience.streams import Source, StudentText
from minidist.rollout.pool import Engines
from minidist.run.accounting import PREFIXES
from minidist.run.alarms import Alarms
from minidist.run.tracking import Clock, log
from minidist.types import MAIN, Finish, Prompt, Rollout, Sampling
from tests.support.tiny import random_rollouts, save_pair

ROWS, STEPS, EOS = 8, 6, 0
Writing = Callable[[np.random.Generator, int], list[int]]


class Scripted:
    """An engine whose answers are those of `write`, end-of-sequence tokens included."""

    def __init__(self, write: Writing) -> None:
        self._write, self._step = write, -1

    async def figures(self) -> dict[str, float]:
        return {}

    async def generate(self, prompts: list[Prompt], sampling: Sampling) -> list[Rollout]:
        self._step += 1
        rng, rollouts = np.random.default_rng(self._step), []
        for prompt in prompts:
            tokens = np.array(self._write(rng, self._step), dtype=np.int32)
            finish = Finish.STOP if tokens[-1] == EOS else Finish.LENGTH
            zeros = np.zeros(len(tokens))
            rollouts.append(Rollout(prompt, tokens, zeros, zeros.astype(np.int32), finish))
        return rollouts


def healthy(rng: np.random.Generator, step: int) -> list[int]:
    return [*rng.integers(1, 50, rng.integers(15, 25)).tolist(), EOS]


def shrinking(rng: np.random.Generator, step: int) -> list[int]:
    return [*healthy(rng, step)[: 20 - 4 * step], EOS]


def repeating(rng: np.random.Generator, step: int) -> list[int]:
    return healthy(rng, step) if step < 3 else [*(rng.integers(1, 50, 3).tolist() * 8), EOS]


def endless(rng: np.random.Generator, step: int) -> list[int]:
    return healthy(rng, step) if step < 3 else healthy(rng, step)[:-1] + [1] * 3


def one_for_all(rng: np.random.Generator, step: int) -> list[int]:
    """No answer repeats itself, but all are the same."""
    return healthy(rng, step) if step < 3 else [*range(1, 20), EOS]


POLICY = {"policy/clip_frac": 0.2, "policy/weight_max": 1.25, "policy/weight_min": 0.01, "policy/disliked_frac": 0.1}
POLICY |= {"age/updates_max": 3.0}


def raised(write: Writing, policy: Callable[[int], dict[str, float]] = lambda step: {}) -> list[str]:
    """The alarms of a run of STEPS steps with answers of `write` and the learner's metrics `policy`."""
    prompts = [rollout.prompt for rollout in random_rollouts([(3, 1)] * ROWS)]
    engines = Engines([Scripted(write)])  # type: ignore[list-item]
    text = StudentText(engines, RolloutConfig(prompts_per_step=ROWS), seed=0)
    source = Collector(Shuffled(prompts, ROWS, 0), [Source(MAIN, text, scored=False)], None, None, Clock())
    alarms = Alarms(CanaryConfig())
    for step in range(STEPS):
        alarms.look(step, asyncio.run(source.next(step)).metrics | POLICY | policy(step))
    return [text.partition(":")[0] for text in alarms.raised]


def test_a_healthy_run_raises_no_alarm() -> None:
    assert raised(healthy) == []


@pytest.mark.parametrize(
    ("write", "text"),
    [
        (shrinking, "length collapse at step 3"),
        (repeating, "repetition at step 3"),
        (endless, "truncated answers at step 3"),
        (one_for_all, "loss of diversity at step 3"),
    ],
)
def test_a_fault_of_the_text_raises_its_alarm_in_the_step(write: Writing, text: str) -> None:
    found = raised(write)
    assert text in found
    assert set(found) - {text} <= {"loss of diversity at step 3"}, "answers that loop have few different 4-grams, too"


@pytest.mark.parametrize(
    ("metric", "value", "text"),
    [
        ("policy/clip_frac", 0.51, "clipped tokens"),
        ("policy/weight_max", 11.0, "large importance weight"),
        ("policy/weight_min", 1e-5, "small importance weight"),
        ("policy/disliked_frac", 0.6, "tokens the teacher dislikes"),
        ("teacher/floored_frac", 1e-4, "tokens to which the teacher gives no probability"),
        ("age/updates_max", 17.0, "old samples"),
        ("policy/weight_max", math.nan, "large importance weight"),
    ],
)
def test_a_fault_of_the_policy_raises_its_alarm_in_the_step(metric: str, value: float, text: str) -> None:
    assert raised(healthy, lambda step: {metric: value} if step >= 2 else {}) == [f"{text} at step 2"]


LIMITS = CanaryConfig(alarm_length=0.5, alarm_truncated=0.5, alarm_repetition=0.4)
NAMES = ("rollout/length_mean_tokens", "rollout/truncated_frac", "rollout/repetition_frac")


def alarms_after(*figures: tuple[float, float, float], config: CanaryConfig = LIMITS) -> list[list[str]]:
    """The alarms raised so far after each step of (length, truncated, repetition)."""
    alarms, found = Alarms(config), []
    for step, values in enumerate(figures):
        alarms.look(step, dict(zip(NAMES, values, strict=True)))
        found.append(list(alarms.raised))
    return found


def test_a_metric_at_its_limit_raises_nothing() -> None:
    assert alarms_after((20, 0.5, 0.4), (10, 0.0, 0.0), (90, 0.1, 0.1)) == [[], [], []]


@pytest.mark.parametrize(
    ("bad", "text"),
    [
        ((9.0, 0.0, 0.0), "length collapse at step 1: 0.45 of the first is below 0.5"),
        ((20.0, 0.6, 0.0), "truncated answers at step 1: 0.6 is above 0.5"),
        ((20.0, 0.0, 0.5), "repetition at step 1: 0.5 is above 0.4"),
    ],
)
def test_each_alarm_is_raised_once(bad: tuple[float, float, float], text: str) -> None:
    assert alarms_after((20, 0, 0), bad, bad, (20, 0, 0), bad) == [[], [text], [text], [text], [text]]


def test_alarms_are_raised_together_and_switched_off_by_null() -> None:
    assert len(alarms_after((20, 0, 0), (1, 1, 1))[-1]) == 3
    off = CanaryConfig(alarm_length=None, alarm_truncated=None, alarm_repetition=None)
    assert alarms_after((20, 0, 0), (1, 1, 1), config=off) == [[], []]


def test_every_limit_declares_its_alarm() -> None:
    assert [field for field in CanaryConfig.model_fields if field.startswith("alarm_")] == [f"alarm_{name}" for name in ALARMS]
    assert CanaryConfig(alarm_age=3.0).limit("age") == 3.0


def test_a_missing_metric_raises_nothing() -> None:
    alarms = Alarms(CanaryConfig())
    assert alarms.look(0, {"loss/nats_per_token": 1.0}) == [] and alarms.raised == []


def test_alarms_resume_from_their_state() -> None:
    """The reference length stays that of the run's first step, and raised alarms are not raised again."""
    first, second = Alarms(CanaryConfig()), Alarms(CanaryConfig())
    for step, values in enumerate([(20.0, 0.0, 0.0), (20.0, 0.9, 0.0)]):
        first.look(step, dict(zip(NAMES, values, strict=True)))
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    second.look(2, dict(zip(NAMES, (9.0, 0.9, 0.0), strict=True)))
    assert [text.partition(" at ")[0] for text in second.raised] == ["truncated answers", "length collapse"]


def test_alarms_of_stop_on_are_returned_whether_new_or_not() -> None:
    alarms = Alarms(CanaryConfig(stop_on=["truncated", "length"]))
    assert alarms.look(0, dict(zip(NAMES, (20.0, 0.0, 0.9), strict=True))) == [], "repetition is raised, but not in stop_on"
    sentences = ["truncated answers at step 1: 0.7 is above 0.5 (canaries.alarm_truncated)"]
    assert alarms.look(1, dict(zip(NAMES, (20.0, 0.7, 0.9), strict=True))) == sentences
    again = Alarms(CanaryConfig(stop_on=["truncated"]))
    again.load_state_dict(json.loads(json.dumps(alarms.state_dict())))
    assert again.look(2, dict(zip(NAMES, (20.0, 0.7, 0.9), strict=True))) == [sentences[0].replace("step 1", "step 2")]
    assert again.look(3, dict(zip(NAMES, (20.0, 0.1, 0.9), strict=True))) == []


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("alarmed")
    save_pair(root)
    return root


def distil(models: Path, name: str, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> int:
    """Exit code of a short run, in this process, whose answers are mostly truncated."""
    config = {
        "stage": "distill",
        "run": {"directory": str(models / name), "steps": 3, "checkpoint_every": 2, "tensorboard": False},
        "student": {"model": str(models / "student")},
        "teacher": {"model": str(models / "teacher")},
        "data": {"prompts": {"path": "task:addition", "rows": 20}, "max_prompt_tokens": 8},
        "objective": {"type": "reverse_kl"},
        "rollout": {"engine": "hf", "prompts_per_step": 4, "max_new_tokens": 2},
        "learner": {"backend": "single"},
        "cluster": {"roles": "local", "threads": 1},
    }
    file = models / f"{name}.yaml"
    file.write_text(yaml.safe_dump(config))
    monkeypatch.setattr("sys.argv", ["minidist", "distill", str(file), *overrides])
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for name in ("handlers", "propagate"):
        monkeypatch.setattr(log, name, getattr(log, name))
    try:
        cli.main()
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        gc.collect()  # the lock of the run's directory is an open file, closed when its last reference goes
    return 0


def numbers(directory: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if not key.startswith(PREFIXES)} for line in lines]


def test_an_alarm_stops_a_run_which_resumes_without_that_alarm(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert distil(models, "whole", monkeypatch) == 0
    directory = models / "stopped"
    stop = ["canaries.stop_on=[truncated]", "canaries.alarm_truncated=0.3"]
    for step in (1, 2):  # the same command takes one more step and is stopped again
        assert distil(models, "stopped", monkeypatch, *stop) == 1
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("minidist: stopped by an alarm of canaries.stop_on: truncated answers at step ")
        assert "(canaries.alarm_truncated)" in last and last.endswith("and give the same command again")
        assert (directory / "checkpoints" / f"step_{step:06d}" / "state.json").is_file()
        assert len(numbers(directory)) == step and not (directory / "final").exists()
        assert f"checkpoint after {step} steps written" in (directory / "log.txt").read_text()
    assert (directory / "log.txt").read_text().count("ALARM truncated answers") == 1
    assert distil(models, "stopped", monkeypatch) == 0
    assert numbers(directory) == numbers(models / "whole"), "nothing was lost"
    weights = [(models / name / "final" / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]
