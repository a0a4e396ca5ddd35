"""Distillation in this process with text written ahead: ages, ratios, evaluations, and exact resuming."""

import asyncio
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

import minidist.rollout.hf as hf
from minidist.config import DistillConfig
from minidist.errors import CanaryError
from minidist.run.accounting import PREFIXES
from minidist.run.checkpoint import Checkpoints
from minidist.stages import run_stage
from tests.support.tiny import save_pair


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("overlap")
    save_pair(root)
    (root / "rows.jsonl").write_text("".join(json.dumps({"q": f"{n}+=", "a": str(n)}) + "\n" for n in range(40)))
    return root


def config(home: Path, name: str, *, steps: int = 5, most: int = 1, **sections: Any) -> DistillConfig:
    source = {"path": str(home / "rows.jsonl"), "prompt": "{{ q }}", "answer": "{{ a }}"}
    tree: dict[str, Any] = {
        "stage": "distill",
        "run": {"directory": str(home / name), "steps": steps, "deterministic": True, "checkpoint_every": 2},
        "student": {"model": str(home / "student")},
        "teacher": {"model": str(home / "teacher")},
        "data": {"prompts": source, "validation": source, "max_prompt_tokens": 8},
        "objective": {"type": "reverse_kl"},
        "rollout": {"engine": "hf", "prompts_per_step": 4, "max_new_tokens": 6},
        "learner": {"backend": "single", "optimizer": {"lr": 1e-2}},
        "loop": {"max_staleness": most},
        "canaries": {"every": 1},
        "evaluation": {"every": 2},
        "cluster": {"roles": "local", "threads": 1},
    }
    for key, section in sections.items():
        tree[key] = tree.get(key, {}) | section
    return DistillConfig.model_validate(tree)


def lines(settings: DistillConfig) -> list[dict[str, Any]]:
    asyncio.run(run_stage(settings))
    rows = [json.loads(line) for line in (settings.run.directory / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if "loss/nats_per_token" in row]


def weights(settings: DistillConfig) -> dict[str, np.ndarray]:
    return load_file(settings.run.directory / "final" / "model.safetensors")


@pytest.mark.parametrize("most", [1, 2])
def test_text_is_as_old_as_allowed_and_weighted_by_its_ratios(home: Path, most: int) -> None:
    steps = lines(config(home, f"ahead-{most}", most=most))
    assert [step["age/updates_max"] for step in steps] == [min(step, most) for step in range(5)]
    assert steps[0]["policy/ratio_max"] == pytest.approx(1, abs=1e-4)
    assert all(abs(step["policy/ratio_max"] - 1) > 1e-3 for step in steps[1:])
    # Engine and learner are compared where they hold the same weights.
    assert ["canary/engine_learner_nats_mean" in step for step in steps] == [True, False, False, False, False]
    assert all(step["canary/sync_nats_max"] < 1e-4 for step in steps)


def test_strictly_on_policy_runs_have_no_ratios(home: Path) -> None:
    steps = lines(config(home, "on-policy", most=0))
    assert {step["age/updates_max"] for step in steps} == {0.0}
    assert not [name for step in steps for name in step if "ratio" in name]
    assert all("canary/engine_learner_nats_mean" in step for step in steps)


@pytest.mark.parametrize("kind", ["reverse_kl", "minillm", "k2"])
def test_a_resumed_run_repeats_an_uninterrupted_one(home: Path, kind: str) -> None:
    sections: dict[str, Any] = {"objective": {"type": kind}, "learner": {"optimizer": {"lr": 1e-2, "schedule": "constant"}}}
    if kind == "minillm":
        sections |= {"rollout": {"teacher_mix": 0.2}}
    whole, parts = config(home, f"{kind}-whole", **sections), config(home, f"{kind}-parts", **sections)
    expected = lines(whole)
    stopped_after(parts, 3)
    found = lines(parts)
    assert all(np.array_equal(value, weights(parts)[name]) for name, value in weights(whole).items())
    for left, right in zip(expected, found, strict=True):
        same = [name for name in left if not name.startswith(PREFIXES)]
        assert {name: left[name] for name in same} == {name: right[name] for name in same}


def stopped_after(settings: DistillConfig, step: int) -> None:
    """Run until a checkpoint of `step` steps, and stop, as Ctrl-C does, while the next step is under way."""
    write = Checkpoints.write

    async def scene() -> None:
        task = asyncio.ensure_future(run_stage(settings))

        async def written(self: Checkpoints, number: int, *rest: Any) -> None:
            await write(self, number, *rest)
            if number == step - 1:
                asyncio.get_running_loop().call_later(0.02, task.cancel)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpoints, "write", written)
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(scene())
    assert not (settings.run.directory / "final").exists()


def test_an_engine_that_keeps_old_weights_stops_a_run_that_writes_ahead(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def load(self: Any, weights: Any) -> None:
        self._version = 0

    settings = config(home, "stale", evaluation={"every": None})
    monkeypatch.setattr(hf.HFEngine, "load", load)
    with pytest.raises(CanaryError, match="weight sync 2"):
        asyncio.run(run_stage(settings))


def test_versions_that_stand_still_are_older_than_allowed(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = hf.HFEngine.load

    async def loaded(self: Any, weights: Any) -> None:
        await load(self, weights)
        self._version = 0

    monkeypatch.setattr(hf.HFEngine, "load", loaded)
    with pytest.raises(CanaryError, match="weights of 2 optimizer steps ago"):
        asyncio.run(run_stage(config(home, "standing", evaluation={"every": None})))


@pytest.mark.parametrize("most", [0, 1])
def test_scoring_answers_as_they_finish_changes_no_bit(home: Path, most: int) -> None:
    made = [config(home, f"stream-{most}-{on}", most=most, steps=3, loop={"stream": on}) for on in (False, True)]
    plain, streamed = map(lines, made)
    for left, right in zip(plain, streamed, strict=True):
        names = [name for name in left if name.startswith(("loss/", "learner/", "rollout/", "policy/", "age/"))]
        assert {name: left[name] for name in names} == {name: right[name] for name in names}
    assert all(np.array_equal(value, weights(made[1])[name]) for name, value in weights(made[0]).items())
