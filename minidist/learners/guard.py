"""Gradients that are not finite, found before the optimizer moves."""

from functools import partial

import torch
from torch import Tensor
from transformers import PreTrainedModel

from minidist.errors import DivergedError
from minidist.learners.group import Group


class FiniteGuard:
    """Checks every gradient as it is computed, so that one that is not finite is found before the optimizer moves."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._not_finite: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.register_hook(partial(self._see, name))

    def reset(self) -> None:
        """Forget the gradients seen so far."""
        self._not_finite.clear()

    def check(self, group: Group, collection: int) -> None:
        """Raise DivergedError on all ranks if a gradient of any rank was not finite; `collection` is the loop's step."""
        culprit = self._culprit()
        if group.largest([culprit is not None])[0]:
            name = culprit or "a parameter on another rank"
            raise DivergedError(f"step {collection}: the gradient of {name} is not finite; nothing was updated")

    def _culprit(self) -> str | None:
        """A parameter whose gradient was not finite in some micro-batch, or None."""
        names = list(self._not_finite)
        if not names or not bool((flags := torch.stack([self._not_finite[name] for name in names])).any()):
            return None
        return names[int(flags.int().argmax())]

    def _see(self, name: str, gradient: Tensor) -> None:
        # A sum with a number that is not finite is not finite, and takes a tenth of the time of a look at every number.
        flag = ~gradient.sum(dtype=torch.promote_types(gradient.dtype, torch.float32)).isfinite()
        self._not_finite[name] = self._not_finite[name] | flag if name in self._not_finite else flag
