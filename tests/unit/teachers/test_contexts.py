"""Teachers that read prompts of their own: scores and text after those prompts, of exactly the student's answer tokens."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import minidist.teachers.server.connection as module
from minidist.models.heads import head_of
from minidist.protocols import Teacher
from minidist.rollout.hf import sample
from minidist.teachers.cache.store import key_of
from minidist.teachers.contexts import extended
from minidist.teachers.hf import HFTeacher
from minidist.teachers.server.teacher import ServerTeacher
from minidist.types import Prompt, Rollout, Sampling, TeacherScores
from tests.support.config import teacher_config
from tests.support.server import PADDED, Server, config, table
from tests.support.tiny import VOCABULARY, random_rollouts, tiny_model, tiny_renderer

PLAIN = random_rollouts([(3, 4), (1, 9), (6, 1), (2, 2), (5, 8)])
CONTEXTS = [each.prompt.tokens for each in random_rollouts([(9, 1), (2, 1), (4, 1), (11, 1), (3, 1)], seed=7)]
SAMPLING = Sampling(samples=2, max_new_tokens=5, seed=4)
PAYLOADS: list[dict[str, Any]] = [{"payload": "sampled"}, {"payload": "top_k", "top_k": 4}, {"payload": "hidden"}]
T = TypeVar("T")


def within(rollouts: Sequence[Rollout], contexts: Sequence[np.ndarray]) -> list[Rollout]:
    """The rollouts with other prompts for the teacher."""
    return [
        replace(rollout, prompt=replace(rollout.prompt, teacher_tokens=tokens, teacher_text="read by the teacher"))
        for rollout, tokens in zip(rollouts, contexts, strict=True)
    ]


READ = within(PLAIN, CONTEXTS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, PreTrainedModel]:
    path, model = tmp_path_factory.mktemp("teacher"), tiny_model(vocabulary=PADDED)
    model.save_pretrained(path)
    return path, model


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(module, "_FIRST_PAUSE_S", 0.01)
    made = Server()
    yield made
    made.close()


def ask(teacher: Callable[[], Any], call: Callable[[Teacher], Awaitable[T]]) -> T:
    async def run() -> T:
        made = teacher()
        try:
            return await call(made)
        finally:
            await made.close()

    return asyncio.run(run())


def of_model(path: Path, **options: Any) -> Callable[[], HFTeacher]:
    return lambda: HFTeacher(
        teacher_config(model=str(path), batch_tokens=20, **options), tiny_renderer(), vocabulary=VOCABULARY
    )


def scored(path: Path, rollouts: Sequence[Rollout], **options: Any) -> list[TeacherScores]:
    return ask(of_model(path, **options), lambda teacher: teacher.score(rollouts))


@torch.no_grad()
def forward(model: PreTrainedModel, context: np.ndarray, answer: np.ndarray) -> torch.Tensor:
    """Log-probabilities [T, V] at the answer's tokens, from the model run on the context and the answer."""
    ids = torch.tensor([[*context.tolist(), *answer.tolist()]])
    logits = model(input_ids=ids, use_cache=False).logits[0]
    return logits[len(context) - 1 : len(context) + len(answer) - 1, :VOCABULARY].log_softmax(-1)


@pytest.mark.parametrize("options", PAYLOADS, ids=str)
def test_scores_are_those_of_a_forward_pass_over_the_context_and_the_answer(
    saved: tuple[Path, PreTrainedModel], options: dict[str, Any]
) -> None:
    path, model = saved
    for rollout, context, scores in zip(PLAIN, CONTEXTS, scored(path, READ, **options), strict=True):
        wanted = forward(model, context, rollout.tokens)
        if scores.hidden is not None:
            with torch.no_grad():
                given = head_of(model, VOCABULARY)(torch.tensor(scores.hidden)).log_softmax(-1)
            assert (given - wanted).abs().max() < 1e-5
            continue
        assert scores.logprobs is not None
        assert np.abs(scores.logprobs - wanted.numpy()[range(len(rollout.tokens)), rollout.tokens]).max() < 1e-5
        if scores.top_ids is not None:
            assert np.abs(scores.top_logprobs - np.take_along_axis(wanted.numpy(), scores.top_ids, -1)).max() < 1e-5


@pytest.mark.parametrize("options", PAYLOADS, ids=str)
def test_an_equal_context_gives_the_same_bits(saved: tuple[Path, PreTrainedModel], options: dict[str, Any]) -> None:
    equal = within(PLAIN, [rollout.prompt.tokens.copy() for rollout in PLAIN])
    plain, same = (scored(saved[0], rollouts, **options) for rollouts in (PLAIN, equal))
    for left, right in zip(plain, same, strict=True):
        for field in fields(TeacherScores):
            assert np.array_equal(getattr(left, field.name), getattr(right, field.name)), field.name


def test_another_context_changes_the_scores_of_the_answer(saved: tuple[Path, PreTrainedModel]) -> None:
    plain, read = (scored(saved[0], rollouts, payload="sampled") for rollouts in (PLAIN, READ))
    for left, right in zip(plain, read, strict=True):
        assert left.logprobs is not None and right.logprobs is not None and left.logprobs.shape == right.logprobs.shape
        assert np.abs(left.logprobs - right.logprobs).max() > 0.01


def test_the_teacher_writes_after_its_own_prompt_and_answers_the_students(saved: tuple[Path, PreTrainedModel]) -> None:
    path, model = saved
    prompts = [rollout.prompt for rollout in READ]
    written = ask(of_model(path), lambda teacher: teacher.extend(prompts, SAMPLING))
    own = [replace(prompt, tokens=tokens) for prompt, tokens in zip(prompts, CONTEXTS, strict=True)]
    wanted = sample(model, tiny_renderer(), own, SAMPLING, version=0, vocabulary=VOCABULARY)
    assert [rollout.tokens.tolist() for rollout in written] == [rollout.tokens.tolist() for rollout in wanted]
    assert all(rollout.prompt is prompt for rollout, (prompt, _) in zip(written, SAMPLING.jobs(prompts), strict=True))


def test_text_written_for_plain_prompts_is_passed_on_as_it_is() -> None:
    prompts = [rollout.prompt for rollout in PLAIN]

    async def write(asked: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        assert all(one is two for one, two in zip(asked, prompts, strict=True))
        return PLAIN

    found = asyncio.run(extended(write, prompts, replace(SAMPLING, samples=1)))
    assert all(one is two for one, two in zip(found, PLAIN, strict=True))


@pytest.mark.parametrize("payload", ["sampled", "top_k"])
def test_a_server_reads_the_context_and_scores_the_answer(
    saved: tuple[Path, PreTrainedModel], server: Server, payload: str
) -> None:
    settings = config(str(saved[0]), server, payload=payload, top_k=4)
    made = lambda: ServerTeacher(settings, tiny_renderer(), vocabulary=VOCABULARY)  # noqa: E731
    for rollout, context, scores in zip(PLAIN, CONTEXTS, ask(made, lambda teacher: teacher.score(READ)), strict=True):
        sequence = [*context.tolist(), *rollout.tokens.tolist()]
        lines = np.array([table(sequence, position) for position in range(len(context), len(sequence))])
        assert scores.logprobs is not None
        assert np.abs(scores.logprobs - lines[range(len(lines)), rollout.tokens]).max() < 1e-6


def test_a_server_writes_after_the_context(saved: tuple[Path, PreTrainedModel], server: Server) -> None:
    made = lambda: ServerTeacher(config(str(saved[0]), server), tiny_renderer(), vocabulary=None)  # noqa: E731
    prompts = [rollout.prompt for rollout in READ]
    written = ask(made, lambda teacher: teacher.extend(prompts, SAMPLING))
    sent = sorted(tuple(body["prompt"]) for path, body, _ in server.seen if path == "/v1/completions")
    assert sent == sorted(tuple(context.tolist()) for context in CONTEXTS for _ in range(2))
    assert all(rollout.prompt is prompt for rollout, (prompt, _) in zip(written, SAMPLING.jobs(prompts), strict=True))


def test_a_cache_keeps_rows_in_other_contexts_apart() -> None:
    keys = {key_of(rollout) for rollout in (*PLAIN, *READ, *within(PLAIN, CONTEXTS[::-1]))}
    assert len(keys) == 3 * len(PLAIN) - 1  # the middle context is its own mirror image
    assert key_of(READ[0]) == key_of(replace(PLAIN[0], prompt=replace(PLAIN[0].prompt, tokens=CONTEXTS[0])))
    equal = within(PLAIN, [rollout.prompt.tokens for rollout in PLAIN])
    assert [key_of(rollout) for rollout in equal] == [key_of(rollout) for rollout in PLAIN]
