"""Score once, train without the teacher: the same losses, no teacher in any process, and refusals before anything starts."""

import asyncio
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from minidist import cli
from minidist.cluster.cluster import Cluster
from minidist.config import DistillConfig, ScoreConfig
from minidist.experience.source import Collector
from minidist.preflight.plan import plan_score
from minidist.run.accounting import PREFIXES
from minidist.stages import run_stage
from minidist.teachers.cache.store import ScoreCache
from minidist.teachers.hf import HFTeacher
from minidist.types import Rollout, TeacherScores
from tests.support.tiny import tiny_model, tiny_renderer

ROWS = [{"q": f"{n}=", "a": "0123456789"[: n % 7 + 1], "t": "7" * (30 + n)} for n in range(12)]
LIMIT = 5  # cuts some of the answers


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("offline")
    for seed, name in enumerate(("student", "teacher", "other")):
        tiny_model(seed=seed, hidden_size=64 if name == "student" else 96).save_pretrained(root / name)
        tiny_renderer().tokenizer.save_pretrained(root / name)
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return root


def score_tree(home: Path, name: str, **teacher: Any) -> dict[str, Any]:
    rows = {"path": str(home / "rows.jsonl"), "prompt": "{{ q }}"}
    return {
        "stage": "score",
        "run": {"directory": str(home / f"{name}-score")},
        "student": {"model": str(home / "student")},
        "teacher": {"model": str(home / "teacher"), **teacher},
        "data": {
            "sources": {
                "gold": rows | {"answer": "{{ a }}", "max_new_tokens": LIMIT},
                "text": {"path": rows["path"], "text": "{{ t }}", "max_tokens": 16},
            },
            "max_prompt_tokens": 8,
        },
        "cache": str(home / f"{name}-cache"),
        "batch_rows": 8,
        "shard_rows": 10,
        "cluster": {"roles": "local", "threads": 1},
    }


def distill_tree(home: Path, name: str, **teacher: Any) -> dict[str, Any]:
    kind = "kd" if teacher.get("payload", "hidden") == "hidden" else "forward_kl"
    return {
        "stage": "distill",
        "run": {"directory": str(home / name), "steps": 4},
        "student": {"model": str(home / "student")},
        "teacher": {"model": str(home / "teacher"), **teacher},
        "data": {
            "prompts": {"path": str(home / "rows.jsonl"), "prompt": "{{ q }}", "answer": "{{ a }}"},
            "max_prompt_tokens": 8,
        },
        "objective": {"type": "forward_kl"},
        "prefix": {"student": 0, "dataset": 1},
        "streams": {
            "text": {
                "data": {"path": str(home / "rows.jsonl"), "text": "{{ t }}"},
                "objective": {"type": kind},
                "rows": 4,
                "max_tokens": 16,
            }
        },
        "rollout": {"engine": "hf", "prompts_per_step": 4, "max_new_tokens": LIMIT},
        "learner": {"backend": "single", "optimizer": {"lr": 1e-3}},
        "cluster": {"roles": "local", "threads": 1},
    }


def score(tree: dict[str, Any]) -> dict[str, Any]:
    return asyncio.run(run_stage(ScoreConfig.model_validate(tree)))


def losses(tree: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, float]]]:
    summary = asyncio.run(run_stage(DistillConfig.model_validate(tree)))
    lines = (Path(tree["run"]["directory"]) / "metrics.jsonl").read_text().splitlines()
    return summary, [json.loads(line) for line in lines]


@pytest.mark.parametrize("teacher", [{}, {"payload": "top_k", "top_k": 4}], ids=["hidden", "top_k"])
def test_offline_training_has_the_losses_of_a_live_teacher(
    home: Path, monkeypatch: pytest.MonkeyPatch, teacher: dict[str, Any]
) -> None:
    name = teacher.get("payload", "hidden")
    done = score(score_tree(home, name, **teacher))
    pieces = sum(-(-(len(row["t"]) + 1 - 1) // 15) for row in ROWS)
    assert done["rows_scored"] == done["rows"] == len(ScoreCache(home / f"{name}-cache"))
    assert done["rows"] <= 12 + pieces and done["teacher"]["class"] == "HFTeacher"
    _, live = losses(distill_tree(home, f"{name}-live", **teacher))

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("a teacher was made")

    monkeypatch.setattr(HFTeacher, "__init__", forbidden)
    offline = distill_tree(home, f"{name}-offline", **teacher, backend="cache", cache=str(home / f"{name}-cache"))
    summary, cached = losses(offline)
    assert summary["teacher"]["class"] == "CachedTeacher" and summary["teacher"]["rows"] == done["rows"]
    assert len(live) == len(cached) == 4
    for here, there in zip(cached, live, strict=True):
        figures, same = ({key: line[key] for key in line if not key.startswith(PREFIXES)} for line in (here, there))
        assert figures == pytest.approx(same, rel=2e-4, abs=1e-6)
    config = DistillConfig.model_validate(offline)
    assert config.asks_actors and config.hosted == ("learner",)


def test_a_stopped_run_keeps_what_it_scored_and_goes_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree, asked = score_tree(home, "stopped"), []
    scoring = HFTeacher.score

    async def stopping(self: HFTeacher, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        asked.append(len(rollouts))
        if len(asked) == 2:
            next(task for task in asyncio.all_tasks() if "run_stage" in repr(task)).cancel()  # what Ctrl-C does
        return await scoring(self, rollouts)

    monkeypatch.setattr(HFTeacher, "score", stopping)
    with pytest.raises(asyncio.CancelledError):
        score(tree)
    assert asked == [8, 8] and len(ScoreCache(home / "stopped-cache")) == 16  # the batch at hand was finished
    done = score(tree)
    assert done["rows_scored"] == done["rows"] - 16 and sum(asked) == done["rows"]
    again = tree | {"run": {"directory": str(home / "again")}}
    assert score(again)["rows_scored"] == 0 and sum(asked) == done["rows"]


def test_check_tells_rows_and_bytes(home: Path) -> None:
    lines = plan_score(ScoreConfig.model_validate(score_tree(home, "planned"))).lines
    assert "gold: 12 rows of" in " ".join(lines) and "tokens to score (hidden): up to 0.1 MiB in" in lines[-1]
    assert not (home / "planned-cache").exists()


@pytest.fixture(scope="module")
def filled(home: Path) -> Path:
    score(score_tree(home, "filled"))
    return home / "filled-cache"


CACHED: dict[str, str] = {
    "teacher.model={home}/other": "holds scores of another teacher, {home}/teacher, whose configuration or weights differ",
    "teacher.payload=top_k": "teacher.payload is top_k, and the cache {home}/filled-cache was written with hidden; set teacher",
    "teacher.dtype=bfloat16": "teacher.dtype is bfloat16, and the cache {home}/filled-cache was written with float32",
    "teacher.cache={home}/nowhere": "there is no score cache at {home}/nowhere",
    "teacher.cache=null": "teacher.cache is missing, and teacher.backend=cache needs it",
    "teacher.backend=hf": "teacher.cache belongs to teacher.backend=cache, and this teacher is of backend=hf",
    "rollout.max_new_tokens=6": "lacks 4 of 12 rows of data.prompts; the first is row 4 ('4=', 6 labels). Name the same data",
    "data.prompts.prompt='0{{{{ q }}}}'": "lacks 12 of 12 rows of data.prompts; the first is row 0 ('00='",
    "streams.text.max_tokens=15": "rows of streams.text; the first is row",
    "prefix={{student: 1, dataset: 0}}": "text written during training; set prefix.student=0 and prefix.dataset=1",
    "streams.more={{writer: teacher}}": "a stream uses text written during training",
    "prefix={{student: 0, teacher: 0.5, dataset: 0.5}}": "prefix or a stream uses text written during training",
    "evaluation.every=2": "evaluation.every needs a live teacher, and teacher.backend is cache; leave it out",
    "cluster={{roles: ray, teacher: {{actors: 2}}}}": "cluster.teacher.actors is 2, and teacher.backend cache starts no",
    "cluster={{roles: ray, teacher: {{shards: 2}}}}": "cluster.teacher.shards splits a teacher of backend hf, not of cache",
}


@pytest.mark.parametrize("override", CACHED)
def test_a_run_the_cache_cannot_serve_is_one_sentence(
    home: Path, filled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    tree = distill_tree(home, "refused", backend="cache", cache=str(filled))
    line = refused(home, monkeypatch, capsys, tree, override.format(home=home))
    assert CACHED[override].format(home=home) in line


def test_a_damaged_cache_is_one_sentence(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    score(score_tree(home, "damaged"))
    shard = home / "damaged-cache" / "scores-00000.safetensors"
    shard.write_bytes(shard.read_bytes()[:-1])
    tree = distill_tree(home, "refused", backend="cache", cache=str(shard.parent))
    assert "scores-00000.safetensors has changed" in refused(home, monkeypatch, capsys, tree)


SCORING: dict[str, str] = {
    "teacher.model={home}/other": "holds scores of another teacher, {home}/teacher, .*; set another cache",
    "teacher.payload=sampled": "teacher.payload is sampled, and the cache .* written with hidden",
    "teacher.backend=cache": "teacher.cache is missing, and teacher.backend=cache needs it",
    "teacher={{model: x, backend: cache, cache: y}}": "score needs a live teacher; set teacher.backend=hf, vllm or server",
    "cache={home}/filled2-score/cache": "lies in run.directory, whose files a new start deletes; set cache to",
    "cache={home}/student": "holds files but no cache of scores; set it to another directory",
    "cache={home}/rows.jsonl": "rows.jsonl is a file; set it to a directory",
    "data.sources={{}}": "data.sources is",
    "data.sources.gold.answer=null": "a source to score needs answer or text",
    "data.sources.text.max_new_tokens=4": "plain text is cut by max_tokens",
    "data.sources.gold.max_tokns=4": "unknown key data.sources",
    "data.sources.text.max_tokens=4000": "the longest row of data.sources is 4000, more than the model's context of 128",
    "output=list": "output is 'list'",
}


@pytest.mark.parametrize("override", SCORING)
def test_what_cannot_be_scored_is_one_sentence(
    home: Path, filled: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], override: str
) -> None:
    tree = score_tree(home, "filled2") | {"cache": str(filled)}
    line = refused(home, monkeypatch, capsys, tree, override.format(home=home))
    assert re.search(SCORING[override].format(home=home), line), line


def refused(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tree: dict[str, Any], *overrides: str
) -> str:
    """The one line of a refusal, code 2, before a process starts or a row is drawn."""

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("something started")

    monkeypatch.setattr(Cluster, "__aenter__", forbidden)
    monkeypatch.setattr(Collector, "next", forbidden)
    file = home / "refused.yaml"
    file.write_text(yaml.safe_dump(tree))
    monkeypatch.setattr("sys.argv", ["minidist", tree["stage"], str(file), *overrides])
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        cli.main()
    errors = capsys.readouterr().err.splitlines()
    assert caught.value.code == 2 and len(errors) == 1, errors
    return errors[0]


def test_evaluate_wants_a_live_teacher(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    tree = {
        "stage": "evaluate",
        "run": {"directory": str(home / "evaluated")},
        "models": {"student": str(home / "student")},
        "teacher": {"model": str(home / "teacher"), "backend": "cache", "cache": str(home / "x")},
        "data": {"test": {"path": str(home / "rows.jsonl"), "prompt": "{{ q }}"}},
    }
    assert "evaluate needs a live teacher to score new text" in refused(home, monkeypatch, capsys, tree)
