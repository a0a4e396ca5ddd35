"""Distillation in this process: its canaries and evaluations where answers are not drawn at temperature 1."""

import asyncio
import json
from contextlib import closing
from pathlib import Path
from typing import Any, cast

import pytest

import minidist.rollout.hf as hf
from minidist.cluster.cluster import Cluster
from minidist.config import DistillConfig, EvaluateConfig
from minidist.errors import CanaryError
from minidist.preflight.plan import plan_distill, plan_evaluate
from minidist.run.directory import RunDirectory
from minidist.run.tracking import Clock
from minidist.stages import StageRun, run_stage
from minidist.stages.accounts import Accounts, measure_rates
from minidist.types import Batch, Sampling
from tests.support.tiny import save_pair, tiny_model, tiny_renderer


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("distill")
    save_pair(root)
    (root / "rows.jsonl").write_text("".join(json.dumps({"q": f"{n}+=", "a": str(n)}) + "\n" for n in range(8)))
    return root


def config(home: Path, name: str, **sections: Any) -> DistillConfig:
    source = {"path": str(home / "rows.jsonl"), "prompt": "{{ q }}", "answer": "{{ a }}"}
    tree: dict[str, Any] = {
        "stage": "distill",
        "run": {"directory": str(home / name), "steps": 1},
        "student": {"model": str(home / "student")},
        "teacher": {"model": str(home / "teacher")},
        "data": {"prompts": source, "validation": source, "max_prompt_tokens": 8},
        "objective": {"type": "forward_kl"},
        "learner": {"backend": "single"},
        "cluster": {"roles": "local", "threads": 1},
    }
    rollout = {"engine": "hf", "prompts_per_step": 4, "max_new_tokens": 6} | sections.pop("rollout", {})
    return DistillConfig.model_validate(tree | {"rollout": rollout} | sections)


def metrics(settings: DistillConfig) -> list[dict[str, Any]]:
    asyncio.run(run_stage(settings))
    return [json.loads(line) for line in (settings.run.directory / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("drawn", [{"temperature": 0.7, "top_p": 0.8}, {"temperature": 0.0}], ids=str)
def test_the_canary_holds_for_answers_of_any_distribution(home: Path, drawn: dict[str, float]) -> None:
    [line] = [each for each in metrics(config(home, f"run-{drawn}", rollout=drawn)) if "canary/teacher_logprob_nats" in each]
    assert line["canary/engine_learner_nats_mean"] < 1e-5


def test_a_wrong_temperature_in_the_engine_stops_the_run(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warp = hf.warp
    monkeypatch.setattr(hf, "warp", lambda logits, sampling, *rest: warp(logits, Sampling(max_new_tokens=6), *rest))
    with pytest.raises(CanaryError, match="engine and learner disagree"):
        asyncio.run(run_stage(config(home, "wrong", rollout={"temperature": 0.7})))


def test_a_greedy_evaluation_in_a_run_measures_text_alone(home: Path) -> None:
    settings = config(home, "greedy", evaluation={"every": 1, "temperature": 0})
    assert any("evaluation of greedy answers (evaluation.temperature)" in line for line in plan_distill(settings).lines)
    found = [each for each in metrics(settings) if "evaluation/length_mean_tokens" in each]
    assert len(found) == 2
    for line in found:
        assert "evaluation/rouge_l" in line and "evaluation/truncated_frac" in line
        assert not any("_kl" in name for name in line if name.startswith("evaluation/"))


def test_models_are_evaluated_greedily(home: Path) -> None:
    tree = {
        "stage": "evaluate",
        "run": {"directory": str(home / "table")},
        "models": {name: str(home / name) for name in ("teacher", "student")},
        "teacher": {"model": str(home / "teacher")},
        "data": {"test": {"path": str(home / "rows.jsonl"), "prompt": "{{ q }}", "answer": "{{ a }}"}, "max_prompt_tokens": 8},
        "rollout": {"engine": "hf", "max_new_tokens": 6, "temperature": 0},
        "cluster": {"roles": "local", "threads": 1},
    }
    settings = EvaluateConfig.model_validate(tree)
    plan = plan_evaluate(settings)
    assert any("divergences and exposure bias need samples at 1, and are left out" in line for line in plan.lines)
    result = asyncio.run(run_stage(settings))["result"]
    for seed, name in enumerate(("student", "teacher")):
        greedy = Sampling(max_new_tokens=6, temperature=0)
        texts = hf.sample(tiny_model(seed=seed), plan.renderer, plan.prompts, greedy, version=0)
        assert result[name]["length_mean_tokens"] == sum(len(text.tokens) for text in texts) / len(texts)
        assert "rouge_l" in result[name] and "reverse_kl" not in result[name] and "exposure_bias" not in result[name]


def accounted(settings: DistillConfig) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """The record of a run's time, its steps' metrics, and the spans of its timeline."""
    time = asyncio.run(run_stage(settings))["time"]
    folder = settings.run.directory
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return time, steps, json.loads((folder / "timeline.json").read_text())


def test_a_step_is_accounted_for(home: Path) -> None:
    """4 prompts of up to 3 tokens, answers of up to 6; one micro-batch of the learner, whose rows the teacher has scored."""
    time, [first, second], _ = accounted(config(home, "account", run={"directory": str(home / "account"), "steps": 2}))
    answers = [json.loads(line) for line in (home / "account" / "rollouts" / "step_000002.jsonl").read_text().splitlines()]
    written = sum(len(answer["tokens"]) for answer in answers)
    prompt = len(tiny_renderer().prompt("1+="))
    flops = plan_distill(config(home, "account-plan")).models.student.shape.flops
    rows = [prompt + len(answer["tokens"]) for answer in answers]
    passed = flops.token * sum(rows) + flops.pair * sum(row * (row + 1) / 2 for row in rows)
    assert second["tokens/generate"] == written and second["tokens/score"] == second["tokens/update"] == sum(rows)
    assert second["flops/score_tflop"] == pytest.approx(passed / 1e12)
    head = flops.head * written  # the student's and the teacher's are alike
    assert second["flops/update_tflop"] == pytest.approx((3 * (passed + head) + head) / 1e12)
    assert 0 < second["flops/generate_tflop"] < (passed + head) / 1e12
    assert second["bytes/publish_mib"] > 0.1 and second["bytes/score_mib"] == written * flops.head / 2 / 13 * 4 / 2**20
    assert 0 < second["utilisation/update_frac"] < 1.5 and second["memory/peak_gib"] > 0.1
    seconds = sum(value for name, value in second.items() if name.startswith("time/"))
    for role in ("rollout", "teacher", "learner"):
        assert 0 < second[f"idle/{role}_s"] < seconds * 1.2 + 0.1
    assert time["account"]["steps"] == 2 and "tokens/check" in first
    assert time["account"]["phases"]["generate"]["tokens"] == first["tokens/generate"] + written


def test_the_timeline_has_all_actors_and_a_resumed_run_goes_on_in_it(home: Path) -> None:
    run = {"directory": str(home / "timeline"), "checkpoint_every": 2}
    before, _, first = accounted(config(home, "timeline", run=run | {"steps": 2}))
    after, steps, events = accounted(config(home, "timeline", run=run | {"steps": 3}))
    rows = {event["pid"]: event["args"]["name"] for event in events if event["name"] == "process_name"}
    assert sorted(rows.values()) == ["driver", "learner", "rollout", "teacher"]
    spans = [event for event in events if event["ph"] == "X"]
    assert events[: len(first)] == first and len(steps) == 3
    updates = [span["ts"] for span in spans if (rows[span["pid"]], span["name"]) == ("learner", "update")]
    assert len(updates) == 3 and updates == sorted(updates)
    assert all(span["dur"] >= 0 for span in spans)
    [update] = [span for span in spans if span["ts"] == updates[2] and span["name"] == "update"]
    inside = [s for s in spans if s["pid"] == update["pid"] and update["ts"] <= s["ts"] <= update["ts"] + update["dur"]]
    assert [span["name"] for span in inside] == ["update", "forward", "backward", "step"]
    for row in rows:
        begun = [span["ts"] for span in spans if span["pid"] == row]
        assert begun and begun == sorted(begun)
    assert after["account"]["steps"] == 3 and after["account"]["seconds"] > before["account"]["seconds"]


def test_a_timeline_leaves_out_what_warm_actors_did_before(home: Path) -> None:
    settings = config(home, "warm")
    run, plan = RunDirectory(settings), plan_distill(settings)
    run.start()

    async def account() -> list[dict[str, Any]]:
        async with Cluster(settings.cluster, home / "logs") as cluster:
            teacher = await cluster.host("teacher", Warm)
            await teacher.score()
            with closing(Accounts(StageRun(settings, plan, run), cluster, Clock())) as accounts:
                await teacher.extend()
                accounts.step(Batch(0, ()))
        return json.loads((home / "warm" / "timeline.json").read_text())

    assert [event["name"] for event in asyncio.run(account()) if event["ph"] == "X"] == ["extend"]


class Warm:
    async def score(self) -> None:
        """Of an earlier run."""

    async def extend(self) -> None:
        """Of this run."""

    async def close(self) -> None: ...


def test_a_run_may_go_without_a_timeline_of_later_steps(home: Path) -> None:
    run = {"directory": str(home / "short-timeline"), "steps": 3, "timeline_steps": 1}
    _, _, events = accounted(config(home, "short-timeline", run=run))
    assert sum(event["name"] == "update" and event["pid"] == 0 for event in events) == 1


def test_roles_alike_share_one_measurement_of_their_rate(home: Path) -> None:
    """Engine and teacher have one precision and as many threads; the learner multiplies in another precision."""
    asked: list[tuple[str, str, bool]] = []

    class Member:
        def __init__(self, role: str) -> None:
            self.role = role

        async def ask(self, question: object, *, dtype: str, on_gpu: bool) -> float:
            asked.append((self.role, dtype, on_gpu))
            return 1e9 * len(asked)

    class Actors:
        first = staticmethod(Member)

    settings = config(home, "rates", learner={"backend": "single", "compute_dtype": "bfloat16"})
    found = asyncio.run(measure_rates(settings, cast(Cluster, Actors())))
    assert asked == [("rollout", "float32", False), ("learner", "bfloat16", False)]
    assert found == {"rollout": 1e9, "teacher": 1e9, "learner": 2e9}
