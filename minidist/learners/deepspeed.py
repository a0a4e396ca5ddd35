"""The learner under DeepSpeed ZeRO: the same gradient as `SingleLearner`, its work shared and its tensors partitioned.

DeepSpeed averages gradients over ranks, so each rank's loss is multiplied by their number; the streams' counts are
already those of all ranks. The caller owns the accumulation boundary, so micro-batches may be as many and as uneven as
the step needs, as long as every rank brings equally many.
"""

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from minidist.config.models import ModelConfig
from minidist.learners.learner import SingleLearner
from minidist.learners.schedule import make_optimizer
from minidist.models.hub import load_model

_MOMENTS = ("exp_avg", "exp_avg_sq")


class DeepSpeedLearner(SingleLearner):
    """One rank of several, or the only one. On a CPU: gloo, and torch's own AdamW."""

    def _prepare(self) -> None:
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if self._model.device.type == "cuda" else "cpu")
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        optimizer = make_optimizer(self._config.optimizer, self._model.named_parameters())
        self._engine: Any
        self._zero: Any
        self._engine, self._zero, _, _ = deepspeed.initialize(
            model=self._student, optimizer=optimizer, config=self._settings(), dist_init_required=False
        )
        self._optimizer = getattr(self._zero, "optimizer", self._zero)  # torch's own, which holds the moments
        self._partitioned = self._config.zero_stage == 3

    def _settings(self) -> dict[str, Any]:
        zero: dict[str, Any] = {"stage": self._config.zero_stage, "overlap_comm": False}
        if self._config.offload_optimizer:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": self._model.device.type == "cuda"}
        if self._config.offload_parameters:
            zero["offload_param"] = {"device": "cpu", "pin_memory": self._model.device.type == "cuda"}
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": False,  # every step() is a boundary, however many backwards came before
            "gradient_clipping": self._config.optimizer.grad_clip or 0.0,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": str(self._model.dtype) == "torch.bfloat16"},
            "steps_per_print": 1 << 60,
            "wall_clock_breakdown": False,
        }

    def _forward(self, *arguments: Any, **options: Any) -> Any:
        return self._engine(*arguments, **options)

    def _backward(self, loss: Tensor) -> None:
        self._engine.backward(loss * self._group.size)

    def _apply(self, rate: float) -> float:
        if self._config.zero_stage == 0:  # plain data parallelism: DeepSpeed's own step would not tell the norm
            self._engine.buffered_allreduce_fallback()
            return super()._apply(rate)
        for group in self._zero.param_groups:
            group["lr"] = rate
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def _discard(self) -> None:
        self._zero.zero_grad()
        if self._config.zero_stage in (1, 2):  # what earlier micro-batches left is forgotten only by a step
            for kept in (self._zero.averaged_gradients, self._zero.all_grad_tensors):
                kept.update(dict.fromkeys(kept))
            self._zero.micro_step_id = -1

    def _tensors(self) -> dict[str, Tensor]:
        state = super()._tensors()
        if not self._partitioned:
            return state
        found: dict[int, Tensor] = {}  # tied names share one tensor here as they do in the model
        for name, parameter in self._model.named_parameters(remove_duplicate=False):
            if id(parameter) not in found:
                found[id(parameter)] = self._whole(parameter)
            state[name] = found[id(parameter)]
        return state

    def _whole(self, parameter: Parameter) -> Tensor:
        """A partitioned parameter, gathered from all ranks; only the first keeps it."""
        import deepspeed

        with deepspeed.zero.GatheredParameters([parameter]):
            return parameter.data.clone().cpu() if self._group.rank == 0 else torch.empty(0)

    def _load(self, path: Path) -> None:
        model = load_model(ModelConfig(model=str(path), dtype=str(self._model.dtype).removeprefix("torch.")), "weights")  # type: ignore[arg-type]
        weights = dict(model.named_parameters())
        for name, parameter in self._model.named_parameters():
            self._set_weight(parameter, weights[name].data)

    def _read_out(self, parameter: Parameter) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if not _mapped(parameter):
            return super()._read_out(parameter)
        moments = _MOMENTS if self._step and self._config.optimizer.type == "adamw" else ()
        read: dict[str, Any] = {}
        for name in moments:
            read[name] = safe_get_full_optimizer_state(parameter, name)
        read["weight"] = safe_get_full_fp32_param(parameter)
        return read

    def _make_room(self) -> None:
        """The moments of an optimizer that has not stepped, laid out as DeepSpeed would at its first step."""
        if self._step == 0 or self._config.optimizer.type != "adamw":
            return
        for flat in self._flats():
            moments = {name: torch.zeros_like(flat) for name in _MOMENTS}
            self._optimizer.state[flat] = {"step": torch.tensor(float(self._step)), **moments}
        self._link()

    def _save_state(self, path: Path) -> None:
        self._link()
        super()._save_state(path)

    def _link(self) -> None:
        """Tell each parameter where its moments lie. ZeRO 1 and 2 do so once, before all parameter groups have stepped."""
        if self._config.zero_stage in (1, 2) and self._step:
            self._zero._hp_optimizer_states_linked = False
            self._zero._lazy_init_hp_params_optimizer_state()

    def _flats(self) -> Iterable[Tensor]:
        """The flat float32 tensors that the optimizer steps, of this rank."""
        if self._config.zero_stage == 0:
            return ()
        return self._zero.fp32_partitioned_groups_flat if self._partitioned else self._zero.single_partition_of_fp32_groups

    def _put_back(self, parameter: Parameter, tensors: dict[str, Tensor]) -> None:
        from deepspeed.utils import safe_set_full_optimizer_state

        if not _mapped(parameter):
            super()._put_back(parameter, tensors)
            return
        self._set_weight(parameter, tensors.pop("weight"))
        for name, value in tensors.items():
            safe_set_full_optimizer_state(parameter, value.float().to(self._model.device), name)

    def _set_weight(self, parameter: Parameter, value: Tensor) -> None:
        """In the model and in the copy that the optimizer steps."""
        import deepspeed
        from deepspeed.utils import safe_set_full_fp32_param

        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0, enabled=self._partitioned):
            if not self._partitioned or self._group.rank == 0:
                parameter.data.copy_(value)
        if _mapped(parameter):
            safe_set_full_fp32_param(parameter, value.float().to(self._model.device))


def _mapped(parameter: Parameter) -> bool:
    """Whether DeepSpeed steps a float32 copy of it: all stages but 0."""
    return parameter.requires_grad and (hasattr(parameter, "ds_id") or hasattr(parameter, "_hp_mapping"))
