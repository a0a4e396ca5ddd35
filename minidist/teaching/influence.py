"""Influence of single rows, and mixed second derivatives, by central differences along one direction.

With l_i the student's loss of row i, L_v its loss on held-out rows, and g = grad L_v, the influence of row i is
w_i = <grad l_i, g>: after a step of plain SGD with rate eta, the derivative of L_v by the weight of row i is -eta w_i. A
positive w_i helps. Two forward passes give all w_i, where one backward pass a row would be needed (Ren et al., LGTM,
arXiv:2305.09651; TracIn: Pruthi et al., arXiv:2002.08484).
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from minidist.learners.group import Group


def central_difference(
    evaluate: Callable[[], Sequence[Tensor]], parameters: Sequence[Tensor], direction: Sequence[Tensor], *, radius: float
) -> list[Tensor]:
    """The derivative along `direction` of what `evaluate` returns: [f(theta + R g) - f(theta - R g)] / 2R, R = radius / ||g||.

    Args:
        evaluate: values that depend on the parameters; called twice.
        parameters: theta, in float32 or wider: bfloat16 has no digits for so small a difference.
        direction: g, of the parameters' shapes.
        radius: distance that theta moves. The error falls with its square, until rounding takes over.

    Returns:
        A tensor for each of the values. Zeros where g is zero. The parameters are as before, bit for bit, even if `evaluate`
        raises.
    """
    length = norm(direction)
    if length == 0:
        return [torch.zeros_like(value) for value in evaluate()]
    step = radius / length
    values = []
    for sign in (1, -1):
        with moved(parameters, direction, sign * step):
            values.append([value.detach().clone() for value in evaluate()])
    return [(above - below) / (2 * step) for above, below in zip(*values, strict=True)]


@contextmanager
def moved(parameters: Sequence[Tensor], direction: Sequence[Tensor], length: float) -> Iterator[None]:
    """The parameters plus `length` times the direction; afterwards those of before, from copies."""
    kept = [each.detach().clone() for each in parameters]
    try:
        with torch.no_grad():
            for parameter, each in zip(parameters, direction, strict=True):
                parameter.add_(each, alpha=length)
        yield
    finally:
        with torch.no_grad():
            for parameter, each in zip(parameters, kept, strict=True):
                parameter.copy_(each)


def norm(tensors: Sequence[Tensor]) -> float:
    """The Euclidean norm of all entries together."""
    return float(torch.stack([each.detach().double().square().sum() for each in tensors]).sum().sqrt())


def normalised(influence_B: Tensor, group: Group) -> Tensor:
    """Influence over the mean of its absolute values on all ranks, which hold equally many rows; zeros stay zeros."""
    size = _mean(influence_B.abs(), group)
    return influence_B / size if size > 0 else influence_B


def row_weights(influence_B: Tensor, group: Group) -> Tensor:
    """Weights of rows: their influence where it is positive, 1 on average over all ranks; 1 each where no influence is."""
    helpful_B = influence_B.clamp(min=0)
    size = _mean(helpful_B, group)
    return helpful_B / size if size > 0 else torch.ones_like(influence_B)


def _mean(values_B: Tensor, group: Group) -> float:
    total, rows = group.total(np.array([float(values_B.double().sum()), len(values_B)]))
    return float(total / rows)
