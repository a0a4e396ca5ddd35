"""Conflicts of a teacher: its processes, its prompts, its scores, and its turns in the sampled text."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minidist.config import DistillConfig, ScoreConfig


def teacher_role(c: "DistillConfig | ScoreConfig") -> Iterator[str]:
    """Between `teacher` and `cluster.teacher`."""
    for field in ("tensor_parallel", "pipeline_parallel", "shards"):
        by, backend = ("shards", "hf") if field == "shards" else ("tensor_parallel", "vllm")
        if getattr(c.cluster.teacher, field) > 1 and c.teacher.splits_by != by:
            yield f"cluster.teacher.{field} splits a teacher of backend {backend}, not of {c.teacher.backend}; set it to 1"
    if not c.teacher.live and c.cluster.teacher.actors > 1:
        yield f"cluster.teacher.actors is {c.cluster.teacher.actors}, and teacher.backend cache starts no actors; leave it out"


def context(c: "DistillConfig") -> Iterator[str]:
    """Of a teacher that reads another prompt than the student."""
    if c.teacher.learns:
        cure = "set teacher.placement=actor, or leave teacher.context out"
        yield f"teacher.context gives the teacher rows of its own, and a teacher that learns reads the student's; {cure}"
    elif not c.asks_actors:
        yield "teacher.context changes what the teacher reads, and nothing asks the teacher; leave teacher.context out"


def teacher_mix(c: "DistillConfig") -> Iterator[str]:
    """Of teacher-mixed sampling."""
    if c.rollout.temperature == 0:
        yield "rollout.teacher_mix cannot mix greedy decoding, rollout.temperature 0; raise it, or set rollout.teacher_mix=0"
    if not c.objective.on_mixture:
        yield f"objective.type {c.objective.type} is valid on the student's own samples only; set rollout.teacher_mix=0"
    if not c.prefix.student_writes:
        yield "rollout.teacher_mix mixes into the student's share of the text, and prefix.student is 0; set it above 0"
    if not c.teacher.takes_turns:
        cure = "set teacher.backend=hf or vllm (with teacher.payload=top_k), or rollout.teacher_mix=0"
        yield f"rollout.teacher_mix needs the teacher token by token; {cure}"
    if c.rollout.engine == "vllm" and c.cluster.teacher.shards > 1:
        split = "rollout.teacher_mix takes turns with a teacher in vLLM, and cluster.teacher.shards splits one in transformers"
        yield f"{split}; set teacher.backend=vllm with cluster.teacher.tensor_parallel, or rollout.teacher_mix=0"


def teacher_text(c: "DistillConfig") -> Iterator[str]:
    """Of text that a teacher shall write that gives scores alone."""
    keys = [f"streams.{name}.writer teacher" for name, stream in c.streams.items() if stream.writer == "teacher"]
    for key in [*(["prefix.teacher"] if c.prefix.teacher > 0 else []), *keys]:
        writes = f"teacher.backend {c.teacher.backend} does not write with teacher.payload {c.teacher.payload}"
        yield f"{key} is text that the teacher writes, and {writes}; set teacher.backend=hf, or teacher.payload=top_k"


def score_cache(c: "DistillConfig") -> Iterator[str]:
    """Of a teacher that is a cache of scores of given text."""
    teacher_writes = any(stream.writer == "teacher" for stream in c.streams.values())
    if c.prefix.dataset < 1 or c.prefix.replay is not None or teacher_writes:
        written = "teacher.backend cache holds scores of given text, and prefix or a stream uses text written during training"
        given = "set prefix.student=0 and prefix.dataset=1 without replay, and no stream of writer teacher"
        yield f"{written}; {given}; or set teacher.backend=hf"
    if c.evaluation.every:
        yield "evaluation.every needs a live teacher, and teacher.backend is cache; leave it out, and run minidist evaluate"
