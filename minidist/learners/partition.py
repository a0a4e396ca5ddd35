"""Models whose parameters are partitioned as soon as they are made, so that no rank ever holds a whole one."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers.initialization import no_init_weights


@contextmanager
def partitioning(settings: dict[str, Any]) -> Iterator[None]:
    """Every module that is made inside has its parameters partitioned over all ranks, without values; its buffers are whole.

    settings: DeepSpeed's configuration, which says where the parts lie. The ranks have met already.
    """
    import deepspeed

    class Parts(deepspeed.zero.Init):
        def _zero_init_param(self, param: Any) -> None:
            # DeepSpeed would send the whole parameter of rank 0, which has no values yet, to all ranks.
            self._convert_to_deepspeed_param(param)
            param.partition()

    # DeepSpeed would make every tensor in the precision of the parameters, and round the frequencies of rotary positions.
    with no_init_weights(), Parts(config_dict_or_path=settings, tensor_overrides=[]):
        yield


def is_partitioned(model: torch.nn.Module) -> bool:
    """Whether DeepSpeed has partitioned parameters of the model."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())
