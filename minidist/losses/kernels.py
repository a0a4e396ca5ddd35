"""Divergences whose value and gradient are computed together by one GPU kernel of Liger, in a single pass over the classes.

The kernel is the inner part of Liger's fused linear Jensen-Shannon divergence, called on the chunks of `losses.chunked`, so
that bias, soft caps, padded vocabularies, float32 gradient sums and all figures are unchanged.
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
from minidist.losses.ratios import Corrected
from minidist.losses.targets import Divergence, Objective


@dataclass(frozen=True)
class OnePass:
    """`plain`, a generalised JSD with weight `beta` (0: forward KL, 1: reverse KL), by the kernel.

    [N, C] and [N, C] to [N] nats. Tables with a log-probability of -inf, and float64 tables, are computed by `plain`.
    """

    plain: Divergence
    beta: float

    def __call__(self, student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
        """[N] nats."""
        same_shape(student_NC, teacher_NC)
        if student_NC.dtype == torch.float64 or not student_NC.numel():
            return self.plain(student_NC, teacher_NC)
        found_N: Tensor = _OnePass.apply(student_NC, teacher_NC, self.beta)
        # The kernel does not treat 0 * log 0 as 0.
        return found_N if bool(found_N.isfinite().all()) else self.plain(student_NC, teacher_NC)


def in_one_pass(objective: Objective) -> Objective:
    """The objective with its divergence computed by the kernel, or the objective itself if the kernel has no such divergence.

    Raises:
        ImportError: liger-kernel is not installed.
    """
    if isinstance(objective, Corrected):
        return replace(objective, objective=in_one_pass(objective.objective))
    plain: Any = getattr(objective, "divergence", None)
    beta = _beta(plain)
    if beta is None:
        return objective
    _kernel()
    return cast(Objective, replace(cast(Any, objective), divergence=OnePass(plain, beta)))


def _beta(divergence: Divergence | None) -> float | None:
    """The weight under which the kernel computes a divergence; None if the kernel has no such divergence."""
    if divergence in (forward_kl, reverse_kl):
        return float(divergence is reverse_kl)
    return float(divergence.keywords["beta"]) if isinstance(divergence, partial) and divergence.func is jsd else None


@cache
def _kernel() -> Callable[..., Any]:
    """(student [N, C], overwritten; teacher [N, C], labels, beta, ignored label, divisor) to ([N, C] of the loss, gradient)."""
    import liger_kernel.functional  # type: ignore[import-not-found]  # noqa: F401  # registers the kernels
    from liger_kernel.backends import dispatch  # type: ignore[import-not-found]

    # Liger's other kernels lose precision where the rows are nearly equal.
    return partial(dispatch, "jsd_loss_and_grad", impl="nvidia-triton")


class _OnePass(torch.autograd.Function):
    """The kernel's gradient, kept from the forward pass for the backward."""

    @staticmethod
    def forward(ctx: Any, student_NC: Tensor, teacher_NC: Tensor, beta: float) -> Tensor:
        student_NC, teacher_NC = student_NC.contiguous(), teacher_NC.to(student_NC).contiguous()
        loss_NC, slope_NC = _kernel()(student_NC.clone(), teacher_NC, None, beta, -100, 1.0)
        ctx.save_for_backward(slope_NC)
        return loss_NC.sum(-1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, slope_N: Tensor) -> tuple[Tensor, None, None]:
        (slope_NC,) = ctx.saved_tensors
        return slope_N[:, None] * slope_NC, None, None
