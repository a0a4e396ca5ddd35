"""A transformers teacher: every payload is that of the model run on each row alone, in the rollouts' order."""

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from minidist.data.batching import collate
from minidist.learners.group import OneProcess
from minidist.models.arrays import to_tensor
from minidist.models.heads import head_of
from minidist.rollout.hf import sample
from minidist.teachers.hf import HFTeacher
from minidist.types import Payload, Rollout, Sampling, TeacherScores
from tests.support.config import teacher_config
from tests.support.tiny import VOCABULARY, random_rollouts, row_logits, tiny_model, tiny_renderer

LENGTHS = [(3, 4), (1, 9), (6, 1), (2, 2), (5, 8)]
ROLLOUTS = random_rollouts(LENGTHS)
PADDED = VOCABULARY + 7  # rows of an embedding that padding has widened


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    path, model = tmp_path_factory.mktemp("teacher"), tiny_model(vocabulary=PADDED)
    model.save_pretrained(path)
    return path, model


def scores(path: Path, **fields: Any) -> list[TeacherScores]:
    async def ask() -> list[TeacherScores]:
        config = teacher_config(model=str(path), **({"batch_tokens": 20} | fields))
        teacher = HFTeacher(config, tiny_renderer(), vocabulary=VOCABULARY)
        found = await teacher.score(ROLLOUTS)
        await teacher.close()
        return found

    return asyncio.run(ask())


@torch.no_grad()
def exact(model: PreTrainedModel, rollout: Rollout) -> torch.Tensor:
    """Log-probabilities [T, V] of the shared vocabulary at the rollout's tokens."""
    row = collate("x", [rollout], [None], objective="").rows[0]  # type: ignore[list-item]
    return row_logits(model, row)[:, :VOCABULARY].log_softmax(-1)


@pytest.mark.parametrize("payload", ["sampled", "top_k"])
def test_logprobs_of_the_given_tokens(saved: tuple[Path, PreTrainedModel], payload: Literal["sampled", "top_k"]) -> None:
    path, model = saved
    for rollout, found in zip(ROLLOUTS, scores(path, payload=payload), strict=True):
        wanted = exact(model, rollout)[range(len(rollout.tokens)), rollout.tokens.tolist()]
        assert found.logprobs is not None
        assert np.abs(found.logprobs - wanted.numpy()).max() < 1e-5


@pytest.mark.parametrize(("asked", "given"), [(3, 3), (VOCABULARY, VOCABULARY), (99, VOCABULARY)])
def test_top_k_in_falling_order(saved: tuple[Path, PreTrainedModel], asked: int, given: int) -> None:
    path, model = saved
    for rollout, found in zip(ROLLOUTS, scores(path, payload="top_k", top_k=asked), strict=True):
        table = exact(model, rollout)
        assert found.payload is Payload.TOP_K
        assert found.top_ids is not None and found.top_ids.shape == (len(rollout.tokens), given)
        falling = table.sort(-1, descending=True).values[:, :given].numpy()
        assert np.abs(found.top_logprobs - falling).max() < 1e-5
        assert np.abs(found.top_logprobs - np.take_along_axis(table.numpy(), found.top_ids, -1)).max() < 1e-5
        assert all(len(set(ids)) == given for ids in found.top_ids.tolist())


@pytest.mark.parametrize(("dtype", "near"), [("float32", 1e-5), ("bfloat16", 0.5)])
def test_hidden_states_and_head_give_the_distribution(
    saved: tuple[Path, PreTrainedModel], dtype: Literal["float32", "bfloat16"], near: float
) -> None:
    path, model = saved
    for rollout, found in zip(ROLLOUTS, scores(path, dtype=dtype), strict=True):
        assert found.hidden is not None and found.hidden_dtype == dtype
        with torch.no_grad():
            table = head_of(model, VOCABULARY)(to_tensor(found.hidden, found.hidden_dtype)).log_softmax(-1)
        assert (table - exact(model, rollout)).abs().max() < near


def test_extend_writes_with_the_same_weights(saved: tuple[Path, PreTrainedModel]) -> None:
    path, model = saved
    prompts = [rollout.prompt for rollout in ROLLOUTS]
    sampling = Sampling(samples=2, max_new_tokens=5, seed=4)

    async def write() -> list[Rollout]:
        teacher = HFTeacher(teacher_config(model=str(path)), tiny_renderer(), vocabulary=VOCABULARY)
        return await teacher.extend(prompts, sampling)

    reference = sample(model, tiny_renderer(), prompts, sampling, version=0, vocabulary=VOCABULARY)
    for got, want in zip(asyncio.run(write()), reference, strict=True):
        assert got.tokens.tolist() == want.tokens.tolist()


def test_padded_ids_are_never_sampled(saved: tuple[Path, PreTrainedModel]) -> None:
    """A padded id belongs to no token, and the student's head may not have it."""
    prompts = [rollout.prompt for rollout in ROLLOUTS]

    async def write() -> list[Rollout]:
        teacher = HFTeacher(teacher_config(model=str(saved[0])), tiny_renderer(), vocabulary=VOCABULARY)
        return await teacher.extend(prompts, Sampling(samples=8, max_new_tokens=8))

    assert max(int(rollout.tokens.max()) for rollout in asyncio.run(write())) < VOCABULARY


def test_ranks_agree_on_the_number_of_passes_before_the_first(saved: tuple[Path, PreTrainedModel]) -> None:
    """A pass waits for the parts of all ranks, so a rank that has none to make must know by then that the others have."""
    calls: list[str] = []

    class OtherRankHasTwoMore(OneProcess):
        def largest(self, values: Sequence[int]) -> list[int]:
            calls.append("largest")
            return [value + 2 for value in values]

    async def ask() -> list[TeacherScores]:
        teacher = HFTeacher(teacher_config(model=str(saved[0]), batch_tokens=20), tiny_renderer(), vocabulary=VOCABULARY)
        teacher._group = OtherRankHasTwoMore()
        teacher._scorer.register_forward_hook(lambda *_: calls.append("pass"))
        found = await teacher.score(ROLLOUTS[:1])
        await teacher.close()
        return found

    assert len(asyncio.run(ask())) == 1
    assert calls == ["largest", "pass", "pass", "pass"]
