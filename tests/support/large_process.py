"""One rank of a teacher in shards, and of a learner at ZeRO-3, that says how much memory each thing takes.

    python -m tests.support.large_process RANK RANKS MEETING MODEL DIRECTORY [MODEL DIRECTORY]

Writes DIRECTORY/RANK.json: the highest memory of each thing above what there was before it, in bytes; DIRECTORY/RANK.npy: the
teacher's hidden states; DIRECTORY/before and DIRECTORY/after: the learner's model before and after a step. What libraries load
when they are first used counts for the first model.
"""

import asyncio
import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from minidist.config.learner import LearnerConfig
from minidist.config.models import StudentConfig
from minidist.data.batching import collate
from minidist.learners.group import ProcessGroup
from minidist.models.shape import skeleton  # noqa: F401 - what is imported later would count as memory of the model
from minidist.roles.make import RoleContext, make_learner, make_teacher
from minidist.types import Batch, RankGroup, Rollout
from tests.support.config import objective_config, teacher_config
from tests.support.large_models import Memory
from tests.support.tiny import VOCABULARY, random_rollouts, tiny_renderer


def rollouts() -> list[Rollout]:
    return random_rollouts([(3, 4), (2, 9), (5, 3)])


async def measured(ranks: ProcessGroup, group: RankGroup, model: str, directory: Path) -> dict[str, int]:
    """Memory that each thing took."""
    taken: dict[str, int] = {}
    memory = Memory()

    async def step(name: str, call: Any) -> Any:
        result = call() if not asyncio.iscoroutine(call) else await call
        taken[name] = memory.peak()
        ranks.largest([0])  # what all of them write is whole before any reads it
        return result

    context = RoleContext(tiny_renderer(), vocabulary=VOCABULARY, steps=10)
    scoring = teacher_config(model=model, payload="hidden")
    teacher: Any = await step("teacher", lambda: make_teacher(context, scoring, group=group))
    await teacher.score(rollouts()[: 1 - group.rank])  # the second rank has none, and takes part in the first one's
    scores = await step("score", teacher.score(rollouts()))
    np.save(directory / f"{group.rank}.npy", np.concatenate([each.hidden for each in scores]))
    del teacher
    memory.peak()
    config = LearnerConfig(zero_stage=3, micro_batch_tokens=64)
    student, objectives = StudentConfig(model=model), {"main": objective_config("supervised")}
    learner: Any = await step("learner", lambda: make_learner(context, student, config, objectives, teacher=None, group=group))
    await step("save", learner.save(directory / "before"))
    stream = collate("main", rollouts(), objective="main")
    every = replace(stream, loss_tokens=group.size * stream.loss_tokens)  # each rank has all rows
    await step("update", learner.update(Batch(0, ((every,),))))
    await step("save, trained", learner.save(directory / "after"))
    await step("save_state", learner.save_state(directory / "after"))
    await step("resume", learner.resume(directory / "after"))
    return taken


def main() -> None:
    """The command."""
    rank, count, meeting, *works = sys.argv[1:]
    torch.set_num_threads(1)
    group = RankGroup(int(rank), int(count), meeting)
    ranks = ProcessGroup(group, "cpu")
    for model, directory in zip(works[::2], map(Path, works[1::2]), strict=True):
        taken = asyncio.run(measured(ranks, group, model, directory))
        (directory / f"{rank}.json").write_text(json.dumps(taken))
    sys.stdout.flush()
    os._exit(0)  # gloo's threads wait for the other ranks


if __name__ == "__main__":
    main()
