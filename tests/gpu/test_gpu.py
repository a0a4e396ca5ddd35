"""The same equalities on a GPU, in bfloat16. Not run where there is no GPU, and the reason is said."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from minidist.build import make_engine, make_learner
from minidist.cluster import Cluster
from minidist.config.data import RenderConfig
from minidist.config.learning import RolloutConfig
from minidist.config.models import ModelConfig, StudentConfig
from minidist.config.runtime import ClusterConfig
from minidist.data.rendering import Renderer, character_tokenizer
from minidist.data.tasks import find
from minidist.transfer.object_store import ObjectStoreTransfer
from tests.integration.conftest import SHAPE, save_model, settings

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU on this machine")]


def test_engine_and_learner_agree_after_a_sync(tmp_path: Path) -> None:
    save_model(tmp_path, SHAPE | {"head_dim": 64}, 1)
    renderer = Renderer(character_tokenizer(find("sort").alphabet), RenderConfig())
    common: dict[str, Any] = {"renderer": renderer, "seed": 0, "vocabulary": None, "gpus": 1}

    async def agree() -> float:
        async with Cluster(ClusterConfig(gpus=1), tmp_path / "logs") as cluster:
            model = ModelConfig(model=str(tmp_path), dtype="bfloat16")
            engine = await cluster.host(
                "rollout engine", make_engine, model=model, rollout=RolloutConfig(), max_tokens=48, **common
            )
            learner = await cluster.host(
                "learner",
                make_learner,
                student=StudentConfig(model=str(tmp_path), dtype="bfloat16"),
                teacher=None,
                config=settings(),
                objectives={"supervised": {"type": "supervised"}},
                steps=1,
                **common,
            )
            return await ObjectStoreTransfer(tolerance_nats=0.5).publish(learner, [engine])

    assert np.isfinite(asyncio.run(agree()))
