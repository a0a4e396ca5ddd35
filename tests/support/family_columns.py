"""What is tried on each family, one function a column: it returns when the family passes, and raises what refuses it."""

import asyncio
import copy
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from minidist.config.learner import LearnerConfig, OptimizerConfig
from minidist.config.models import LoraConfig, ModelConfig
from minidist.config.rollout import RolloutConfig
from minidist.data.batching import collate
from minidist.learners.learner import LocalLearner
from minidist.models.arrays import to_tensor
from minidist.models.heads import check_head, check_logits, load_teacher_head
from minidist.models.hub import load_config, load_model
from minidist.models.lora import inject
from minidist.preflight.checks import check_engine
from minidist.preflight.facts import ModelFacts
from minidist.preflight.families import check_learnt
from minidist.roles.make import RoleContext, make_engine, make_teacher
from minidist.roles.transfer import ObjectStoreTransfer
from minidist.rollout.mixed.lockstep import HFPairEngine
from minidist.rollout.mixed.turns import TurnTakingEngine
from minidist.rollout.vllm.sessions import TurnRequest, TurnResult
from minidist.teachers.hf import HFTeacher
from minidist.types import Batch, Prompt, Rollout, Sampling, Weights
from tests.support.config import make_objective, teacher_config
from tests.support.families import CONTEXT, VOCABULARY, family_config, saved_family
from tests.support.learners import local_learner
from tests.support.micro import alone, states, uneven_rows
from tests.support.tiny import VOCABULARY as SHARED
from tests.support.tiny import random_rollouts, tiny_renderer

EXACT = 1e-4
SGD = OptimizerConfig(type="sgd", lr=0.01, grad_clip=None)
PROMPTS = [[2, 5, 9, 4, 11, 3, 7], [1, 8, 6], [3, 3, 5, 7, 9, 2, 4, 6, 8, 1]]


def same_loss(name: str, path: Path) -> None:
    """The loss of an SFT step is the one that transformers computes."""
    model = saved_family(name, path)
    stream = collate("main", random_rollouts([(5, 9)]))
    row = stream.rows[0]
    ids = torch.tensor(row.tokens[None].astype(np.int64))
    labels = torch.full_like(ids, -100)
    labels[0, torch.as_tensor(row.outputs) + 1] = torch.as_tensor(row.labels)
    with torch.no_grad():
        expected = float(model(input_ids=ids, labels=labels, use_cache=False).loss)
    learner = _learner(path)
    found = asyncio.run(learner.update(Batch(1, ((stream,),)))).metrics["loss/nats_per_token"]
    asyncio.run(learner.close())
    assert abs(found - expected) < EXACT, f"loss {found:.6f}, transformers' {expected:.6f}"
    _attention_is_the_reference(model, load_model(ModelConfig(model=str(path)), "student.model"))


def same_logits(name: str, path: Path) -> None:
    """Hidden states and the head, in memory or read from the files alone, give the model's logits."""
    model = saved_family(name, path)
    check_logits(load_config(ModelConfig(model=str(path)), "student.model"), "student.model")
    check_head(model)
    ids = torch.arange(VOCABULARY)[None]
    with torch.no_grad():
        hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state[0]
        logits = load_teacher_head(teacher_config(model=str(path)), None)(hidden)
        assert _close(logits, model(input_ids=ids, use_cache=False).logits[0])


def buckets(name: str, path: Path) -> None:
    """Rows side by side do not see one another."""
    _independent(saved_family(name, path), padded=True)


def packed(name: str, path: Path) -> None:
    """Rows in one do not see one another."""
    model = saved_family(name, path)
    check_learnt(_facts(name), LearnerConfig(layout="packed"))
    _independent(model, padded=False)


def lockstep(name: str, path: Path) -> None:
    """Mixed sampling in transformers: the student's log-probabilities of its tokens are those of one forward pass."""
    saved_family(name, path)
    saved_family(name, path / "teacher", seed=1)
    student, teacher = (ModelConfig(model=str(each)) for each in (path, path / "teacher"))
    engine = HFPairEngine(student, teacher, tiny_renderer(), vocabulary=SHARED)
    _agrees(path, asyncio.run(engine.mix(_prompts(), 0.5, Sampling(samples=2, max_new_tokens=12))))
    asyncio.run(engine.close())


def adapters(name: str, path: Path) -> None:
    """A plain model with the published weights of an adapted one computes the same."""
    saved_family(name, path)
    learner = _learner(path, lora=True)
    adapted: Any = learner._pass.model
    _disturb(adapted, "lora_B")
    weights = asyncio.run(learner.weights())
    asyncio.run(learner.close())
    assert weights is not None
    ids = torch.arange(VOCABULARY)[None]
    with torch.no_grad():
        expected = adapted(input_ids=ids, use_cache=False).logits
        before = _loaded(path)(input_ids=ids, use_cache=False).logits
        assert not _close(expected, before), "the adapters change the model"
        assert _close(_with_weights(path, weights)(input_ids=ids, use_cache=False).logits, expected)


def files(name: str, path: Path) -> None:
    """A saved model is one that transformers loads, with the tensors of its origin by name; published tensors are the same."""
    saved_family(name, path)
    origin = load_file(path / "model.safetensors")
    learner = _learner(path)
    model: Any = learner._pass.model
    _disturb(model, "")
    asyncio.run(learner.save(path / "final"))
    weights = asyncio.run(learner.weights())
    asyncio.run(learner.close())
    found = load_file(path / "final" / "model.safetensors")
    assert weights is not None
    assert {key: each.shape for key, each in found.items()} == {key: each.shape for key, each in origin.items()}
    assert all(np.array_equal(weights.arrays[key], tensor.numpy()) for key, tensor in found.items())
    ids = torch.arange(VOCABULARY)[None]
    with torch.no_grad():
        logits = _loaded(path / "final")(input_ids=ids, use_cache=False).logits
        assert _close(logits, model(input_ids=ids, use_cache=False).logits)


def published(name: str, path: Path) -> None:
    """vLLM takes published weights, twice, which the probe proves: from the second time on, dense models do so in place."""
    saved_family(name, path)
    check_engine(_facts(name), 0, "rollout.engine=hf")
    learner = _learner(path)
    probed = []
    for _ in range(2):  # before vLLM starts: it replaces classes of transformers that it computes with
        _disturb(learner._pass.model, "")
        probed.append(_Probed(learner))
    asyncio.run(learner.close())
    engine = make_engine(_context(), ModelConfig(model=str(path)), RolloutConfig())
    for each in probed:
        assert asyncio.run(ObjectStoreTransfer(1e-3).publish(each, [engine])) < EXACT  # type: ignore[arg-type]


def pooled(name: str, path: Path) -> None:
    """Hidden states of a teacher in vLLM's pooling runner are those of transformers."""
    saved_family(name, path)
    config, rollouts = teacher_config(model=str(path), backend="vllm"), random_rollouts([(5, 9), (1, 40), (30, 1)])
    check_engine(replace(_facts(name), where="teacher.model"), 0, "teacher.backend=hf")
    reference = HFTeacher(config, tiny_renderer(), vocabulary=None)
    expected = asyncio.run(reference.score(rollouts))  # before vLLM starts: it replaces classes of transformers
    asyncio.run(reference.close())
    found = asyncio.run(make_teacher(_context(), config).score(rollouts))
    for scores, wanted in zip(found, expected, strict=True):
        assert scores.hidden is not None and wanted.hidden is not None and scores.hidden.shape == wanted.hidden.shape
        assert np.abs(scores.hidden - wanted.hidden).max() < EXACT * max(1.0, np.abs(wanted.hidden).max())


def turns(name: str, path: Path) -> None:
    """Mixed sampling in vLLM: log-probabilities after many turns are those of one forward pass; the teacher also scores."""
    saved_family(name, path)
    check_engine(_facts(name), 0, "rollout.engine=hf, or rollout.teacher_mix=0")
    teacher: Any = make_teacher(_context(), teacher_config(model=str(path), payload="top_k"), mixing=True)
    engine = TurnTakingEngine(_Side(teacher, "student"), _Side(teacher, "teacher"), 0.5, tiny_renderer())
    rollouts = asyncio.run(engine.generate(_prompts(), Sampling(samples=2, max_new_tokens=12)))
    scored = asyncio.run(teacher.score(rollouts))
    for rollout, scores in zip(rollouts, scored, strict=True):
        assert rollout.coins is not None
        assert np.abs(rollout.logprobs - scores.logprobs)[~rollout.coins].max(initial=0) < EXACT


FAST: dict[str, Callable[[str, Path], None]] = {
    "SFT step": same_loss,
    "head": same_logits,
    "buckets": buckets,
    "packed": packed,
    "mixed in step": lockstep,
    "LoRA": adapters,
    "files": files,
}
SLOW: dict[str, Callable[[str, Path], None]] = {"vLLM": published, "mixed by turns": turns, "states from vLLM": pooled}


def _facts(name: str) -> ModelFacts:
    return ModelFacts("student.model", tiny_renderer().tokenizer, family_config(name))


def _context() -> RoleContext:
    return RoleContext(tiny_renderer(), max_tokens=CONTEXT // 2, vocabulary=SHARED)


def _prompts() -> list[Prompt]:
    return [Prompt(row, np.array(tokens, dtype=np.int32), f"prompt {row}") for row, tokens in enumerate(PROMPTS)]


def _loaded(path: Path) -> PreTrainedModel:
    return load_model(ModelConfig(model=str(path)), "student.model")


def _learner(path: Path, *, lora: bool = False) -> LocalLearner:
    """A learner of the checkpoint, on plain torch."""
    model = _loaded(path)
    adapters = inject(model, LoraConfig(rank=2), str(path), seed=0) if lora else None
    return local_learner(model, LearnerConfig(optimizer=SGD), {"main": make_objective("supervised")}, adapters=adapters)


@torch.no_grad()
def _disturb(model: PreTrainedModel, part: str) -> None:
    """Move the parameters whose names hold `part` away from the checkpoint."""
    torch.manual_seed(7)
    for name, parameter in model.named_parameters():
        if part in name and parameter.requires_grad:
            parameter.add_(0.05 * torch.randn_like(parameter))


def _with_weights(path: Path, weights: Weights) -> PreTrainedModel:
    """The plain model with published weights, as transformers reads them from files."""
    tensors = {name: to_tensor(array, weights.dtypes[name]).clone() for name, array in weights.arrays.items()}
    (path / "published").mkdir()
    save_file(tensors, path / "published" / "model.safetensors", metadata={"format": "pt"})
    shutil.copy(path / "config.json", path / "published")
    return _loaded(path / "published")


def _close(left: Tensor, right: Tensor) -> bool:
    return float((left - right).abs().max()) < EXACT


def _independent(model: PreTrainedModel, *, padded: bool) -> None:
    """Rows together equal rows alone, and a row that changes moves no other."""
    rows = uneven_rows()
    before = states(model, rows, padded, budget=1000)
    for index, states_LD in before.items():
        assert _close(states_LD, alone(model, rows[index])), "rows together differ from rows alone"
    moved = replace(rows[1], tokens=(rows[1].tokens + 1) % SHARED)
    after = states(model, (rows[0], moved, *rows[2:]), padded, budget=1000)
    assert [index for index in range(len(rows)) if not _close(before[index], after[index])] == [1]


@torch.no_grad()
def _attention_is_the_reference(reference: PreTrainedModel, model: PreTrainedModel) -> None:
    """The model computes what transformers' plain attention computes, soft caps and windows included."""
    reference.set_attn_implementation("eager")
    ids = torch.arange(VOCABULARY)[None]
    assert _close(model(input_ids=ids, use_cache=False).logits, reference(input_ids=ids, use_cache=False).logits)


@torch.no_grad()
def _agrees(path: Path, rollouts: list[Rollout]) -> None:
    """The log-probabilities of the student's tokens are those of one forward pass over each rollout alone."""
    model = _loaded(path)
    for rollout in rollouts:
        ids = torch.tensor([[*rollout.prompt.tokens.tolist(), *rollout.tokens.tolist()]])
        logprobs = model(input_ids=ids, use_cache=False).logits[0, :-1, :SHARED].log_softmax(-1).gather(-1, ids[0, 1:, None])
        expected = logprobs[-len(rollout.tokens) :, 0].numpy()
        assert rollout.coins is not None
        assert np.abs(rollout.logprobs - expected)[~rollout.coins].max(initial=0) < EXACT, "rows decoded together differ"


class _Probed:
    """The weights of a learner at one time, and a probe of them."""

    def __init__(self, learner: LocalLearner) -> None:
        self._weights = copy.deepcopy(asyncio.run(learner.weights()))  # an array is the learner's own memory
        self._probe = asyncio.run(learner.probe(1))

    async def weights(self, whole: bool = True) -> Weights | None:
        return self._weights

    async def probe(self, version: int) -> Any:
        return self._probe


class _Side:
    """One of two sides that take turns, where a single engine is both."""

    def __init__(self, engine: Any, name: str) -> None:
        self._engine = engine
        self._name = name

    async def take_turns(self, request: TurnRequest) -> list[TurnResult]:
        return await self._engine.take_turns(replace(request, call=f"{self._name} {request.call}"))

    async def end_turns(self, call: str) -> None:
        await self._engine.end_turns(f"{self._name} {call}")

    async def turn_capacity(self, tokens: int) -> int:
        return await self._engine.turn_capacity(tokens) // 2

    async def version(self) -> int:
        return 0
