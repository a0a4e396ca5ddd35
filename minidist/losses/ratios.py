"""Importance ratios of text that an earlier student wrote, and objectives whose losses they weight."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from minidist.losses.targets import Objective, TokenTargets

MAX, MEAN, TRUNCATED = "policy/ratio_max", "policy/ratio_mean", "policy/ratio_truncated_frac"
"""Metrics: the largest ratio before truncation, the mean of the truncated ratios, and the share of the tokens whose ratio is
above the bound."""


def ratios(logprob_N: Tensor, written_N: Tensor) -> Tensor:
    """q_now / q_written of each token from its log-probabilities, nats; 1 where the second is NaN: the student did not choose
    the token, and its writer's distribution is still the same. [N], without gradient.

    >>> ratios(torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, torch.nan]).log())
    tensor([2., 1.])
    """
    return torch.where(written_N.isnan(), 0.0, logprob_N.detach() - written_N).exp()


@dataclass
class Corrected(Objective):
    """The losses of `objective`, times min(q_now(y) / q_written(y), bound) where they depend on the sampled token y.

    For text y ~ q_written the expectation of a weighted loss at a given prefix is, without the bound, that of the loss for
    y ~ q_now, so the expected gradient of a loss of sampled tokens is the on-policy one. The bound limits the variance at the
    cost of a bias. A divergence over all classes does not depend on y: a weight would leave its expectation and add variance,
    so it has none. Prefixes stay those of the student that wrote them. In teacher-mixed sampling the coins belong to the
    sample: a token of the teacher has ratio 1.

    Source: Ionides, Truncated importance sampling, Journal of Computational and Graphical Statistics 17(2), 2008; per token as
    rho in Espeholt et al., IMPALA, arXiv:1802.01561, section 4.1.

    Args:
        objective: the losses of the current student, at the temperature at which the text was sampled.
        bound: largest weight.
    """

    objective: Objective
    bound: float
    _largest: list[Tensor] = field(default_factory=list)

    @property
    def figures(self) -> tuple[str, ...]:  # type: ignore[override]
        return (*self.objective.figures, MEAN, TRUNCATED)

    @property
    def sampled(self) -> bool:
        return self.objective.sampled

    @property
    def group_tokens(self) -> int | None:
        return self.objective.group_tokens

    @property
    def temperature(self) -> float:
        return self.objective.temperature

    def __call__(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N] nats."""
        loss_N = self.objective(student_NV, targets)
        return self._ratios(student_NV, targets).clamp(max=self.bound) * loss_N if self.sampled else loss_N

    @torch.no_grad()
    def explain(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        """[N, F + 2]: the objective's figures, the truncated ratio, and 1 where the ratio is above the bound."""
        ratio_N = self._ratios(student_NV, targets)
        self._largest = [torch.stack([ratio_N.max(), *self._largest]).max()]
        own_NF = self.objective.explain(student_NV, targets)
        weights_N2 = torch.stack([ratio_N.clamp(max=self.bound), (ratio_N > self.bound).to(ratio_N)], -1)
        return torch.cat([own_NF.to(weights_N2), weights_N2], -1)

    def peaks(self) -> dict[str, float]:
        """The largest ratio since the last call."""
        largest, self._largest = self._largest, []
        return {MAX: max(map(float, largest), default=0.0)}

    def _ratios(self, student_NV: Tensor, targets: TokenTargets) -> Tensor:
        assert targets.written_logprob_N is not None, "a correction needs the log-probabilities with which the text was written"
        return ratios(targets.of_labels(student_NV), targets.written_logprob_N)
