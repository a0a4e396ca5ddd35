"""`minidist score` with output: table: scores equal a forward pass, and what generate wrote is scored by its ids."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from minidist.data.tasks import generate
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
