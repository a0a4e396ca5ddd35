"""The learner under DeepSpeed ZeRO: the same gradient as `SingleLearner`, partitioned.

DeepSpeed averages gradients over ranks, so each rank's loss is multiplied by their number; the streams' counts are
already those of all ranks. The caller owns the accumulation boundary, so micro-batches may be as many and as uneven as
the step needs.
"""

import logging
import os
import tempfile
from pathlib import Path
from typing import Any

from torch import Tensor

from minidist.learners.schedule import make_optimizer
from minidist.learners.single import SingleLearner


class DeepSpeedLearner(SingleLearner):
    """One rank. On a CPU: gloo, and torch's own AdamW."""

    def _prepare(self) -> None:
        os.environ.setdefault("DS_ACCELERATOR", "cuda" if self._model.device.type == "cuda" else "cpu")
        import deepspeed

        logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
        _join(self._model.device.type)
        optimizer = make_optimizer(self._config.optimizer, self._model.named_parameters())
        self._engine: Any
        self._zero: Any
        self._engine, self._zero, _, _ = deepspeed.initialize(
            model=self._student, optimizer=optimizer, config=self._settings(), dist_init_required=False
        )

    def _load(self, path: Path) -> None:
        super()._load(path)
        self._zero.refresh_fp32_params()  # the optimizer steps from copies of its own

    def _settings(self) -> dict[str, Any]:
        return {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "managed_gradient_accumulation": False,  # every step() is a boundary, however many backwards came before
            "gradient_clipping": self._config.optimizer.grad_clip or 0.0,
            "zero_optimization": {"stage": self._config.zero_stage, "overlap_comm": False},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": str(self._model.dtype) == "torch.bfloat16"},
            "steps_per_print": 1 << 60,
            "wall_clock_breakdown": False,
        }

    def _forward(self, *arguments: object) -> tuple[Tensor, Tensor, Tensor | None]:
        return self._engine(*arguments)

    def _backward(self, loss: Tensor) -> None:
        self._engine.backward(loss * self.ranks)

    def _apply(self, rate: float) -> float:
        for group in self._zero.param_groups:
            group["lr"] = rate
        self._engine.step()
        return float(self._engine.get_global_grad_norm())

    def _discard(self) -> None:
        self._zero.zero_grad()


def _join(device: str) -> None:
    """Start the process group of this rank, over a file: no port is opened that another run could want."""
    import deepspeed.comm
    import torch.distributed

    if not torch.distributed.is_initialized():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", LOCAL_SIZE="1")
        meeting = Path(tempfile.mkdtemp(prefix="minidist-ranks-")) / "store"
        torch.distributed.init_process_group(
            "nccl" if device == "cuda" else "gloo", init_method=f"file://{meeting}", rank=0, world_size=1
        )
    if not deepspeed.comm.is_initialized():
        # The shared-memory extension moves data between the ranks of a node. One rank has nothing to move, and compiling
        # it takes half a minute.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.comm.init_distributed(dist_backend=torch.distributed.get_backend(), dist_init_required=False)
