"""Conflicts of a model that learns: where it is cut from, its precision, and the processes that hold it."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minidist.config import DistillConfig, SftConfig, TeachConfig


def initial(c: "SftConfig | DistillConfig | TeachConfig") -> Iterator[str]:
    """Of a student that is cut from another model."""
    if c.student.init is None or c.student.model is not None:
        return
    teacher = getattr(c, "teacher", None)
    if teacher is None:
        yield "student.init cuts a model, and there is none; set student.model, whose layers it names"
    elif not getattr(teacher, "hosted", True):
        yield "student.init cuts the teacher, whose weights are elsewhere; set student.model, whose layers it names"


def learner(c: "SftConfig | DistillConfig") -> Iterator[str]:
    """Between `learner`, `cluster` and the student's precision."""
    yield from initial(c)
    if c.learner.backend == "single" and c.cluster.learner.ranks > 1:
        yield "cluster.learner.ranks above 1 need learner.backend=deepspeed"
    if (group := c.learner.parameter_group) is not None:
        if c.learner.zero_stage != 3 or c.learner.backend != "deepspeed":
            yield f"learner.parameter_group needs learner.backend=deepspeed and zero_stage=3, not {c.learner.zero_stage}"
        elif c.cluster.learner.ranks % group:
            yield f"learner.parameter_group {group} does not divide cluster.learner.ranks {c.cluster.learner.ranks}"
    if c.learner.offload_parameters and c.learner.zero_stage != 3:
        yield f"learner.offload_parameters needs learner.zero_stage=3, not {c.learner.zero_stage}"
    if c.learner.offload_optimizer and c.learner.zero_stage == 0:
        yield "learner.offload_optimizer needs learner.zero_stage 1, 2 or 3"
    if c.learner.kernel == "liger" and not c.cluster.gpus:
        yield "learner.kernel liger runs on a GPU, and cluster.gpus is 0; set learner.kernel=torch"
    if c.student.dtype == "float16":
        yield "student.dtype float16 loses small gradients, and no loss is scaled; set student.dtype=bfloat16 or float32"
    copies = c.learner.backend == "deepspeed" and c.learner.zero_stage > 0
    trained = c.student.lora is None or c.learner.backend == "deepspeed"  # adapters are float32
    if c.student.dtype == "bfloat16" and trained and not copies:
        setting = "learner.backend single" if c.learner.backend == "single" else "learner.zero_stage 0"
        cure = "set learner.backend=deepspeed with learner.zero_stage=2 or 3, or student.dtype=float32"
        yield f"{setting} keeps no float32 copy of bfloat16 weights, whose small steps would be rounded away; {cure}"
    elif c.student.dtype == "bfloat16" and c.learner.backend == "deepspeed" and c.learner.zero_stage == 1:
        text = "learner.zero_stage 1 adds the gradients of bfloat16 weights in bfloat16, which loses small ones"
        yield f"{text}; set learner.zero_stage=2, which adds them in float32, or student.dtype=float32"
