"""The learner's backend on DeepSpeed ZeRO: the same gradient as `PlainTorch`, its work shared and its tensors partitioned.

DeepSpeed averages gradients over ranks, so each rank's loss is multiplied by their number; the streams' counts are already
those of all ranks. The learner decides when a step ends, so micro-batches may be as many and as uneven as the step needs, as
long as every rank runs equally many.
"""

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from minidist.config.learner import LearnerConfig
from minidist.learners.backends import PlainTorch
from minidist.learners.forward import ForwardPass
from minidist.learners.group import Group
from minidist.learners.partition import is_partitioned, partitioning
from minidist.learners.schedule import check_shapes
from minidist.learners.state import Piece, StateReader
from minidist.models.filling import own_range, set_own_part, whole_shape


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
        if is_partitioned(self._model):  # of which DeepSpeed leaves the rest, such as adapters, in another precision
            for parameter in self._model.parameters():
                parameter.data = parameter.data.to(self._model.dtype)
        with _uncompiled():
            self._module, self._zero, _, _ = deepspeed.initialize(
                model=student,
                optimizer=self.optimizer,
                config=engine_settings(config, self._model.dtype, self._model.device),
                dist_init_required=False,
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

    @contextmanager
    def whole(self, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        import deepspeed

        state = self.state()
        parts = [state[name] for name in names if hasattr(state[name], "ds_id")]
        with deepspeed.zero.GatheredParameters(parts):
            yield {name: state[name].data for name in names}

    def tensors(self, wanted: Callable[[str], bool] = lambda name: True, *, on_cpu: bool = True) -> dict[str, Tensor]:
        tensors = super().tensors(wanted)
        if self._stage < 3:
            return tensors
        partitioned = {name: each for name, each in self._model.named_parameters(remove_duplicate=False) if wanted(name)}
        # Tied names share one tensor, as they do in the model.
        single = {id(each): each for each in partitioned.values()}
        gathered = {key: self._gather(each, on_cpu=on_cpu) for key, each in single.items()}
        return tensors | {name: gathered[id(each)] for name, each in partitioned.items()}

    def renew(self) -> None:
        for _, parameter in self._trained():
            part: Tensor | None = getattr(parameter, "ds_tensor", None)
            if part is not None:
                start, stop = own_range(parameter)
                _set_own_elements(parameter, "weight", part[: stop - start].float())

    def load(self, tensors: dict[str, Tensor]) -> None:
        for name, parameter in self._model.named_parameters():
            self._set_weight(parameter, tensors[name])

    def pieces(self, steps: int) -> Iterator[Piece]:
        self._link(steps)
        return super().pieces(steps)

    def restore(self, reader: StateReader) -> None:
        self._allocate_moments(reader.steps)
        super().restore(reader)

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

    def _pieces(self, name: str, parameter: Parameter, steps: int) -> list[Piece]:
        if not _has_copy(parameter):
            return super()._pieces(name, parameter, steps)
        start, stop = _own_range(parameter)
        kinds = ["weight", *(self._moments if steps else ())]
        reads = {kind: partial(_own_elements, parameter, kind, stop - start) for kind in kinds}
        shape = whole_shape(parameter)
        return [Piece(name, kind, torch.float32, shape, start, stop, read) for kind, read in reads.items()]

    def _restore(self, name: str, parameter: Parameter, reader: StateReader) -> None:
        if not _has_copy(parameter):
            super()._restore(name, parameter, reader)
            return
        found, expected = reader.shapes(name), whole_shape(parameter)
        check_shapes({kind: list(shape) for kind, shape in found.items()}, list(expected))
        start, stop = _own_range(parameter)
        for kind in found:
            own = reader.elements(name, kind, start, stop)
            if stop > start:
                _set_own_elements(parameter, kind, own.float())
            if kind == "weight" and hasattr(parameter, "ds_id"):
                set_own_part(parameter, own)
            elif kind == "weight":
                parameter.data.copy_(reader.elements(name, kind, 0, expected.numel()).view(expected))

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


def student_partitioning(config: LearnerConfig, dtype: str, device: torch.device) -> AbstractContextManager[None] | None:
    """A context in which a student's parameters are partitioned as they are made; None where all ranks hold all of them."""
    if config.backend != "deepspeed" or config.zero_stage < 3:
        return None
    return partitioning(engine_settings(config, getattr(torch, dtype), device))


def engine_settings(config: LearnerConfig, dtype: torch.dtype, device: torch.device) -> dict[str, Any]:
    """DeepSpeed's configuration for a student of this precision, that computes on this device."""
    offloaded = {"offload_optimizer": config.offload_optimizer, "offload_param": config.offload_parameters}
    pinned = device.type == "cuda"
    zero: dict[str, Any] = {name: {"device": "cpu", "pin_memory": pinned} for name, wanted in offloaded.items() if wanted}
    halved = dtype == torch.bfloat16
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


def _own_range(parameter: Any) -> tuple[int, int]:
    """First and last element, flat, of a parameter that this rank steps."""
    if hasattr(parameter, "ds_id"):
        return own_range(parameter)
    if parameter._hp_mapping is None:
        return 0, 0
    place = parameter._hp_mapping.lp_fragment_address
    return place.start, place.start + place.numel


def _own_elements(parameter: Any, kind: str, count: int) -> Tensor:
    """The elements of the float32 copy of a parameter, or of a moment, that this rank steps."""
    from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

    if not hasattr(parameter, "ds_id"):
        return parameter._hp_mapping.get_hp_fragment(None if kind == "weight" else kind)
    flat: Any = safe_get_local_fp32_param(parameter) if kind == "weight" else safe_get_local_optimizer_state(parameter, kind)
    return flat[:count]


def _set_own_elements(parameter: Any, kind: str, own: Tensor) -> None:
    """Replace what `_own_elements` gives."""
    from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

    if not hasattr(parameter, "ds_id"):
        parameter._hp_mapping.get_hp_fragment(None if kind == "weight" else kind).data.copy_(own)
        return
    padded = torch.nn.functional.pad(own, (0, parameter.ds_tensor.numel() - own.numel()))
    if kind == "weight":
        safe_set_local_fp32_param(parameter, padded)
    else:
        safe_set_local_optimizer_state(parameter, padded, kind)
