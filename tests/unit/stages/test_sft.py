"""`minidist sft` on rows of several sources, in this process: shares, labels, and a resumed run bit for bit."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from minidist.config import SftConfig, load
from minidist.preflight.plan import plan_sft
from minidist.stages import run_stage
from minidist.stages.sft import mixture
from tests.support.commands import start
from tests.support.tiny import tiny_model, tiny_renderer

KEPT = [{"prompt": f"{n}=", "answer": f"{n:03d}"[::-1]} for n in range(24)]
ORDINARY = [{"ask": f"{n}={n}=", "reply": f"{2 * n}"} for n in range(10)]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sft")
    tiny_model(seed=1).save_pretrained(root / "model")
    tiny_renderer().tokenizer.save_pretrained(root / "model")
    for name, rows in (("kept", KEPT), ("ordinary", ORDINARY), ("empty", [])):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def tree(home: Path, name: str, steps: int = 4, **data: Any) -> dict[str, Any]:
    mixed = {"path": str(home / "ordinary.jsonl"), "prompt": "{{ ask }}", "answer": "{{ reply }}", "share": 0.25}
    return {
        "stage": "sft",
        "run": {
            "directory": str(home / name),
            "steps": steps,
            "tensorboard": False,
            "deterministic": True,
            "checkpoint_every": 2,
        },
        "student": {"model": str(home / "model")},
        "data": {
            "train": {"path": str(home / "kept.jsonl"), "answer": "{{ answer }}"},
            "mix": {"ordinary": mixed},
            "max_prompt_tokens": 8,
            "max_tokens": 16,
            **data,
        },
        "learner": {"backend": "single", "optimizer": {"lr": 1e-2}},
        "cluster": {"roles": "local", "threads": 1},
        "batch_rows": 8,
    }


def trained(settings: dict[str, Any]) -> list[dict[str, float]]:
    """The metrics of the steps, but times and speeds."""
    asyncio.run(run_stage(SftConfig.model_validate(settings)))
    lines = (Path(settings["run"]["directory"]) / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not key.startswith(("time/", "speed/", "memory/"))}
        for line in lines
    ]


def texts(config: SftConfig, step: int) -> list[tuple[str, str]]:
    """Prompt and labels of each row of a step."""
    plan = plan_sft(config)
    decode = plan.renderer.tokenizer.decode
    rows = mixture(config, plan).at(step)
    return [(decode(row.tokens[: row.start]), decode(row.answer, skip_special_tokens=True)) for row in rows]


def test_every_step_has_its_share_of_each_source(home: Path) -> None:
    config = SftConfig.model_validate(tree(home, "shares"))
    for step in range(6):
        assert Counter(prompt.count("=") == 2 for prompt, _ in texts(config, step)) == {True: 2, False: 6}


def test_answers_alone_are_learnt_in_both_sources(home: Path) -> None:
    config = SftConfig.model_validate(tree(home, "labels"))
    answers = {row["prompt"]: row["answer"] for row in KEPT} | {row["ask"]: row["reply"] for row in ORDINARY}
    drawn = [pair for step in range(6) for pair in texts(config, step)]
    assert all(answers[prompt] == labels for prompt, labels in drawn)


def test_an_interrupted_run_with_a_mixture_resumes_bit_for_bit(home: Path) -> None:
    whole = trained(tree(home, "whole"))
    trained(tree(home, "short", steps=2))
    assert trained(tree(home, "short")) == whole
    files = [sorted((home / name / "final").glob("*.safetensors")) for name in ("whole", "short")]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]


def test_the_mixture_changes_what_is_learnt(home: Path) -> None:
    settings = tree(home, "alone")
    settings["data"].pop("mix")
    assert [step["loss/nats_per_token"] for step in trained(settings)] != [
        step["loss/nats_per_token"] for step in trained(tree(home, "mixed"))
    ]


def test_the_order_of_the_sources_in_the_file_does_not_matter(home: Path) -> None:
    mixed = tree(home, "order")["data"]["mix"]["ordinary"]
    named = {"a": mixed, "b": mixed | {"share": 0.125}}
    forward, backward = (
        SftConfig.model_validate(tree(home, "order", mix=dict(order))) for order in (named.items(), reversed(named.items()))
    )
    assert texts(forward, 3) == texts(backward, 3)


def test_the_plan_says_share_and_passes(home: Path) -> None:
    lines = plan_sft(SftConfig.model_validate(tree(home, "plan"))).lines
    [line] = [line for line in lines if line.startswith("mix.ordinary: 10 rows")]
    assert line.endswith("; 0.25 of the rows of a step, 0.8 passes in 4 steps")


@pytest.mark.parametrize(
    ("mix", "sentence"),
    [
        ({"share": 0}, "data.mix.ordinary.share is 0; input should be greater than 0"),
        ({"share": 1.0}, "data.mix.ordinary.share is 1.0; input should be less than 1"),
        ({"share": None}, "data.mix.ordinary.share is None"),
        ({"path": "HOME/empty.jsonl"}, "empty.jsonl has no rows"),
        ({"answer": None}, "data.mix.ordinary needs answer (train on answers) or text"),
        ({"prompt": "{{ question }}"}, "no column 'question', which prompt uses; its columns are ask, reply"),
        ({"share": 0.01}, "draw 0.32 rows of it; raise the share or run.steps, or leave the source out"),
    ],
)
def test_what_cannot_be_mixed_is_refused_before_it_starts(
    home: Path, tmp_path: Path, mix: dict[str, Any], sentence: str
) -> None:
    settings = tree(home, "refused")
    changes = {key: value.replace("HOME", str(home)) if isinstance(value, str) else value for key, value in mix.items()}
    settings["data"]["mix"]["ordinary"] |= changes
    file = tmp_path / "sft.yaml"
    file.write_text(yaml.safe_dump(settings))
    for verb in ("check", "sft"):
        command = start(verb, file).wait()
        assert command.returncode == 2 and sentence in command.stderr, command.stderr
        assert len(command.stderr.strip().splitlines()) == 1 and not (home / "refused").exists()


def test_shares_that_leave_nothing_are_refused(home: Path, tmp_path: Path) -> None:
    settings = tree(home, "refused")
    settings["data"]["mix"] = {name: settings["data"]["mix"]["ordinary"] | {"share": 0.5} for name in ("a", "b")}
    (tmp_path / "sft.yaml").write_text(yaml.safe_dump(settings))
    with pytest.raises(ValueError, match=r"shares of data.mix add up to 1, which leaves no row of data.train"):
        load(tmp_path / "sft.yaml", ())
