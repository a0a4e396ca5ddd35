"""The trainers' losses on given answers are the reverse KL of the answers' tokens, and of nothing else."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from minidist.losses import reverse_kl
from tests.benchmarks.peers.models import ModelSpec, alphabet, alphabet_tokenizer
from tests.benchmarks.peers.trl_side import PeerTask, loss_on
from tests.benchmarks.peers.workloads import EQUAL, PEERS, PeerSettings, Prepared

VOCABULARY = 60
PROMPTS = [alphabet(VOCABULARY)[:3], alphabet(VOCABULARY)[5:12]]
ANSWERS = [[4, 9, 7, 0], [8, 2]]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Two tiny models, of other sizes."""
    small: dict[str, Any] = {"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    small |= dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0)
    student = ModelSpec("gpt2", small, end_token=0, spread=1.0, seed=1)
    teacher = replace(student, shape=small | {"n_embd": 48, "n_layer": 2}, seed=2)
    names = {"tokenizer": lambda: alphabet_tokenizer(VOCABULARY), "prompts": lambda tokenizer: PROMPTS, "stopping_rate": 0.1}
    return replace(EQUAL, student=student, teacher=teacher, **names).prepare(tmp_path_factory.mktemp("tiny"))


def trained(prepared: Prepared, trainer: str, answers: list[list[int]], folder: Path) -> dict[str, float]:
    """What the trainer's own loss gives."""
    rows = [{"prompt": prompt, "tokens": answer} for prompt, answer in zip(PROMPTS, answers, strict=True)]
    file = folder / "answers.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = str(prepared.student), str(prepared.teacher), str(prepared.prompts)
    task = PeerTask(trainer, *paths, 8, PeerSettings(32), str(folder / "output.json"), 1)
    return loss_on(task, file)


def expected(prepared: Prepared) -> float:
    """Reverse KL of all answer tokens, nats a token, by minidist's function and a forward pass of each row alone."""
    student, teacher = (AutoModelForCausalLM.from_pretrained(path) for path in (prepared.student, prepared.teacher))
    tokenizer, total = alphabet_tokenizer(VOCABULARY), 0.0
    for prompt, answer in zip(PROMPTS, ANSWERS, strict=True):
        ids = torch.tensor([tokenizer(prompt)["input_ids"] + answer])

        def logprobs(model: Any, ids: torch.Tensor = ids, count: int = len(answer)) -> torch.Tensor:
            return model(ids).logits[0, -count - 1 : -1].log_softmax(-1)

        with torch.no_grad():
            total += float(reverse_kl(logprobs(student), logprobs(teacher)).sum())
    return total / sum(map(len, ANSWERS))


@pytest.mark.parametrize("trainer", PEERS)
def test_a_trainers_loss_is_the_reverse_kl_of_the_answers(prepared: Prepared, trainer: str, tmp_path: Path) -> None:
    found = trained(prepared, trainer, ANSWERS, tmp_path)
    assert found["tokens"] == 6
    assert found["loss"] == pytest.approx(expected(prepared), rel=1e-5)


def test_another_answer_has_another_loss(prepared: Prepared, tmp_path: Path) -> None:
    found = trained(prepared, "distillation", [[5, 9, 7, 0], [8, 2]], tmp_path)
    assert found["loss"] != pytest.approx(expected(prepared), rel=1e-3)
