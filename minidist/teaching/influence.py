"""Influence of single rows, and mixed second derivatives, by central differences along one direction.

With l_i the student's loss of row i, L_v its loss on held-out rows, and g = grad L_v, the influence of row i is
w_i = <grad l_i, g>: after a step of plain SGD with rate eta, the derivative of L_v by the weight of row i is -eta w_i. A
positive w_i helps. Two forward passes give all w_i, where one backward pass a row would be needed (Ren et al., LGTM,
arXiv:2305.09651; TracIn: Pruthi et al., arXiv:2002.08484).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
import torch
from torch import Tensor

from minidist.errors import DivergedError
from minidist.learners.group import Group

T = TypeVar("T")


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

    Raises:
        DivergedError: the direction is not finite.
    """
    values = both_sides(lambda: [value.detach().clone() for value in evaluate()], parameters, direction, radius=radius)
    return [(above - below) * values.scale for above, below in zip(values.above, values.below, strict=True)]


@dataclass(frozen=True)
class Sides(Generic[T]):
    """f(theta + R g), f(theta - R g) and 1 / 2R, by which their difference is the derivative along g; 0 where g is zero."""

    above: T
    below: T
    scale: float


def both_sides(
    evaluate: Callable[[], T], parameters: Sequence[Tensor], direction: Sequence[Tensor], *, radius: float
) -> Sides[T]:
    """What `evaluate` returns on both sides of the parameters, which are as before afterwards; see `central_difference`.

    Where a function of these values is linear, such as the gradient by other parameters, one pass over the difference of the
    two gives its derivative along g.
    """
    length = norm(direction)
    if not math.isfinite(length):
        raise DivergedError("the gradient of the student's held-out loss is not finite, so no influence can be measured")
    distance = radius / (length or 1.0)
    with moved(parameters, direction, distance) as move:
        above = evaluate()
        move(-distance)
        below = evaluate()
    return Sides(above, below, scale=length / (2 * radius))


@contextmanager
def moved(parameters: Sequence[Tensor], direction: Sequence[Tensor], length: float) -> Iterator[Callable[[float], None]]:
    """The parameters plus `length` times the direction; afterwards those of before, bit for bit.

    Yields a function that moves them to another length from where they were. The tensors that they hold are exchanged, so that
    nothing is copied back.
    """
    parameters = list(parameters)
    kept = [each.data for each in parameters]

    def move(length: float) -> None:
        for parameter, start, each in zip(parameters, kept, direction, strict=True):
            parameter.data = torch.add(start, each, alpha=length)

    try:
        move(length)
        yield move
    finally:
        for parameter, start in zip(parameters, kept, strict=True):
            parameter.data = start


def norm(tensors: Sequence[Tensor]) -> float:
    """The Euclidean norm of all entries together."""
    return float(torch.nn.utils.get_total_norm([each.detach() for each in tensors]))


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
