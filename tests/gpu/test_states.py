"""Hidden states of a teacher in vLLM on a GPU, in bfloat16, against transformers on the CPU."""

import asyncio
from pathlib import Path

import numpy as np
import pytest

from minidist.cluster.cluster import Cluster
from minidist.config.cluster import ClusterConfig
from minidist.config.data import RenderConfig
from minidist.data.rendering import Renderer, character_tokenizer
from minidist.data.tasks import find
from minidist.models.arrays import to_tensor
from minidist.models.heads import load_teacher_head
from minidist.roles.make import RoleContext, make_teacher
from minidist.teachers.hf import HFTeacher
from minidist.types import TeacherScores
from tests.gpu.conftest import GPU_SHAPE, SHARE
from tests.integration.conftest import save_model
from tests.support.config import teacher_config
from tests.support.on_device import ROOMS
from tests.support.tiny import random_rollouts

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
ROLLOUTS = random_rollouts([(3, 4), (1, 9), (2, 40), (47, 1)], vocabulary=29)


def test_the_head_on_states_from_vllm_gives_the_log_probabilities_of_transformers(tmp_path: Path, on_gpu: bool) -> None:
    save_model(tmp_path / "teacher", GPU_SHAPE, 2)
    config = teacher_config(model=str(tmp_path / "teacher"), backend="vllm", dtype="bfloat16", gpu_memory_utilization=SHARE)
    renderer = Renderer(character_tokenizer(find("sort").alphabet), RenderConfig())
    cluster = ClusterConfig(gpus=int(on_gpu))
    cluster.host(("teacher",))

    async def score() -> list[TeacherScores]:
        async with Cluster(cluster, tmp_path / "logs", ("teacher",)) as actors:
            context = RoleContext(renderer, max_tokens=48, on_gpu=on_gpu)
            return await (await actors.host("teacher", make_teacher, context=context, config=config)).score(ROLLOUTS)

    reference = asyncio.run(HFTeacher(config, renderer, vocabulary=None).score(ROLLOUTS))
    head, room = load_teacher_head(config, None), ROOMS["bfloat16", on_gpu]
    for found, wanted in zip(asyncio.run(score()), reference, strict=True):
        assert found.hidden is not None and wanted.hidden is not None
        assert (found.hidden_dtype, found.hidden.dtype, found.hidden.shape) == ("bfloat16", np.uint16, wanted.hidden.shape)
        logprobs = [head(to_tensor(each.hidden, each.hidden_dtype)).log_softmax(-1) for each in (found, wanted)]  # type: ignore[arg-type]
        difference = (logprobs[0] - logprobs[1]).abs()
        assert float(difference.mean()) <= room.mean and float(difference.max()) <= room.largest
