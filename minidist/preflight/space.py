"""How much room a training run needs on the disk of run.directory, and how much is free there."""

from typing import TYPE_CHECKING

from minidist.cluster.machine import disk
from minidist.config import DistillConfig, SftConfig
from minidist.config.run import RunConfig
from minidist.errors import ConfigError
from minidist.preflight.memory import BYTES, GIB

if TYPE_CHECKING:
    from minidist.models.shape import Shape

# Bytes of a token in rollouts/: its id, its text, and three log-probabilities.
_ROLLOUT_TOKEN = 48


def space_lines(config: SftConfig | DistillConfig, student: "Shape") -> list[str]:
    """`run_lines` of a run that trains a student."""
    model, state = _model_bytes(config, student), _state_bytes(config, student)
    initial = 0 if config.student.init is None else BYTES[config.student.dtype] * student.checkpoint_parameters
    others = {"initial": initial, "final": _finals(config) * model, "rollouts": _rollouts(config)}
    return run_lines(config.run, model + state, others)


def run_lines(run: RunConfig, checkpoint: int, others: dict[str, int]) -> list[str]:
    """The need of the run, a warning where the disk is too small for all of it. Raises ConfigError where not even one
    checkpoint fits. Checkpoints that the run has written already make room for its next ones.

    checkpoint: bytes of one. others: bytes of other files, by what they are.
    """
    kept = run.checkpoints_kept + 1  # the oldest goes once the newest is whole
    parts = {f"{kept} checkpoints": kept * checkpoint} | others
    free, total = disk(run.directory).free_gib * GIB + _held(run), sum(parts.values())
    room = f"where {free / GIB:,.2f} GiB are free"
    if free < checkpoint:
        remedy = "free space, or set run.directory to another disk"
        raise ConfigError(f"a checkpoint of {_gib(checkpoint)} does not fit in {run.directory}, {room}; {remedy}")
    detail = ", ".join(f"{name} {_gib(size)}" for name, size in parts.items() if size)
    line = f"disk: up to {_gib(total)} in {run.directory} ({detail}), {room}"
    remedy = "lower run.checkpoints_kept" if run.checkpoints_kept > 2 else "free space"
    return [line if total <= free else f"WARNING {line}: the run will end when the disk is full; {remedy}"]


def _model_bytes(config: SftConfig | DistillConfig, student: "Shape") -> int:
    """Bytes of the saved student: of its adapters where these are saved alone."""
    lora = config.student.lora
    if lora is not None and lora.save == "adapter":
        return 4 * student.trainable
    return BYTES[config.student.dtype] * student.checkpoint_parameters


def _state_bytes(config: SftConfig | DistillConfig, student: "Shape") -> int:
    """Bytes of training/: each trained parameter in float32, with two moments of AdamW."""
    return 4 * student.trainable * (1 if config.learner.optimizer.type == "sgd" else 3)


def _finals(config: SftConfig | DistillConfig) -> int:
    """Copies of the student beside the checkpoints: final/, and what it or best/ replaces."""
    return 2 if config.evaluation.patience is not None else 1


def _rollouts(config: SftConfig | DistillConfig) -> int:
    if not isinstance(config, DistillConfig):
        return 0
    files = config.run.steps // config.run.rollouts_every + 2
    return files * config.answers_per_step * config.rollout.max_new_tokens * _ROLLOUT_TOKEN


def _held(run: RunConfig) -> int:
    """Bytes of the checkpoints that the run has written."""
    found = (run.directory / "checkpoints").rglob("*")
    return sum(file.lstat().st_size for file in found if file.is_file())


def _gib(size: float) -> str:
    return f"{size / GIB:,.2f} GiB"
