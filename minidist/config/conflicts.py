"""Which sections of a configuration contradict each other."""

from minidist.config.cluster import ClusterConfig, TeacherRoleConfig
from minidist.config.learner import LearnerConfig
from minidist.config.models import DType
from minidist.config.teacher import TeacherConfig


def check_learner(learner: LearnerConfig, cluster: ClusterConfig, dtype: DType) -> None:
    """Refuse what a learner cannot do."""
    if learner.backend == "single" and cluster.learner.ranks > 1:
        raise ValueError("cluster.learner.ranks above 1 need learner.backend=deepspeed")
    if learner.offload_parameters and learner.zero_stage != 3:
        raise ValueError(f"learner.offload_parameters needs learner.zero_stage=3, not {learner.zero_stage}")
    if learner.offload_optimizer and learner.zero_stage == 0:
        raise ValueError("learner.offload_optimizer needs learner.zero_stage 1, 2 or 3")
    if learner.kernel == "liger" and not cluster.gpus:
        raise ValueError("learner.kernel liger runs on a GPU, and cluster.gpus is 0; set learner.kernel=torch")
    if learner.backend == "deepspeed" and learner.zero_stage == 0 and dtype != "float32":
        raise ValueError(f"learner.zero_stage 0 keeps no float32 copy of {dtype} weights; set learner.zero_stage=1")


def check_teacher_role(teacher: TeacherConfig, role: TeacherRoleConfig) -> None:
    """Refuse a teacher that cannot be split as it is told to be."""
    for name, backend in (("tensor_parallel", "vllm"), ("shards", "hf")):
        if getattr(role, name) > 1 and teacher.backend != backend:
            raise ValueError(
                f"cluster.teacher.{name} splits a teacher of backend {backend}, not of {teacher.backend}; set it to "
                f"1, or teacher.backend={backend}"
            )
    if teacher.backend == "cache" and role.actors > 1:
        raise ValueError(f"cluster.teacher.actors is {role.actors}, and teacher.backend cache starts none; leave it out")
