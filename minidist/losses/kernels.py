"""Divergences whose value and gradient one GPU kernel forms together, in a single pass over the classes: Liger's.

It is the kernel within Liger's fused linear Jensen-Shannon divergence, set into our own chunks, so that bias, soft caps, padded
vocabularies, gradients summed in float32 and every figure stay as they are.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from minidist.losses.divergences import forward_kl, reverse_kl, same_shape
from minidist.losses.mixtures import jsd
from minidist.losses.targets import Divergence, Objective


@dataclass(frozen=True)
class OnePass:
    """`plain`, a generalised JSD of `beta` (0 the forward KL, 1 the reverse KL), by the kernel; [N, C] and [N, C] to [N] nats.

    Tables in which a log-probability is -inf, and those in float64, are left to `plain`.
    """

    plain: Divergence
    beta: float

    def __call__(self, student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
        """[N] nats."""
        same_shape(student_NC, teacher_NC)
        if student_NC.dtype == torch.float64 or not student_NC.numel():
            return self.plain(student_NC, teacher_NC)
        found_N: Tensor = _OnePass.apply(student_NC, teacher_NC, self.beta)
        # The kernel does not know that 0 * log 0 is 0.
        return found_N if bool(found_N.isfinite().all()) else self.plain(student_NC, teacher_NC)


def in_one_pass(objective: Objective) -> Objective:
    """The objective with its divergence formed by the kernel; as it was, where there is no kernel for it.

    Raises:
        ImportError: liger-kernel is not installed.
    """
    plain = getattr(objective, "divergence", None)
    beta = None if plain is None else _beta(plain)
    if plain is None or beta is None:
        return objective
    _kernel()
    return cast(Objective, replace(cast(Any, objective), divergence=OnePass(plain, beta)))


def _beta(divergence: Divergence) -> float | None:
    """Where a divergence lies between the forward KL and the reverse KL; None if it is not one of the kernel's."""
    if divergence in (forward_kl, reverse_kl):
        return float(divergence is reverse_kl)
    if isinstance(divergence, partial) and divergence.func is jsd:
        return float(divergence.keywords.get("beta", 0.5))
    return 0.5 if divergence is jsd else None


@cache
def _kernel() -> Callable[..., Any]:
    """(student [N, C], overwritten; teacher [N, C], labels, beta, ignored label, divisor) to ([N, C] of the loss, gradient)."""
    import liger_kernel.functional  # type: ignore[import-not-found]  # noqa: F401  # its kernels are registered there
    from liger_kernel.backends import dispatch  # type: ignore[import-not-found]

    return partial(dispatch, "jsd_loss_and_grad", impl="nvidia-triton")  # others cancel where the rows are nearly equal


class _OnePass(torch.autograd.Function):
    """The kernel's gradient, kept from the forward pass for the backward."""

    @staticmethod
    def forward(ctx: Any, student_NC: Tensor, teacher_NC: Tensor, beta: float) -> Tensor:
        own_NC, theirs_NC = student_NC.contiguous(), teacher_NC.to(student_NC).contiguous()
        loss_NC, slope_NC = _kernel()(own_NC.clone(), theirs_NC, None, beta, -100, 1.0)
        ctx.save_for_backward(slope_NC)
        return loss_NC.sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_N: Tensor) -> tuple[Tensor, None, None]:
        (slope_NC,) = ctx.saved_tensors
        return slope_N[:, None] * slope_NC, None, None
