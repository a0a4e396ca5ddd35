"""Answers end at the same ids in vLLM, in its turns with another engine, and in transformers."""

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from minidist.config.data import RenderConfig
from minidist.config.models import ModelConfig
from minidist.data.rendering import Renderer
from minidist.roles.make import make_engine
from minidist.rollout.hf import HFEngine
from minidist.rollout.mixed.turns import TurnTakingEngine
from minidist.types import Finish, Rollout, Sampling, Vocabulary
from tests.integration.conftest import MAX_TOKENS, SHAPE, Stack, engine_arguments, save_model

STOPS = (0, 5)
OTHER = 7  # ends answers in the model's own generation_config, and not here
SHARED = Vocabulary(28, [3])
SAMPLING = Sampling(max_new_tokens=24, samples=24, seed=3)


@pytest.fixture(scope="module")
def model(stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student whose generation_config has an end and a way of sampling of its own."""
    path = tmp_path_factory.mktemp("endings")
    save_model(path, SHAPE, 1)
    own = {"eos_token_id": [OTHER], "temperature": 0.01, "top_k": 1, "do_sample": True, "repetition_penalty": 5.0}
    (path / "generation_config.json").write_text(json.dumps(own))
    return path


@pytest.fixture(scope="module")
def renderer(stack: Stack) -> Renderer:
    return Renderer(stack.renderer.tokenizer, RenderConfig(), STOPS[1:])


@pytest.fixture(scope="module")
def engine(stack: Stack, model: Path, renderer: Renderer) -> Iterator[Any]:
    arguments = engine_arguments(stack, model)
    arguments["context"] = replace(arguments["context"], renderer=renderer, vocabulary=SHARED)
    hosted = stack.run(stack.cluster.host("rollout", make_engine, **arguments))
    yield hosted
    stack.dismiss(hosted)


def check_ends(rollouts: list[Rollout], renderer: Renderer) -> None:
    """Every id ends some answer and none goes on; some answers hold the id at which only the model's own files end."""
    lasts, seen = set(), set()
    for rollout in rollouts:
        ids = rollout.tokens.tolist()
        stopped = ids[-1] in STOPS
        assert not set(ids[:-1]) & set(STOPS)
        assert rollout.finish is (Finish.STOP if stopped else Finish.LENGTH)
        assert stopped or len(ids) == SAMPLING.max_new_tokens
        assert rollout.text == renderer.tokenizer.decode(ids[:-1] if stopped else ids)
        lasts.add(ids[-1])
        seen |= set(ids[:-1])
    assert lasts >= set(STOPS) and OTHER in seen
    assert not (seen | lasts) & {3, 28, 29}, "ids that are not shared are never written"


def test_vllm_ends_answers_as_transformers_does(stack: Stack, engine: Any, model: Path, renderer: Renderer) -> None:
    prompts = stack.prompts(["b=", "hgfedcba=", "qz=", "zyx="])
    check_ends(stack.run(engine.generate(prompts, SAMPLING)), renderer)
    greedy = replace(SAMPLING, temperature=0.0, samples=1)
    slow = HFEngine(ModelConfig(model=str(model)), renderer, vocabulary=SHARED)
    expected, found = asyncio.run(slow.generate(prompts, greedy)), stack.run(engine.generate(prompts, greedy))
    for left, right in zip(expected, found, strict=True):
        assert left.tokens.tolist() == right.tokens.tolist()
        assert (left.finish, left.text) == (right.finish, right.text)
        assert left.logprobs is not None and right.logprobs is not None
        assert np.abs(left.logprobs - right.logprobs).max() < 2e-4
    asyncio.run(slow.close())


def test_turns_end_answers_at_the_same_ids(stack: Stack, engine: Any, renderer: Renderer) -> None:
    arguments = engine_arguments(stack, stack.teacher_path)
    arguments["context"] = replace(arguments["context"], renderer=renderer, vocabulary=SHARED, max_tokens=MAX_TOKENS)
    teacher = stack.run(stack.cluster.host("teacher", make_engine, **arguments))
    mixed = TurnTakingEngine(engine, teacher, 0.4, renderer)
    try:
        rollouts = stack.run(mixed.generate(stack.prompts(["b=", "hgfedcba=", "qz=", "zyx="]), SAMPLING))
    finally:
        stack.dismiss(teacher)
    check_ends(rollouts, renderer)
    assert all(rollout.coins is not None and len(rollout.coins) == len(rollout.tokens) for rollout in rollouts)
    for side in (True, False):
        ended = [r for r in rollouts if r.finish is Finish.STOP and r.coins is not None and bool(r.coins[-1]) is side]
        assert {int(rollout.tokens[-1]) for rollout in ended} == set(STOPS), "on either side's tokens"
