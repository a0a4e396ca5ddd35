"""`minidist plan --measure`: the rates of this machine, from the roles of a small pair of random models.

Products and memory are measured alone; what a call, a micro-batch or a token costs beside them comes from the same roles as a
run has, each in an actor, with two amounts of work: the difference gives the rate, and what is left the fixed part.
"""

import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from minidist.cluster.cluster import Cluster
from minidist.cluster.machine import cores, host_memory
from minidist.config import DistillConfig
from minidist.config.cluster import ClusterConfig
from minidist.config.data import RenderConfig
from minidist.config.divergences import ReverseKLConfig
from minidist.config.learner import LearnerConfig
from minidist.config.models import ModelConfig, StudentConfig
from minidist.config.rollout import RolloutConfig
from minidist.config.teacher import HFTeacherConfig
from minidist.data.batching import collate
from minidist.data.rendering import Renderer, character_tokenizer
from minidist.evaluation.text import describe_text
from minidist.preflight.cost import role_needs
from minidist.preflight.forecast.rates import Device, Overheads, Rates, Wires
from minidist.preflight.memory import BYTES, GIB, PROCESS_BYTES
from minidist.run.flops import DecoderFlops, Work
from minidist.run.memory import proportional
from minidist.types import MAIN, Batch, Prompt, Rollout, Sampling

PROMPT, ANSWER, FEW, MANY = 32, 64, 4, 32
"""Tokens of a row, and the rows of the two amounts of work."""
_REPEATS = 4
STUDENT, TEACHER, VOCABULARY = (256, 768, 4, 4), (512, 1536, 8, 8), 4096
"""Hidden and intermediate size, layers and heads."""


@dataclass(frozen=True)
class Roles:
    """The roles of the small pair, what their models cost, and the memory that the formulas give them without libraries."""

    engine: Any
    teacher: Any
    learner: Any
    student_flops: DecoderFlops
    teacher_flops: DecoderFlops
    student_bytes: int
    needed_gib: float


async def measure_rates(threads: int | None = None, dtype: str = "float32") -> Rates:
    """The rates of this machine's cores, for models in this precision.

    Args:
        threads: of each role, as cluster.threads. None: all cores.
        dtype: of the models.
    """
    from minidist.models.rate import matrix_product_rate
    from minidist.preflight.forecast.probes import broadcast_rate, memory_bandwidth

    products, bandwidth = matrix_product_rate(dtype=dtype, on_gpu=False), memory_bandwidth()
    broadcast = broadcast_rate()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        async with Cluster(ClusterConfig(threads=threads), folder / "logs") as cluster:
            roles = await _host(cluster, folder, dtype)
            scored, call = await _scoring(roles)
            learned, update = await _learning(roles, bandwidth)
            step, token = await _writing(roles, scored, bandwidth)
            kept, proof = await _publishing(roles)
            base = _resident_gib(os.getpid()) - roles.needed_gib
    wires = Wires(broadcast, broadcast, kept, kept, kept, kept, kept)
    device = Device(host_memory().gib, scored, learned, learned, bandwidth)
    overheads = Overheads(
        engine_step=step,
        written_token=token,
        overlaps=False,
        decoded_token=0.0,  # part of written_token
        counted_token=_counted_token(),
        score_call=call,
        update=update,
        publish=proof,
        switch=0.0,
    )
    source = f"measured: {threads or cores()} threads, {dtype}; products {products / 1e9:,.0f} GFLOP/s when large"
    return Rates("this machine", source, device, wires, overheads, per_node=1 << 20, base_gib=base)


async def _host(cluster: Cluster, folder: Path, dtype: str) -> Roles:
    from minidist.models.flops import flops_of
    from minidist.preflight.forecast.probes import save_random
    from minidist.roles.make import RoleContext, make_engine, make_learner, make_teacher

    tokenizer = character_tokenizer("0123456789")
    models = {
        name: save_random(folder / name, sizes, VOCABULARY) for name, sizes in (("student", STUDENT), ("teacher", TEACHER))
    }
    for name in models:
        tokenizer.save_pretrained(folder / name)
    context = RoleContext(Renderer(tokenizer, RenderConfig()), max_tokens=PROMPT + ANSWER, steps=1000)
    teacher = HFTeacherConfig.parse(model=str(folder / "teacher"), dtype=dtype)
    student = str(folder / "student")
    learner = LearnerConfig.parse(backend="single", micro_batch_tokens=4096)
    return Roles(
        await cluster.host(
            "rollout",
            make_engine,
            context=context,
            model=ModelConfig.parse(model=student, dtype=dtype),
            rollout=RolloutConfig(),
        ),
        await cluster.host("teacher", make_teacher, context=context, config=teacher),
        await cluster.host(
            "learner",
            make_learner,
            context=context,
            student=StudentConfig.parse(model=student, dtype=dtype),
            config=learner,
            objectives={MAIN: ReverseKLConfig()},
            teacher=teacher,
        ),
        flops_of(models["student"]),
        flops_of(models["teacher"]),
        sum(each.numel() for each in models["student"].parameters()) * BYTES[dtype],
        _needed_gib(folder, models, dtype),
    )


def _needed_gib(folder: Path, models: dict[str, Any], dtype: str) -> float:
    """Memory of the roles by the formulas, without that of libraries, which is measured."""
    from minidist.models.shape import shape_of
    from minidist.preflight.forecast.report import with_used_budgets

    tree = {
        "stage": "distill",
        "run": {"directory": str(folder / "run")},
        "student": {"model": "student", "dtype": dtype},
        "teacher": {"model": "teacher", "dtype": dtype},
        "data": {"prompts": {"path": "task:sort"}},
        "objective": {"type": "reverse_kl"},
        "learner": {"backend": "single"},
    }
    shapes = [shape_of(model) for model in models.values()]
    config = with_used_budgets(DistillConfig.model_validate(tree), MANY * (PROMPT + ANSWER))
    needs = role_needs(config, *shapes, longest=PROMPT + ANSWER, gpu=None)
    return sum(need.total - PROCESS_BYTES for need in needs) / GIB


async def _scoring(roles: Roles) -> tuple[float, float]:
    """FLOP/s of the teacher's forward pass, and seconds of a call."""

    async def score(rows: int) -> float:
        rollouts = _rollouts(rows)
        return await _fastest(lambda: roles.teacher.score(rollouts))

    few, many = await score(FEW), await score(MANY)
    row = _without_head(Work.row(PROMPT + ANSWER))
    rate = _rate(roles.teacher_flops.forward(row), few, many)
    return rate, max(0.0, few - FEW * roles.teacher_flops.forward(row) / rate)


def _without_head(work: Work) -> Work:
    """The work without an output head: the teacher gives hidden states."""
    return Work(work.tokens, work.pairs)


async def _learning(roles: Roles, bandwidth: float) -> tuple[float, float]:
    """FLOP/s of a step of training, the teacher's head on hidden states included, and seconds of an update beside it."""

    async def update(rows: int) -> float:
        rollouts = _rollouts(rows)
        batch = Batch(0, ((collate(MAIN, rollouts, await roles.teacher.score(rollouts)),),))
        return await _fastest(lambda: roles.learner.update(batch))

    few, many = await update(FEW), await update(MANY)
    row = Work.row(PROMPT + ANSWER, ANSWER)
    flops = roles.student_flops.forward(row) + roles.student_flops.backward(row) + roles.teacher_flops.head * ANSWER
    tables = Overheads().loss_passes * ANSWER * VOCABULARY * 4 / bandwidth
    spent = max(1e-9, (many - few) / (MANY - FEW) - tables)
    rate = flops / spent
    return rate, max(0.0, few - FEW * (spent + tables))


async def _writing(roles: Roles, flops: float, bandwidth: float) -> tuple[float, float]:
    """Seconds of an engine's step beside its model, and of each token that it writes, its text included."""

    async def write(rows: int) -> float:
        prompts = [rollout.prompt for rollout in _rollouts(rows)]
        numbers = iter(range(1000))

        async def once() -> float:
            written = await roles.engine.generate(prompts, Sampling(max_new_tokens=ANSWER, seed=next(numbers)))
            return ANSWER * rows / sum(len(rollout.tokens) for rollout in written)

        return await _fastest(once)

    few, many = await write(FEW), await write(MANY)
    token = roles.student_flops.forward(Work(1, PROMPT + ANSWER / 2, 1)) / flops
    reading = roles.student_bytes / bandwidth
    steps = [
        (seconds - rows * PROMPT * roles.student_flops.token / flops) / ANSWER - max(reading, rows * token)
        for rows, seconds in ((FEW, few), (MANY, many))
    ]
    each = max(0.0, (steps[1] - steps[0]) / (MANY - FEW))
    return max(0.0, steps[0] - FEW * each), each


async def _publishing(roles: Roles) -> tuple[float, float]:
    """Bytes/s of the learner's weights into the object store, and seconds of a publication beside its bytes."""
    from minidist.roles.transfer import ObjectStoreTransfer

    transfer = ObjectStoreTransfer(1.0)
    size = roles.student_bytes
    kept = await _fastest(lambda: roles.learner.keep("weights", False))
    whole = await _fastest(lambda: transfer.publish(roles.learner, [roles.engine]))
    rate = 3 * size / kept  # the copy from the device, the store's own, and the engine's are counted apart, at one rate
    return rate, max(0.0, whole - 3 * size / rate)


def _rate(flops: float, few: float, many: float) -> float:
    """FLOP/s of rows of so many operations each, from the seconds of few rows and of many."""
    return flops * (MANY - FEW) / max(1e-9, many - few)


async def _fastest(call: Callable[[], Awaitable[Any]]) -> float:
    """Seconds of a call: the fastest of several, after one that warms up. A number that it returns multiplies its seconds."""
    found = []
    for _ in range(_REPEATS + 1):
        start = time.perf_counter()
        factor = await call()
        seconds = time.perf_counter() - start
        found.append(seconds * factor if isinstance(factor, float) and factor >= 1 else seconds)
    return min(found[1:])


def _rollouts(rows: int) -> list[Rollout]:
    """Random text."""
    rng = np.random.default_rng(rows)
    prompts = [Prompt(row, rng.integers(1, VOCABULARY, PROMPT).astype(np.int32), "") for row in range(rows)]
    zeros = np.zeros(ANSWER)
    return [Rollout.written(prompt, rng.integers(1, VOCABULARY, ANSWER), zeros, version=0, stopped=False) for prompt in prompts]


def _counted_token() -> float:
    """Seconds of the figures of a token's text, in the driver."""
    rollouts = _rollouts(64)
    start = time.perf_counter()
    describe_text(rollouts)
    return (time.perf_counter() - start) / (64 * ANSWER)


def _resident_gib(root: int) -> float:
    """Memory of this process and of all below it, shared pages once."""
    import psutil

    below = [child.pid for child in psutil.Process(root).children(recursive=True)]
    return sum(map(proportional, [root, *below])) / 2**30
