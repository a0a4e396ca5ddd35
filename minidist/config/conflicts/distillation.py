"""Conflicts of a distillation."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from minidist.config.conflicts.learner import learner
from minidist.config.conflicts.objective import objective
from minidist.config.conflicts.teacher import context, score_cache, teacher_role, teacher_text
from minidist.config.conflicts.text import overlap, replay, text
from minidist.types import MAIN

if TYPE_CHECKING:
    from minidist.config import DistillConfig


def distill(c: "DistillConfig") -> Iterator[str]:
    """All conflicts of a distillation."""
    for field in ("tensor_parallel", "pipeline_parallel") if c.rollout.engine == "hf" else ():
        if getattr(c.cluster.rollout, field) > 1:
            yield f"cluster.rollout.{field} splits vLLM engines; set rollout.engine=vllm"
    yield from teacher_role(c)
    yield from learner(c)
    if not c.teacher.live:
        yield from score_cache(c)
    if not c.teacher.writes:
        yield from teacher_text(c)
    if c.teacher.context is not None:
        yield from context(c)
    if c.student.architecture is not None:
        yield "student.architecture describes an untrained model; run minidist sft first, and set student.model to its result"
    if MAIN in c.streams:
        yield f"streams.{MAIN}: {MAIN} is the name of the stream of objective and prefix; give the stream another name"
    for key, section in c.objectives.items():
        yield from objective(c, key, section)
    yield from text(c)
    yield from replay(c)
    yield from overlap(c)
    if c.learner.kernel == "liger" and not any(section.fused for section in c.objectives.values()):
        fused = "learner.kernel liger computes forward_kl, reverse_kl and jsd (also in kd and minillm)"
        yield f"{fused}, and objective.type is {c.objective.type}; set learner.kernel=torch"
    if c.teacher.learns and not c.objective.matches_teacher:
        mismatch = f"objective.type {c.objective.type} is no divergence from the teacher, as a teacher that learns needs"
        yield f"{mismatch}; set objective.type=reverse_kl, or teacher.placement=actor"
    if c.teacher.learns and c.teacher.dtype == "float16":
        yield "teacher.dtype float16 loses small gradients of teacher.prompt; set teacher.dtype=bfloat16 or float32"
    if c.evaluation.patience is not None:
        yield "evaluation.patience belongs to sft; distillation runs for run.steps"
    if c.evaluation.every and c.data.validation is None:
        yield "evaluation.every needs data.validation: held-out prompts"
