"""Directories of runs as the recorder, the trace and the stages write them, without a model in sight."""

import json
from collections.abc import Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from minidist.config import DistillConfig, dump
from minidist.run.accounting import Account, Phase
from minidist.run.timeline import DRIVER, Span, Timeline
from minidist.run.tracking import Recorder
from minidist.types import Finish, Measures, Prompt, Rollout
from tests.support.config import TREES

STEPS = 60
PHASES = ("generate", "score", "check", "update", "publish")


def write_run(directory: Path, *, seed: int = 0, steps: int = STEPS, finished: bool = True, **sections: Any) -> Path:
    """A distillation: metrics, evaluations, two files of answers, a trace and, where it has finished, its summary."""
    directory.mkdir(parents=True)
    run = {"directory": str(directory), "seed": seed, "steps": steps}
    config = DistillConfig.model_validate(TREES["distill"] | {"run": run} | sections)
    (directory / "config.json").write_text(json.dumps(dump(config)))
    rng = np.random.default_rng(seed)
    recorder = Recorder(directory, range(steps), tensorboard=False, shown={}, pieces=lambda tokens: [f"<{n}>" for n in tokens])
    recorder.write(-1, {"evaluation/accuracy": 0.3, "evaluation/accuracy_se": 0.02, "evaluation/reverse_kl": 0.9})
    for step in range(steps):
        recorder.step(step, step_metrics(step, steps, rng))
    recorder.write(steps - 1, {"evaluation/accuracy": 0.8, "evaluation/accuracy_se": 0.02, "evaluation/reverse_kl": 0.1})
    for step in (1, steps):
        recorder.rollouts(step, *answers(rng))
    recorder.close()
    write_trace(directory / "timeline.json", steps=min(steps, 20))
    (directory / "log.txt").write_text("2026-01-01 00:00:00 ALARM length collapse at step 7: 0.4 of the first is below 0.5\n")
    if finished:
        (directory / "summary.json").write_text(json.dumps(summary(steps)))
    return directory


def step_metrics(step: int, steps: int, rng: np.random.Generator) -> dict[str, float]:
    """The figures of a step."""
    loss, noise = 0.1 + 0.9 * np.exp(-3 * step / steps), 0.05 * rng.standard_normal()
    found = {"loss/nats_per_token": loss + noise, "kl/reverse_nats": loss + noise, "rollout/length_mean_tokens": 40 + noise}
    found |= {f"time/{name}_s": 0.2 for name in PHASES} | {"speed/seconds_per_step": 1.1, "speed/loss_tokens_per_s": 900.0}
    found |= {"cluster/restarts": 1.0} if step in (2, 9) else {}
    return {**found, "memory/peak_gib": 2.5, "policy/reward_mean_nats": -loss}


def answers(rng: np.random.Generator) -> tuple[Sequence[Rollout], Measures]:
    """Two answers, the second in teacher-mixed sampling, with log-probabilities of student and teacher."""
    tokens = np.arange(5)
    made = Rollout(Prompt(0, tokens, "Sort: b a"), tokens, -np.ones(5), np.zeros(5, np.int32), Finish.STOP, text="a b")  # type: ignore[arg-type]
    mixed = replace(made, coins=np.array([True, False, False, True, False]))
    return [made, mixed], Measures(np.repeat([0, 1], 5), -rng.random(10), -4 * rng.random(10))


def write_trace(file: Path, *, steps: int) -> None:
    """Of a driver whose phases follow one another, and two actors."""
    trace = Timeline(file)
    for step in range(steps):
        start = 1000.0 + step * (1.0 + 0.01 * step)
        phases = [Span(name, start + 0.2 * at, start + 0.2 * (at + 1), at) for at, name in enumerate(PHASES)]
        update = Span("update", start + 0.6, start + 0.8, 2)
        learner = [
            Span("forward", start + 0.62, start + 0.7, 2, inner=True),
            update,
            Span("figures", start + 0.9, start + 0.91, 3),
        ]
        trace.add({DRIVER: phases, "rollout": [Span("stream", start, start + 0.2, 1)], "learner": learner})
    trace.close()


def summary(steps: int) -> dict[str, Any]:
    """Of a finished distillation whose teacher was restarted twice."""
    account = Account(float(steps), steps, 1.0, 2.0, {"generate": Phase(12.0, 480.0)}, {"rollout": 3.0})
    time = {"account": account.to_record(), "matrix_products_flop_per_s": {}, "memory_peak_gib": 2.5, "this_node_alone": False}
    canaries = {"engine_learner_nats_mean_worst": 3e-7, "alarms": ["truncated answers at step 3: 0.6 is above 0.5"]}
    found = {"stage": "distill", "seconds": 64.8, "steps": steps, "syncs_proved": steps + 1, "canaries": canaries, "time": time}
    return found | {"supervision": {"restarts": {"teacher 1": 2}, "given_up": ["rollout 3"]}}


class Parsed(HTMLParser):
    """A page as a browser's parser reads it: its elements with their attributes, its text, and the data of its figures."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.figures: dict[str, dict[str, Any]] = {}
        self._name = ""
        self._script: str | None = None
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.elements.append((tag, values))
        self._name = values.get("data-name") or self._name
        self._script = (values.get("type") or "code") if tag in ("script", "style") else None

    def handle_data(self, data: str) -> None:
        if self._script == "application/json":
            self.figures[self._name] = json.loads(data)
        elif self._script is None:
            self.text += data

    def handle_endtag(self, tag: str) -> None:
        self._script = None
