"""The learner's backend on DeepSpeed ZeRO: the same gradient as `PlainTorch`, its work shared and its tensors partitioned.

DeepSpeed averages gradients over ranks, so each rank's loss is multiplied by their number; the streams' counts are already
those of all ranks. The learner decides when a step ends, so micro-batches may be as many and as uneven as the step needs, as
long as every rank runs equally many.
"""

import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from minidist.config.learner import LearnerConfig
from minidist.learners.backends import PlainTorch
from minidist.learners.forward import ForwardPass
from minidist.learners.group import Group


class DeepSpeed(PlainTorch):
    """One rank of several, or the only one. On a CPU: gloo, and torch's AdamW."""

    name: ClassVar = "DeepSpeedLearner"
    distributed: ClassVar = True

    def __init__(self, student: ForwardPass, config: LearnerConfig, group: Group) -> None:
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        # DeepSpeed steps the base's optimizer: over the parameters in stage 0, over flat copies of them in the others.
        super().__init__(student, config, group)
        self._stage = config.zero_stage
        self._moments = ("exp_avg", "exp_avg_sq") if config.optimizer.type == "adamw" else ()
        self._zero: Any
        with _uncompiled():
            self._module, self._zero, _, _ = deepspeed.initialize(
                model=student, optimizer=self.optimizer, config=_settings(config, self._model), dist_init_required=False
            )

    def backward(self, loss: Tensor) -> None:
        self._module.backward(loss * self._group.size)

    def step(self, rate: float) -> float:
        if self._stage == 0:  # plain data parallelism: DeepSpeed's step does not report the norm
            self._module.buffered_allreduce_fallback()
            return super().step(rate)
        for group in self._zero.param_groups:
            group["lr"] = rate
        self._module.step()
        return float(self._module.get_global_grad_norm())

    def discard(self) -> None:
        self._zero.zero_grad()
        if self._stage in (1, 2):  # DeepSpeed drops the gradients of earlier micro-batches only in a step
            for gradients in (self._zero.averaged_gradients, self._zero.all_grad_tensors):
                gradients.update(dict.fromkeys(gradients))
            self._zero.micro_step_id = -1

    def sleep(self) -> None:
        if self._stage == 0:
            super().sleep()
        elif self._device.type == "cuda":
            self._module.offload_states()
            torch.cuda.empty_cache()

    def wake(self) -> None:
        if self._stage == 0:
            super().wake()
        elif self._device.type == "cuda":
            self._module.reload_states()

    def tensors(self, wanted: Callable[[str], bool] = lambda name: True, *, on_cpu: bool = True) -> dict[str, Tensor]:
        tensors = super().tensors(wanted)
        if self._stage < 3:
            return tensors
        partitioned = {name: each for name, each in self._model.named_parameters(remove_duplicate=False) if wanted(name)}
        # Tied names share one tensor, as they do in the model.
        single = {id(each): each for each in partitioned.values()}
        gathered = {key: self._gather(each, on_cpu=on_cpu) for key, each in single.items()}
        return tensors | {name: gathered[id(each)] for name, each in partitioned.items()}

    def load(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self._model.named_parameters():
            self._set_weight(parameter, tensors[name])

    def read_state(self, steps: int) -> Iterable[tuple[str, dict[str, Tensor]]]:
        self._link(steps)
        return super().read_state(steps)

    def write_state(self, steps: int, tensors: Callable[[str], dict[str, Tensor]]) -> None:
        self._allocate_moments(steps)
        super().write_state(steps, tensors)

    def _gather(self, parameter: Parameter, *, on_cpu: bool) -> Tensor:
        """A partitioned parameter, gathered from all ranks; only the first keeps it."""
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            if self._group.rank != 0:
                return torch.empty(0)
            return parameter.data.cpu() if on_cpu and parameter.data.is_cuda else parameter.data.clone()

    def _set_weight(self, parameter: Parameter, value: Tensor) -> None:
        """Set the parameter, and the copy of it that the optimizer steps."""
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param

        partitioned = self._stage == 3
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=partitioned):
            if not partitioned or self._group.rank == 0:
                parameter.data.copy_(value)
        if _has_copy(parameter):
            safe_set_full_fp32_param(parameter, value.float().to(self._model.device))

    def _read(self, parameter: Parameter, steps: int) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if not _has_copy(parameter):
            return super()._read(parameter, steps)
        names = self._moments if steps else ()
        state: dict[str, Any] = {name: safe_get_full_optimizer_state(parameter, name) for name in names}
        state["weight"] = safe_get_full_fp32_param(parameter)
        return state

    def _write(self, parameter: Parameter, tensors: dict[str, Tensor], steps: int) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        if not _has_copy(parameter):
            super()._write(parameter, tensors, steps)
            return
        self._set_weight(parameter, tensors.pop("weight"))
        for name, value in tensors.items():
            safe_set_full_optimizer_state(parameter, value.float().to(self._model.device), name)

    def _allocate_moments(self, steps: int) -> None:
        """Give an optimizer that has not stepped the moments that DeepSpeed would allocate at its first step."""
        if steps == 0 or not self._moments or self._stage == 0:
            return
        # The flat float32 tensors of this rank that the optimizer steps.
        flats = self._zero.fp32_partitioned_groups_flat if self._stage == 3 else self._zero.single_partition_of_fp32_groups
        for flat in flats:
            moments = {name: torch.zeros_like(flat) for name in self._moments}
            self.optimizer.state[flat] = {"step": torch.tensor(float(steps)), **moments}
        self._link(steps)

    def _link(self, steps: int) -> None:
        """Have DeepSpeed find each parameter's moments. ZeRO 1 and 2 look for them once, before all groups have stepped."""
        if self._stage in (1, 2) and steps:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()


@contextmanager
def _uncompiled() -> Iterator[None]:
    """What torch.compile decorates inside stays as it is. DeepSpeed decorates an optimizer for which the learner has no use,
    and to import the compiler takes a second."""
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before


def _settings(config: LearnerConfig, model: Any) -> dict[str, Any]:
    """DeepSpeed's configuration."""
    offloaded = {"offload_optimizer": config.offload_optimizer, "offload_param": config.offload_parameters}
    pinned = model.device.type == "cuda"
    zero: dict[str, Any] = {name: {"device": "cpu", "pin_memory": pinned} for name, wanted in offloaded.items() if wanted}
    halved = str(model.dtype) == "torch.bfloat16"
    # Else gradients of micro-batches, and of ranks, are added in the model's precision: 256 equal ones are off by 6 %.
    sums = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"} if halved else {}
    zero |= {"overlap_comm": pinned and config.zero_stage >= 2}  # a CPU has one stream, and no time to win
    if config.parameter_group is not None:
        zero |= {"zero_hpz_partition_size": config.parameter_group}
    return sums | {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,  # every step() ends an accumulation, however many backward passes came before
        "gradient_clipping": config.optimizer.grad_clip or 0.0,
        "zero_optimization": {"stage": config.zero_stage} | zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "bf16": {"enabled": halved},
        "steps_per_print": 1 << 60,
        "wall_clock_breakdown": False,
    }


def _has_copy(parameter: Parameter) -> bool:
    """Whether DeepSpeed steps a float32 copy of the parameter: in all stages but 0."""
    return parameter.requires_grad and (hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"))
