"""One Ray cluster with two vLLM engines, two teachers, a learner and a pair of ranks, shared by the whole test run."""

import asyncio
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from minidist.cluster.cluster import Cluster
from minidist.concurrency import together
from minidist.config.cluster import ClusterConfig, LearnerRoleConfig, Role, RolloutRoleConfig, TeacherRoleConfig
from minidist.config.data import RenderConfig
from minidist.config.learner import LearnerConfig, OptimizerConfig
from minidist.config.models import DType, ModelConfig, StudentConfig
from minidist.config.rollout import RolloutConfig
from minidist.config.teacher import TeacherConfig
from minidist.data.rendering import Renderer, character_tokenizer
from minidist.data.tasks import find
from minidist.learners.ranks import LearnerRanks
from minidist.models.hub import build_student
from minidist.roles.make import RoleContext, make_engine, make_learner, make_teacher
from minidist.rollout.pool import Engines
from minidist.teachers.pool import Shards, Teachers
from minidist.types import Prompt, RankGroup
from tests.support.config import objective_config, teacher_config

SHAPE: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
MAX_TOKENS = 48
ROLES: tuple[Role, ...] = ("rollout", "teacher", "learner")
OBJECTIVES = {"main": "reverse_kl", "supervised": "supervised"}


def save_model(path: Path, shape: dict[str, Any], seed: int) -> PreTrainedModel:
    """Random weights, large enough that the distributions are far from uniform."""
    tokenizer = character_tokenizer(find("sort").alphabet)
    model = build_student(StudentConfig(architecture=shape, tokenizer="characters:sort"), tokenizer, seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return model


def settings(**changes: Any) -> LearnerConfig:
    """Plain gradient descent at rate 1, so that a difference of weights is a gradient."""
    optimizer = OptimizerConfig(type="sgd", lr=changes.pop("lr", 1.0), grad_clip=None)
    return LearnerConfig(optimizer=optimizer, **changes)


@dataclass
class Stack:
    """The running roles, and what they were made from. `engine` and `teacher` are the first of two."""

    runner: asyncio.Runner
    cluster: Cluster
    renderer: Renderer
    student: Path
    teacher_path: Path
    engines: Any
    teachers: Any
    learner: Any
    pair: list[Any]
    """Two actors of one process group: learner ranks, or shards of a teacher, as a test makes them."""
    dtype: DType = "float32"
    on_gpu: bool = False
    transfer: str = "gloo"
    """The channel over which weights may come to an engine, beside the object store."""
    # Requests may ask for blocked n-grams; the others are written as ever.
    rollout: RolloutConfig = field(default_factory=lambda: RolloutConfig(no_repeat_ngram_size=2))

    @property
    def context(self) -> RoleContext:
        fields = {"on_gpu": self.on_gpu, "transfer": self.transfer, "turns": True}
        return RoleContext(self.renderer, max_tokens=MAX_TOKENS, steps=100, **fields)

    @property
    def engine(self) -> Any:
        return self.engines.members[0]

    @property
    def teacher(self) -> Any:
        return self.teachers.members[0]

    def run(self, call: Awaitable[Any]) -> Any:
        async def awaited() -> Any:
            return await call

        return self.runner.run(awaited())

    def prompts(self, texts: list[str]) -> list[Prompt]:
        return [Prompt(row, self.renderer.prompt(text), text) for row, text in enumerate(texts)]

    def ranks(self, config: LearnerConfig, **changes: Any) -> LearnerRanks:
        """A learner of two ranks on the same student and teacher; it takes the place of the last one."""
        self.run(self._start(make_learner, learner_arguments(self, config) | changes))
        return LearnerRanks(self.pair)

    def shards(self, config: TeacherConfig) -> Shards:
        """A teacher partitioned over two ranks, in the place of the last one."""
        self.run(self._start(make_teacher, {"context": RoleContext(self.renderer), "config": config}))
        return Shards(self.pair)

    async def _start(self, make: Any, arguments: dict[str, Any]) -> None:
        # The ranks have met already, so where they would is not asked again.
        groups = [RankGroup(rank, 2, "met") for rank in range(2)]
        await together(actor.start(make, group=group, **arguments) for actor, group in zip(self.pair, groups, strict=True))

    def host_learner(self, config: LearnerConfig) -> Any:
        """Another learner on the same student and teacher, in an actor of its own."""
        return self.run(self.cluster.host("learner", make_learner, **learner_arguments(self, config)))

    def host_engine(self, model: Path, *, parts: int = 1) -> Any:
        """Another vLLM engine, in an actor of its own, its model split over `parts` devices, or processes on a CPU."""
        arguments = engine_arguments(self, model)
        arguments["context"] = replace(self.context, split={"tensor_parallel": parts})
        return self.run(self.cluster.host("rollout", make_engine, **arguments))

    def host_teacher(self, **fields: Any) -> Any:
        """Another teacher in transformers, in an actor of its own, which also takes turns; `fields`: of its section."""
        config = teacher_config(model=str(self.teacher_path), dtype=self.dtype, **fields)
        return self.run(self.cluster.host("teacher", make_teacher, context=self.context, config=config, mixing=True))

    def dismiss(self, role: Any) -> None:
        self.run(self.cluster.dismiss(role))


def learner_arguments(stack: Stack, config: LearnerConfig) -> dict[str, Any]:
    return {
        "student": StudentConfig(model=str(stack.student), dtype=stack.dtype),
        "teacher": teacher_config(model=str(stack.teacher_path), dtype=stack.dtype),
        "context": stack.context,
        "config": config,
        "objectives": {name: objective_config(kind) for name, kind in OBJECTIVES.items()},
    }


def engine_arguments(stack: Stack, model: Path) -> dict[str, Any]:
    return {"model": ModelConfig(model=str(model), dtype=stack.dtype), "rollout": stack.rollout, "context": stack.context}


@contextmanager
def standing(
    root: Path, config: ClusterConfig, shape: dict[str, Any], *, roles: Sequence[Role] = ROLES, **facts: Any
) -> Iterator[Stack]:
    """A cluster, and two models under `root` of which no role is made yet; `facts`: further fields of the stack."""
    save_model(root / "student", shape, 1)
    save_model(root / "teacher", shape | {"hidden_size": 96, "num_attention_heads": 3, "num_key_value_heads": 3}, 2)
    tokenizer = character_tokenizer(find("sort").alphabet)
    # Two ids end an answer, as in a model whose generation_config lists one beside the tokenizer's.
    renderer = Renderer(tokenizer, RenderConfig(), stops=tokenizer.encode("q", add_special_tokens=False))
    with asyncio.Runner() as runner:
        cluster = Cluster(config, root / "logs", roles)
        runner.run(cluster.__aenter__())
        try:
            yield Stack(runner, cluster, renderer, root / "student", root / "teacher", None, None, None, [], **facts)
        finally:
            runner.run(cluster.__aexit__(None, None, None))


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    with standing(tmp_path_factory.mktemp("models"), _ROOM, SHAPE) as stack:
        stack.run(_host(stack))
        yield stack


# Places for what the session holds all the time, and for what a test hosts beside it.
_ROOM = ClusterConfig(
    rollout=RolloutRoleConfig(actors=3), teacher=TeacherRoleConfig(actors=3), learner=LearnerRoleConfig(ranks=4), threads=2
)


async def _host(stack: Stack) -> None:
    host, teacher = stack.cluster.host, teacher_config(model=str(stack.teacher_path))
    scoring = {"context": RoleContext(stack.renderer), "config": teacher}
    learning = learner_arguments(stack, settings(lr=0.5))
    engines, teachers, stack.learner, stack.pair = await together(
        [
            together(host("rollout", make_engine, **engine_arguments(stack, stack.student)) for _ in range(2)),
            together(host("teacher", make_teacher, **scoring) for _ in range(2)),
            host("learner", make_learner, **learning),
            stack.cluster.host_group("learner", make_learner, 2, **learning),
        ]
    )
    stack.engines, stack.teachers = Engines(engines), Teachers(teachers)


# At the end, since it needs what stands above.
from tests.integration.live_server import server, starting  # noqa: E402, F401
