"""A LoRA student with the real engines: DeepSpeed trains adapters, vLLM writes with the merged weights."""

import asyncio
from pathlib import Path

import numpy as np
import torch

from minidist.config.models import LoraConfig, ModelConfig, StudentConfig
from minidist.models.hub import load_model
from minidist.roles.make import make_learner
from minidist.roles.transfer import ObjectStoreTransfer
from minidist.types import Batch
from tests.integration.conftest import Stack, learner_arguments, settings
from tests.integration.test_equalities import EXACT, PROMPT, on_policy_batch, written


def test_adapters_under_deepspeed_reach_vllm(stack: Stack, tmp_path: Path) -> None:
    student = StudentConfig(model=str(stack.student), lora=LoraConfig(rank=4, alpha=8))
    arguments = learner_arguments(stack, settings(lr=0.1, zero_stage=2)) | {"student": student}
    learner = stack.run(stack.cluster.host("learner", make_learner, **arguments))
    transfer = ObjectStoreTransfer(tolerance_nats=EXACT)
    stack.run(transfer.publish(learner, [stack.engine]))  # B is zero: the base itself
    start = np.array(stack.run(stack.engine.score([PROMPT])))
    batch = on_policy_batch(stack, written(stack, seed=11))
    try:
        for _ in range(2):
            stack.run(learner.update(batch))
            assert stack.run(transfer.publish(learner, [stack.engine])) < EXACT
        alone, weights = stack.run(learner.weights(False)), stack.run(learner.weights())
        assert alone.adaptation is not None and alone.nbytes < weights.nbytes / 2
        scores = stack.run(stack.engine.score([PROMPT]))
        stack.run(stack.engine.load(weights))
        assert stack.run(stack.engine.score([PROMPT])) == scores
        stack.run(stack.engine.load(alone))
        assert stack.run(stack.engine.score([PROMPT])) == scores
        assert np.abs(np.array(stack.run(stack.engine.score([PROMPT]))) - start).max() > 100 * EXACT  # it writes otherwise now
        stack.run(learner.save(tmp_path / "final"))
    finally:
        stack.run(transfer.publish(stack.learner, [stack.engine]))
        stack.dismiss(learner)
    trained_as_in_plain_torch(arguments, batch, weights.arrays)
    base = load_model(ModelConfig(model=str(stack.student)), "base").state_dict()
    final = load_model(ModelConfig(model=str(tmp_path / "final")), "final").state_dict()
    moved = {name for name, array in weights.arrays.items() if np.abs(array - base[name].numpy()).max() > 1e-4}
    assert moved == {name for name in base if name.endswith("_proj.weight")}
    assert final.keys() == base.keys() == weights.arrays.keys()
    assert all(torch.equal(final[name], torch.tensor(array)) for name, array in weights.arrays.items())


def trained_as_in_plain_torch(arguments: dict, batch: Batch, arrays: dict[str, np.ndarray]) -> None:
    plain = make_learner(**arguments | {"config": settings(lr=0.1, backend="single")})
    for _ in range(2):
        asyncio.run(plain.update(batch))
    expected = asyncio.run(plain.weights()).arrays
    asyncio.run(plain.close())
    for name, array in expected.items():
        np.testing.assert_allclose(arrays[name], array, atol=5e-6, err_msg=name)
