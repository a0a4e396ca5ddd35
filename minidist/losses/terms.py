"""The terms of a loss on labelled rows: configuration to functions of two models' predictions, and their weighted sum."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from minidist import losses
from minidist.config.divergences import TransportConfig
from minidist.config.terms import (
    CrossEntropyConfig,
    DISTConfig,
    DivergenceConfig,
    GroupedSection,
    MSEConfig,
    PKDConfig,
    SinkhornTermConfig,
    SKDConfig,
    TermConfig,
    TermSection,
)
from minidist.losses.costs import wide
from minidist.losses.imitation import (
    label_loss,
    matched_layers,
    patient,
    relational,
    spherical,
    squared_difference,
)
from minidist.losses.predictions import Predictions
from minidist.losses.transport import sinkhorn, sinkhorn_sample_wise

Value = Callable[[Any, Predictions, Predictions | None, float], Tensor]
"""A term's value at each prediction [N], from its section, the learner's predictions, the other's, and the progress."""


@dataclass(frozen=True)
class Term:
    """A term of a loss."""

    config: TermSection
    value: Value

    def __call__(self, learner: Predictions, other: Predictions | None, progress: float) -> Tensor:
        """The term at each prediction, [N]: unweighted; grouped terms group by group."""
        size = self.config.group_rows if isinstance(self.config, GroupedSection) and self.config.grouped else None
        if size is None or size >= learner.rows:
            return self.value(self.config, learner, other, progress)
        starts = range(0, learner.rows, size)
        groups = ((_part(learner, at, size), None if other is None else _part(other, at, size)) for at in starts)
        return torch.cat([self.value(self.config, *group, progress) for group in groups])


def loss_terms(configs: Mapping[str, TermConfig]) -> dict[str, Term]:
    """The terms of a loss, by name."""
    return {name: Term(config, _VALUES[type(config)]) for name, config in configs.items()}


def total(
    terms: Mapping[str, Term], learner: Predictions, other: Predictions | None = None, *, progress: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of the terms at each prediction [N], and each term's values [N] without weight and gradient, by name.

    Args:
        terms: of `loss_terms`.
        learner: predictions of the model that learns.
        other: predictions of the model that is imitated, of the same rows; None where no term imitates.
        progress: share of the learner's steps that are done, from 0 to 1, which schedules follow.

    A term of weight 0 adds nothing. Gradients reach `other` where it carries any.
    """
    sum_N, values = torch.zeros_like(learner.labels_N, dtype=torch.float32), {}
    for name, term in terms.items():
        with torch.set_grad_enabled(torch.is_grad_enabled() and term.config.weight > 0):
            value_N = term(learner, other if term.config.needs_teacher else None, progress)
        values[name] = value_N.detach()
        sum_N = sum_N + term.config.weight * value_N if term.config.weight else sum_N
    return sum_N, values


def _part(predictions: Predictions, start: int, count: int) -> Predictions:
    """Predictions of some consecutive rows, of which each has one."""
    rows = slice(start, start + count)
    hidden = tuple(each[rows] for each in predictions.hidden)
    row_N = predictions.row_N[rows] - start
    return Predictions(predictions.logits_NC[rows], predictions.labels_N[rows], row_N, len(row_N), hidden)


def _cross_entropy(config: CrossEntropyConfig, learner: Predictions, other: Predictions | None, progress: float) -> Tensor:
    return label_loss(learner)


def _divergence(config: DivergenceConfig, learner: Predictions, other: Predictions | None, progress: float) -> Tensor:
    assert other is not None
    temperature = config.temperature_at(progress)
    function = getattr(losses, config.divergence.type)
    value_N = function(learner.logprobs_NC(temperature), other.logprobs_NC(temperature), **config.divergence.options)
    return value_N * (temperature**2 if config.squared_temperature else 1)


def _mse(config: MSEConfig, learner: Predictions, other: Predictions | None, progress: float) -> Tensor:
    assert other is not None
    temperature = config.temperature_at(progress)
    value_N = squared_difference(learner, other, temperature=temperature, probabilities=config.of == "probabilities")
    return value_N * (temperature**2 if config.squared_temperature else 1)


def _patient(config: PKDConfig, learner: Predictions, other: Predictions | None, progress: float) -> Tensor:
    assert other is not None and learner.hidden and other.hidden, "hidden states were not asked for"
    return patient(learner, other, matched_layers(config.layers, len(learner.hidden) - 1, len(other.hidden) - 1))


def _spherical(config: SKDConfig, learner: Predictions, other: Predictions | None, progress: float) -> Tensor:
    assert other is not None
    temperature = config.temperature_at(progress)
    return spherical(learner, other, temperature=temperature) * (temperature**2 if config.squared_temperature else 1)


def _relational(config: DISTConfig, learner: Predictions, other: Predictions | None, progress: float) -> Tensor:
    assert other is not None
    temperature = config.temperature_at(progress)
    value_N = relational(learner, other, temperature=temperature, beta=config.beta, gamma=config.gamma)
    return value_N * (temperature**2 if config.squared_temperature else 1)


def _sinkhorn(config: SinkhornTermConfig, learner: Predictions, other: Predictions | None, progress: float) -> Tensor:
    temperature = config.temperature_at(progress)
    options = config.model_dump(include={*TransportConfig.model_fields})
    squared = temperature**2 if config.squared_temperature else 1
    if learner.scores:
        scores = wide(learner.logits_NC[:, 0]) / temperature
        target = wide(learner.labels_N) if config.labels or other is None else wide(other.logits_NC[:, 0])
        return squared * sinkhorn(scores, target / temperature, **options)
    if config.labels or other is None:
        return squared * sinkhorn(learner.logprobs_NC(temperature), learner.labels_N, **options)
    function = sinkhorn_sample_wise if config.sample_wise else sinkhorn
    return squared * function(learner.logprobs_NC(temperature), other.logprobs_NC(temperature), **options)


_VALUES: dict[type[TermSection], Value] = {
    CrossEntropyConfig: _cross_entropy,
    DivergenceConfig: _divergence,
    MSEConfig: _mse,
    PKDConfig: _patient,
    SKDConfig: _spherical,
    DISTConfig: _relational,
    SinkhornTermConfig: _sinkhorn,
}
"""The function of each kind of term."""
