"""Teachers in vLLM, split over two processes and behind a server, give the scores of transformers."""

import asyncio
import os
import signal
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM

from minidist.config.learner import LearnerConfig
from minidist.config.teacher import ServerConfig, TeacherConfig
from minidist.data.sources import Example
from minidist.errors import CanaryError, ConfigError, RoleError
from minidist.learners.learner import LocalLearner
from minidist.preflight.server import check_server
from minidist.roles.transfer import ChannelTransfer
from minidist.teachers import vllm
from minidist.teachers.hf import HFTeacher
from minidist.teachers.payload import classes_asked
from minidist.teachers.server.teacher import ServerTeacher
from minidist.teachers.vllm import VLLMTeacher
from minidist.types import Channel, Outline, Rollout, Sampling, TeacherScores
from tests.integration.conftest import MAX_TOKENS, SHAPE, Stack, save_model
from tests.integration.live_server import LOGPROBS, Live
from tests.support.config import teacher_config
from tests.support.learners import local_learner
from tests.support.tiny import random_rollouts

EXACT = 2e-4  # nats; float32, two implementations of the same arithmetic
SAMPLING = Sampling(samples=2, max_new_tokens=16, seed=3)
VOCABULARY = 29
ROLLOUTS = random_rollouts([(3, 4), (1, 9), (6, 1), (2, 40), (8, 40), (47, 1)], vocabulary=VOCABULARY)
T = TypeVar("T")


class Adjustable(VLLMTeacher):
    """A vLLM teacher whose payload and weights a test may change, since a start takes long. Weights may come over a channel."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        settings = vllm.teacher_settings
        with patch.object(vllm, "teacher_settings", lambda *a, **o: replace(settings(*a, **o), transfer="gloo")):
            super().__init__(*arguments, **options)
        self._version = 0

    async def join(self, channel: Channel, first: int) -> bool:
        return await self._core.updates.join(channel, first)

    async def receive(self, backend: str, outline: Outline) -> None:
        await self._core.updates.receive(backend, outline, None)

    async def finish(self, version: int) -> None:
        await self._core.updates.finish()
        self._version = version

    async def version(self) -> int:
        return self._version

    async def adjust(self, config: TeacherConfig, vocabulary: int | None) -> None:
        self._config, self._vocabulary = config, vocabulary
        self._classes = classes_asked(config, VOCABULARY, vocabulary)

    async def swap(self, weights: dict[str, np.ndarray]) -> None:
        await self._core.updates.reload([(name, torch.tensor(array)) for name, array in weights.items()])

    async def processes(self) -> list[int]:
        return [os.getpid(), *(child.pid for child in psutil.Process().children(recursive=True))]


def config(path: Path, **fields: Any) -> TeacherConfig:
    return teacher_config(model=str(path), **({"payload": "top_k", "top_k": 99} | fields))


def local(stack: Stack, path: Path) -> list[TeacherScores]:
    """The scores of transformers for every class."""
    teacher = HFTeacher(config(path), stack.renderer, vocabulary=None)
    return asyncio.run(teacher.score(ROLLOUTS))


def same(found: list[TeacherScores], reference: list[TeacherScores], classes: int, vocabulary: int = VOCABULARY) -> None:
    """The tokens' own log-probabilities, and the likeliest `classes` below `vocabulary`, are the reference's."""
    for scores, expected in zip(found, reference, strict=True):
        assert scores.logprobs is not None and expected.top_ids is not None and expected.top_logprobs is not None
        assert np.abs(scores.logprobs - expected.logprobs).max() < EXACT
        if not classes:
            assert scores.top_ids is None
            continue
        real = np.argsort(expected.top_ids >= vocabulary, axis=1, kind="stable")[:, :classes]
        assert scores.top_ids is not None and (scores.top_ids == np.take_along_axis(expected.top_ids, real, 1)).all()
        assert np.abs(scores.top_logprobs - np.take_along_axis(expected.top_logprobs, real, 1)).max() < EXACT


@pytest.fixture(scope="module")
def reference(stack: Stack) -> list[TeacherScores]:
    scores = local(stack, stack.student)
    assert np.std(np.concatenate([scored.logprobs for scored in scores])) > 0.3  # no uniform model, on which anything agrees
    return scores


@pytest.fixture(scope="module")
def split(stack: Stack) -> Iterator[Any]:
    """The student as teacher, its model split over two processes."""
    settings = config(stack.student, backend="vllm")
    options: dict[str, Any] = {"vocabulary": None, "tensor_parallel": 2, "max_tokens": MAX_TOKENS}
    teacher = stack.run(stack.cluster.host("teacher", Adjustable, config=settings, renderer=stack.renderer, **options))
    yield teacher
    stack.dismiss(teacher)


CASES = [("sampled", 1, None), ("top_k", 5, None), ("top_k", 99, None), ("top_k", 5, 20), ("top_k", 99, 20)]


@pytest.mark.parametrize(("payload", "top_k", "vocabulary"), CASES)
def test_a_split_vllm_teacher_gives_the_scores_of_transformers(
    stack: Stack, split: Any, reference: list[TeacherScores], payload: str, top_k: int, vocabulary: int | None
) -> None:
    settings = config(stack.student, backend="vllm", payload=payload, top_k=top_k)
    stack.run(split.adjust(settings, vocabulary))
    found = stack.run(split.score(ROLLOUTS))
    width = vocabulary or VOCABULARY
    same(found, reference, min(top_k, width) if payload == "top_k" else 0, width)


def in_contexts() -> list[Rollout]:
    """The rollouts after other prompts for the teacher, longer ones and shorter ones."""
    lengths = [(9, 1), (2, 1), (30, 1), (1, 1), (3, 1), (20, 1)]
    contexts = [each.prompt.tokens for each in random_rollouts(lengths, seed=5, vocabulary=VOCABULARY)]
    pairs = zip(ROLLOUTS, contexts, strict=True)
    return [replace(each, prompt=replace(each.prompt, teacher_tokens=tokens)) for each, tokens in pairs]


@torch.no_grad()
def after_contexts(path: Path) -> list[np.ndarray]:
    """Log-probabilities [T] of the answers, each from one forward pass of the model over the context and the answer."""
    model, found = AutoModelForCausalLM.from_pretrained(path).eval(), []
    for rollout in in_contexts():
        start, ids = len(rollout.prompt.for_teacher.tokens), [*rollout.prompt.for_teacher.tokens, *rollout.tokens]
        table = model(torch.tensor([ids], dtype=torch.long)).logits[0].log_softmax(-1)
        found.append(table[range(start - 1, len(ids) - 1), rollout.tokens.tolist()].numpy())
    return found


def test_teachers_in_vllm_in_transformers_and_on_a_server_score_the_answer_after_the_context(
    stack: Stack, split: Any, server: Live
) -> None:
    stack.run(split.adjust(config(stack.student, backend="vllm", payload="sampled"), None))
    transformers = HFTeacher(config(stack.student, payload="sampled"), stack.renderer, vocabulary=None)
    found = [stack.run(split.score(in_contexts())), asyncio.run(transformers.score(in_contexts()))]
    found.append(ask(stack, server, lambda teacher: teacher.score(in_contexts()), payload="sampled"))
    for scores in found:
        for scored, wanted in zip(scores, after_contexts(stack.student), strict=True):
            assert scored.logprobs is not None and np.abs(scored.logprobs - wanted).max() < EXACT


def test_teachers_write_after_the_context(stack: Stack, split: Any, server: Live) -> None:
    """Each scores what it wrote, after the same context, as it sampled it; the answers are to the student's prompts."""
    stack.run(split.adjust(config(stack.student, backend="vllm", payload="sampled"), None))
    prompts = [rollout.prompt for rollout in in_contexts()][:2]

    async def write(teacher: Any) -> tuple[list[Rollout], list[TeacherScores]]:
        written = await teacher.extend(prompts, SAMPLING)
        return written, await teacher.score(written)

    for written, scores in (stack.run(write(split)), ask(stack, server, write, payload="sampled")):
        assert [rollout.prompt.tokens.tolist() for rollout in written] == [prompts[n // 2].tokens.tolist() for n in range(4)]
        for rollout, scored in zip(written, scores, strict=True):
            assert scored.logprobs is not None and rollout.logprobs is not None
            assert np.abs(rollout.logprobs - scored.logprobs).max() < EXACT


def test_a_split_model_writes_the_text_of_the_whole_model(stack: Stack, split: Any) -> None:
    stack.run(stack.engine.load(stack.student))
    stack.run(split.adjust(config(stack.student, backend="vllm", payload="sampled"), None))
    prompts = stack.prompts(["abc", "zyxw", "q", "hello"])
    whole, parts = stack.run(stack.engine.generate(prompts, SAMPLING)), stack.run(split.extend(prompts, SAMPLING))
    assert [list(rollout.tokens) for rollout in whole] == [list(rollout.tokens) for rollout in parts]
    scores = stack.run(split.score(parts))
    for one, two, scored in zip(whole, parts, scores, strict=True):
        assert np.abs(one.logprobs - two.logprobs).max() < EXACT
        assert np.abs(two.logprobs - scored.logprobs).max() < EXACT


def test_new_weights_reach_every_part(stack: Stack, split: Any, reference: list[TeacherScores], tmp_path: Path) -> None:
    def weights(model: Any) -> dict[str, np.ndarray]:
        return {name: tensor.numpy() for name, tensor in model.state_dict().items()}

    stack.run(split.adjust(config(stack.student, backend="vllm"), None))
    other = save_model(tmp_path / "other", SHAPE, 9)
    stack.run(split.swap(weights(other)))
    same(stack.run(split.score(ROLLOUTS)), local(stack, tmp_path / "other"), VOCABULARY)
    stack.run(split.swap(weights(save_model(tmp_path / "again", SHAPE, 1))))
    same(stack.run(split.score(ROLLOUTS)), reference, VOCABULARY)


class Split:
    """The split model as a rollout engine."""

    def __init__(self, teacher: Any) -> None:
        self._teacher = teacher

    async def load(self, weights: Any) -> None:
        await self._teacher.swap({name: np.array(array) for name, array in weights.arrays.items()})

    async def score(self, sequences: list[list[int]]) -> list[list[float]]:
        rows = [Example(np.array(sequence, dtype=np.int32), 1).as_rollout() for sequence in sequences]
        return [scores.logprobs.tolist() for scores in await self._teacher.score(rows)]

    def __getattr__(self, verb: str) -> Any:
        return getattr(self._teacher, verb)


class Rounding:
    """The learner; one entry of one tensor that it sends is off by `error`."""

    def __init__(self, learner: LocalLearner, error: float = 0.0) -> None:
        self._learner, self._error = learner, error

    async def ask(self, question: Callable[[], str]) -> str:
        return "127.0.0.1"

    async def channel(self, verb: str, *arguments: Any) -> Any:
        weight = self._learner._pass.model.model.layers[1].self_attn.o_proj.weight
        with torch.no_grad():
            weight[3, 5] += self._error * (verb == "send")
        try:
            return await self._learner.channel(verb, *arguments)
        finally:
            with torch.no_grad():
                weight[3, 5] -= self._error * (verb == "send")

    def __getattr__(self, verb: str) -> Any:
        return getattr(self._learner, verb)


def test_weights_over_a_channel_reach_every_part_to_the_last_bit(
    stack: Stack, split: Any, reference: list[TeacherScores], tmp_path: Path
) -> None:
    """Against the same weights given as a whole; and one number of one tensor that is wrong is found out."""
    stack.run(split.adjust(config(stack.student, backend="vllm", payload="sampled"), None))
    engine: Any = Split(split)
    for number in (9, 1):  # the last one is the student again
        path = tmp_path / str(number)
        learner = local_learner(save_model(path, SHAPE, number).eval(), LearnerConfig(), {})
        whole = asyncio.run(learner.weights())
        transfer = ChannelTransfer(EXACT, "gloo", processes=2, timeout_s=60)
        assert stack.run(transfer.publish(Rounding(learner), [engine])) < EXACT  # type: ignore[arg-type]
        found = stack.run(split.score(ROLLOUTS))
        stack.run(engine.load(whole))
        for one, other in zip(found, stack.run(split.score(ROLLOUTS)), strict=True):
            assert np.array_equal(one.logprobs, other.logprobs)
        with pytest.raises(CanaryError, match="did not take the new weights"):
            stack.run(transfer.publish(Rounding(learner, error=1.0), [engine]))  # type: ignore[arg-type]
        assert stack.run(transfer.publish(Rounding(learner), [engine])) < EXACT  # type: ignore[arg-type]
        asyncio.run(learner.close())
    same(stack.run(split.score(ROLLOUTS)), reference, 0)


def test_the_processes_of_a_killed_teacher_end_and_free_their_memory(stack: Stack, split: Any) -> None:
    actor, *others = stack.run(split.processes())
    assert len(others) >= 2
    mapped = {line.split()[4] for pid in others for line in maps(pid) if "/dev/shm/" in line}
    assert mapped  # they talk through shared memory
    os.kill(actor, signal.SIGKILL)
    until = time.monotonic() + 20
    while any(alive(pid) for pid in others):
        assert time.monotonic() < until, "a process outlived its teacher"
        time.sleep(0.1)
    assert not mapped & {str(path.stat().st_ino) for path in Path("/dev/shm").iterdir()}
    with pytest.raises(RoleError, match="died"):
        stack.run(split.score(ROLLOUTS))


def maps(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/maps").read_text().splitlines()


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def ask(stack: Stack, server: Live, call: Callable[[ServerTeacher], Awaitable[T]], **fields: Any) -> T:
    async def run() -> T:
        teacher = ServerTeacher(served(server, **fields), stack.renderer, vocabulary=None)
        try:
            return await call(teacher)
        finally:
            await teacher.close()

    return asyncio.run(run())


def served(server: Live, **fields: Any) -> TeacherConfig:
    return config(server.model, backend="server", server=ServerConfig(url=server.url, requests=8), **fields)


@pytest.mark.parametrize(("payload", "top_k"), [("sampled", 1), ("top_k", 5), ("top_k", 99)])
def test_a_server_gives_the_scores_of_transformers(
    stack: Stack, server: Live, reference: list[TeacherScores], payload: str, top_k: int
) -> None:
    found = ask(stack, server, lambda teacher: teacher.score(ROLLOUTS), payload=payload, top_k=top_k)
    same(found, reference, min(top_k, VOCABULARY) if payload == "top_k" else 0)


def test_a_server_scores_its_samples_as_it_sampled_them(stack: Stack, server: Live) -> None:
    async def write(teacher: ServerTeacher) -> tuple[list[Rollout], list[Rollout], list[TeacherScores]]:
        prompts = stack.prompts(["abc", "zyxw", "q", "hello"])
        written = await teacher.extend(prompts, SAMPLING)
        return written, await teacher.extend(prompts, SAMPLING), await teacher.score(written)

    written, again, scores = ask(stack, server, write, payload="sampled")
    assert [(rollout.prompt.row, rollout.sample) for rollout in written] == [(row, n) for row in range(4) for n in range(2)]
    assert [list(rollout.tokens) for rollout in written] == [list(rollout.tokens) for rollout in again]
    assert len({tuple(rollout.tokens) for rollout in written}) == 8
    for rollout, scored in zip(written, scores, strict=True):
        assert len(rollout.tokens) == 16 or rollout.tokens[-1] in stack.renderer.stops
        assert scored.logprobs is not None and np.abs(rollout.logprobs - scored.logprobs).max() < EXACT


def test_a_server_is_checked_before_a_run(stack: Stack, server: Live) -> None:
    options: dict[str, Any] = {"prompt": stack.prompts(["abc"])[0], "width": VOCABULARY, "vocabulary": VOCABULARY}
    assert check_server(served(server), stack.renderer, tokens=MAX_TOKENS, **options) == [
        f"teacher served as teacher at {server.url}"
    ]
    with pytest.raises(ConfigError, match=f"takes {MAX_TOKENS + 1} tokens"):
        check_server(served(server), stack.renderer, tokens=MAX_TOKENS + 1, **options)
    wide = options | {"width": VOCABULARY + 9, "vocabulary": VOCABULARY + 9}
    with pytest.raises(ConfigError, match=f"gives at most {LOGPROBS} .* --max-logprobs 30, or set teacher.top_k={LOGPROBS} "):
        check_server(served(server, top_k=30), stack.renderer, tokens=MAX_TOKENS, **wide)
