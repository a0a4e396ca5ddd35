"""GPU tests are skipped, with the reason, where GPUs are missing. With --on-cpu they run on a CPU, so that they stay whole."""

from collections.abc import Iterator

import pytest
import torch

from minidist.config.cluster import ClusterConfig
from minidist.config.rollout import RolloutConfig
from minidist.roles.make import make_engine, make_learner, make_teacher
from minidist.rollout.pool import Engines
from minidist.teachers.pool import Teachers
from tests.integration.conftest import SHAPE, Stack, engine_arguments, learner_arguments, settings, standing

SHARE = 0.2
"""Of a GPU's memory, for each of two vLLM engines."""
GPU_SHAPE = SHAPE | {"head_dim": 64}


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--on-cpu", action="store_true", help="run the tests of GPUs on a CPU, with cluster.gpus=0")


def pytest_runtest_setup(item: pytest.Item) -> None:
    needed = 2 if item.get_closest_marker("gpu2") else 1 if item.get_closest_marker("gpu") else 0
    if item.config.getoption("--on-cpu"):
        if item.get_closest_marker("kernel"):
            pytest.skip("a kernel that needs a GPU")
    elif (found := torch.cuda.device_count()) < needed:
        pytest.skip(f"needs {needed} GPUs, and this machine has {found}" if needed > 1 else "no GPU on this machine")


@pytest.fixture(scope="session")
def on_gpu(request: pytest.FixtureRequest) -> bool:
    return not request.config.getoption("--on-cpu")


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory, on_gpu: bool) -> Iterator[Stack]:
    """An engine, a teacher that takes turns and a learner in bfloat16, which share one device, and start one by one."""
    rollout = RolloutConfig(gpu_memory_utilization=SHARE)
    facts = {"dtype": "bfloat16", "on_gpu": on_gpu, "rollout": rollout, "transfer": "ipc" if on_gpu else "gloo"}
    with standing(tmp_path_factory.mktemp("one"), ClusterConfig(gpus=int(on_gpu)), GPU_SHAPE, **facts) as stack:
        engine = stack.host_engine(stack.student)
        stack.engines, stack.teachers = Engines([engine]), Teachers([stack.host_teacher(gpu_memory_utilization=SHARE)])
        stack.learner = stack.host_learner(settings(lr=0.05))
        yield stack


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory, on_gpu: bool) -> Iterator[Stack]:
    """An engine and a teacher, and two ranks of a learner, each on a device of its own; in float32."""
    config = ClusterConfig.model_validate({"gpus": 2 * on_gpu, "learner": {"ranks": 2}})
    facts = {"on_gpu": on_gpu, "rollout": RolloutConfig(gpu_memory_utilization=SHARE)}
    with standing(tmp_path_factory.mktemp("two"), config, GPU_SHAPE, **facts) as stack:
        learning = learner_arguments(stack, settings())
        scoring = {"context": stack.context, "config": learning["teacher"]}
        host = stack.cluster.host
        stack.engines = Engines([stack.run(host("rollout", make_engine, **engine_arguments(stack, stack.student)))])
        stack.teachers = Teachers([stack.run(host("teacher", make_teacher, **scoring))])
        stack.pair = stack.run(stack.cluster.host_group("learner", make_learner, 2, **learning))
        yield stack


@pytest.fixture(scope="module")
def split_engine(tmp_path_factory: pytest.TempPathFactory, on_gpu: bool) -> Iterator[Stack]:
    """An engine over two devices, and a learner on the CPU; in float32."""
    rollout = {"tensor_parallel": 2} | ({"gpus": 2} if on_gpu else {})
    config = ClusterConfig.model_validate({"gpus": 2 * on_gpu, "rollout": rollout, "learner": {"gpus": 0}})
    roles = ("rollout", "learner")
    config.host(roles)
    facts = {"on_gpu": on_gpu, "rollout": RolloutConfig(gpu_memory_utilization=SHARE)}
    with standing(tmp_path_factory.mktemp("split"), config, GPU_SHAPE, roles=roles, **facts) as stack:
        stack.engines = Engines([stack.host_engine(stack.student, parts=2)])
        stack.on_gpu = False
        stack.learner = stack.host_learner(settings(backend="single"))
        stack.on_gpu = on_gpu
        yield stack


@pytest.fixture(scope="module")
def apart(tmp_path_factory: pytest.TempPathFactory, on_gpu: bool) -> Iterator[Stack]:
    """An engine and a learner, each on a device of its own; in float32."""
    config, roles = ClusterConfig(gpus=2 * on_gpu), ("rollout", "learner")
    config.host(roles)
    facts = {"on_gpu": on_gpu, "rollout": RolloutConfig(gpu_memory_utilization=SHARE), "transfer": config.direct or "gloo"}
    with standing(tmp_path_factory.mktemp("apart"), config, GPU_SHAPE, roles=roles, **facts) as stack:
        stack.engines = Engines([stack.host_engine(stack.student)])
        stack.learner = stack.host_learner(settings(backend="single"))
        yield stack
