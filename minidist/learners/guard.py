"""Gradients that are not finite, known before the optimizer moves."""

import torch
from torch import Tensor
from torch.nn import Parameter
from transformers import PreTrainedModel


class FiniteGuard:
    """Watches every gradient as it is formed, so that one that is not finite is known before the optimizer moves."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._bad: dict[str, Tensor] = {}
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                self._watch(name, parameter)

    def reset(self) -> None:
        self._bad.clear()

    def culprit(self) -> str | None:
        """A parameter whose gradient was not finite in some micro-batch, or None."""
        names = list(self._bad)
        if not names or not bool((flags := torch.stack([self._bad[name] for name in names])).any()):
            return None
        return names[int(flags.int().argmax())]

    def _watch(self, name: str, parameter: Parameter) -> None:
        def look(gradient: Tensor) -> None:
            bad = ~torch.isfinite(gradient).all()
            self._bad[name] = self._bad[name] | bad if name in self._bad else bad

        parameter.register_hook(look)
