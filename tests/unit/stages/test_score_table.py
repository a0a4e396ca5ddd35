"""`minidist score` with output: table: scores equal a forward pass, and what generate wrote is scored by its ids."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from minidist.data.tasks import generate
from tests.support.chat_server import chat_server
from tests.support.commands import start
from tests.support.tiny import tiny_model, tiny_renderer


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    tiny_renderer().tokenizer.save_pretrained(folder)
    return folder


def write(folder: Path, name: str, config: dict[str, Any], rows: list[dict[str, Any]]) -> Path:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {"run": {"directory": str(folder / name), "tensorboard": False}, "cluster": {"roles": "local"}}
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump({**common, "files": {"shard_rows": 8, "tokens": True}, **config}))
    return file


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for part in sorted(folder.glob("rows/part-*")) for line in part.read_text().splitlines()]


def test_answers_that_were_generated_are_scored_by_their_ids_as_a_forward_pass_scores_them(tmp_path: Path, model: Path) -> None:
    source = {"path": str(tmp_path / "rows.jsonl")}
    drawn = {"engine": "hf", "samples_per_prompt": 2, "max_new_tokens": 6}
    rows = generate("addition", split="train", rows=20, seed=0)
    file = write(
        tmp_path,
        "made",
        {
            "stage": "generate",
            "model": {"model": str(model)},
            "data": {"rows": source, "max_prompt_tokens": 32},
            "rollout": drawn,
        },
        rows,
    )
    assert (command := start("generate", file).wait()).returncode == 0, command.stderr
    made = rows_of(tmp_path / "made")
    scored = {
        "stage": "score",
        "output": "table",
        "teacher": {"model": str(model), "payload": "sampled"},
        "data": {"rows": {"path": str(tmp_path / "made/rows")}},
        "answers": "answers",
        "ids": "token_ids",
        "logprobs": "logprobs",
        "key": "key",
        "max_tokens": 64,
    }
    assert (command := start("score", write(tmp_path, "scored", scored, rows)).wait()).returncode == 0, command.stderr
    found = rows_of(tmp_path / "scored")
    assert [row["key"] for row in found] == [row["key"] for row in made] and len(found) == 20
    teacher, renderer = tiny_model(), tiny_renderer()
    for row in found:
        prompt = renderer.prompt(row["prompt"]).tolist()
        for ids, logprobs, total in zip(row["token_ids"], row["teacher_logprobs"], row["teacher_logprob_sums"], strict=True):
            with torch.no_grad():
                outputs = torch.log_softmax(teacher(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].double(), -1)
            exact = outputs.gather(-1, torch.tensor(ids)[:, None])[:, 0].numpy()
            assert np.allclose(logprobs, exact, atol=1e-4) and np.isclose(total, exact.sum(), atol=1e-3)
        # The teacher is the model that wrote: every estimate of the divergence is zero.
        assert np.allclose([*row["kl_k1"], *row["kl_k2"], *row["kl_k3"]], 0, atol=1e-4)
    summary = json.loads((tmp_path / "scored/summary.json").read_text())
    assert summary["rows"] == 20 and summary["tokens"] == sum(len(ids) for row in made for ids in row["token_ids"])


def judged(folder: Path, model: Path, name: str, judge: dict[str, Any], **changes: Any) -> Path:
    """Answers of 12 rows, two each, one of which is right, for a teacher and a judge."""
    rows = [{"prompt": f"{n}+{n}=", "answers": [str(2 * n), "11"], "gold": str(2 * n)} for n in range(12)]
    source = {"path": str(folder / "rows.jsonl")}
    config = {
        "stage": "score",
        "output": "table",
        "teacher": {"model": str(model), "payload": "sampled"},
        "data": {"rows": source},
        "answers": "answers",
        "grade": {"gold": "gold", "form": "number"},
        "judge": judge,
        "max_tokens": 64,
    }
    return write(folder, name, config | changes, rows)


def verdict(text: str, seed: int) -> str:
    """Of the packaged prompt: whether the sum is right."""
    prompt, answer = (text.split(f"{name}: ")[1].split("\n")[0] for name in ("Question", "Answer"))
    left = int(prompt.split("+")[0])
    return f"I add {left} and {left}. Score: {10 if int(answer) == 2 * left else 1}"


def test_a_server_judges_each_answer_beside_its_grade(tmp_path: Path, model: Path) -> None:
    with chat_server(verdict) as server:
        file = judged(tmp_path, model, "run", {"server": {"url": server.url}})
        assert (command := start("score", file).wait()).returncode == 0, command.stderr
        assert len(server.requests) == 24 and {each["temperature"] for each in server.requests} == {0}
        again = judged(tmp_path, model, "again", {"server": {"url": server.url}})
        assert start("score", again).wait().returncode == 0
    found = rows_of(tmp_path / "run")
    for row in found:
        assert row["verdict"] == ["10" if right else "1" for right in row["right"]]
        assert row["verdict_reply"][0].startswith("I add") and len(row["teacher_logprob_sums"]) == 2
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    right = sum(sum(row["right"]) for row in found)
    assert summary["verdicts"] == {"10": right, "1": 24 - right} and summary["verdicts_unread"] == 0
    assert summary["verdict_mean"] == pytest.approx((10 * right + 24 - right) / 24)
    assert found == rows_of(tmp_path / "again")  # the same bytes again


def test_a_server_that_dies_is_named_and_the_job_goes_on_later(tmp_path: Path, model: Path) -> None:
    with chat_server(verdict) as server:
        server.fail = lambda number: 503 if number >= 16 else 0
        judge = {"server": {"url": server.url, "attempts": 2, "pause_s": 0.1, "requests": 1}}
        file = judged(tmp_path, model, "run", judge, files={"shard_rows": 4, "rows_in_flight": 4})
        command = start("score", file).wait()
        assert command.returncode == 1 and "gave no usable answer in 2 attempts" in command.stderr, command.stderr
        assert "Traceback" not in command.stderr
        before = len(server.requests)
        server.fail = lambda number: 0
        assert start("score", file).wait().returncode == 0
        assert len(server.requests) - before < 24
    assert [row["key"] for row in rows_of(tmp_path / "run")] == [str(number) for number in range(12)]


def test_a_model_in_this_process_judges(tmp_path: Path, model: Path) -> None:
    template = tmp_path / "own.jinja"
    template.write_text("{{ response }}={{ gold }}=")
    judge = {
        "model": {"model": str(model)},
        "rollout": {"engine": "hf", "max_new_tokens": 4},
        "template": str(template),
        "verdict": r"\d",
        "max_prompt_tokens": 16,
    }
    file = judged(tmp_path, model, "run", judge)
    assert (command := start("score", file).wait()).returncode == 0, command.stderr
    teacher, renderer = tiny_model(), tiny_renderer()
    for row in rows_of(tmp_path / "run"):
        for text, reply, found in zip(row["answers"], row["verdict_reply"], row["verdict"], strict=True):
            tokens = torch.tensor(renderer.prompt(f"{text}={row['gold']}=")[None].astype(np.int64))
            with torch.no_grad():
                first = int(teacher(tokens).logits[0, -1].argmax())
            greedy = renderer.tokenizer.decode([first], skip_special_tokens=True)
            assert reply.startswith(greedy) and found == next((each for each in reversed(reply) if each.isdigit()), None)


@pytest.mark.parametrize(
    ("judge", "sentence"),
    [
        ({}, "set exactly one of judge.model"),
        ({"server": {"url": "http://127.0.0.1:9"}, "verdict": "("}, "judge.verdict '(' is no regular expression"),
        (
            {"server": {"url": "http://127.0.0.1:9"}, "template": "/nowhere.jinja"},
            "judge.template: /nowhere.jinja cannot be read",
        ),
        ({"server": {"url": "http://127.0.0.1:9"}, "template": "FOLDER/bare.jinja"}, "does not use {{ response }}"),
        (
            {"server": {"url": "http://127.0.0.1:9"}, "template": "FOLDER/other.jinja"},
            "no column 'label', which judge.template",
        ),
        ({"model": {"model": "MODEL"}, "rollout": {"engine": "hf"}}, "judge.max_prompt_tokens + judge.rollout.max_new_tokens"),
    ],
)
def test_a_judge_that_cannot_judge_is_refused_before_it_starts(
    tmp_path: Path, model: Path, judge: dict[str, Any], sentence: str
) -> None:
    (tmp_path / "bare.jinja").write_text("Is it right?")
    (tmp_path / "other.jinja").write_text("{{ response }} {{ label }}")
    filled = json.loads(json.dumps(judge).replace("FOLDER", str(tmp_path)).replace("MODEL", str(model)))
    for verb in ("check", "score"):
        command = start(verb, judged(tmp_path, model, "run", filled)).wait()
        assert command.returncode == 2 and sentence in command.stderr, command.stderr
        assert len(command.stderr.strip().splitlines()) == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"teacher": {"payload": "hidden"}}, "set teacher.payload=sampled"),
        ({"answers": "answers"}, "set exactly one of answers"),
        ({"grade": {"gold": "label"}}, "no column 'label', which grade.gold names; its columns are prompt, answer"),
        ({"grade": {"gold": "prompt", "form": "yes_no"}}, "cannot be used: its gold answer '1+2=' is none of the form yes_no"),
        ({"logprobs": "logprobs"}, "set ids, the column that holds them"),
        ({"data": {"rows": {"answer": "{{ label }}"}}}, "no column 'label'"),
    ],
)
def test_what_cannot_be_scored_is_refused_before_it_starts(
    tmp_path: Path, model: Path, changes: dict[str, Any], sentence: str
) -> None:
    config: dict[str, Any] = {
        "stage": "score",
        "output": "table",
        "teacher": {"model": str(model), "payload": "sampled"} | changes.pop("teacher", {}),
        "data": {
            "rows": {"path": str(tmp_path / "rows.jsonl"), "answer": "{{ answer }}"} | changes.pop("data", {}).get("rows", {})
        },
        **changes,
    }
    command = start("score", write(tmp_path, "run", config, [{"prompt": "1+2=", "answer": "3"}])).wait()
    assert command.returncode == 2 and sentence in command.stderr, command.stderr
    assert not (tmp_path / "run").exists()
