"""`routing`: how several teachers, the section `teachers`, divide the text among them."""

import math

from pydantic import Field, NonNegativeFloat, model_validator

from minidist.config.base import Section


class RoutingConfig(Section):
    """Which of the `teachers` a row is scored by: the one that a column of the row names, or all of them.

    With `column` a row has one teacher, and everything about the row is measured against it: the loss, evaluations, the text
    that a teacher writes. With `weights` the teacher of every row is the mixture of the teachers' distributions, token by
    token:

        p(y | x) = sum over teachers i of weights[i] * p_i(y | x)

    the arithmetic mean of an ensemble's predictive distributions (Hinton, Vinyals & Dean, arXiv:1503.02531, section 1), to
    which any divergence, reward or evaluation is then taken. For a forward KL its gradient is that of the weighted sum of the
    teachers' divergences; for others it is not: a reverse KL then seeks the modes of any teacher, where the weighted sum seeks
    text that all of them find likely. objective.temperature divides the logarithm of the mixture.
    """

    column: str | None = Field(default=None, min_length=1)
    """Column whose value names the row's teacher, in the rows of data.prompts, data.validation and of all streams that a
    teacher scores. Every row must have a value, and the value must be a name under `teachers`."""
    default: str | None = None
    """Teacher of the rows in which the column is empty or null. None: such rows are refused."""
    weights: dict[str, NonNegativeFloat] | None = None
    """Share of each teacher in the mixture, by name; they add up to 1. A teacher of weight 0 is not asked. Whole distributions
    are mixed, so all teachers give payload hidden; where the objective uses sampled tokens alone, all may give sampled."""

    @model_validator(mode="after")
    def _one_way(self) -> "RoutingConfig":
        if (self.column is None) == (self.weights is None):
            raise ValueError("set exactly one of routing.column (a teacher for each row) and routing.weights (their mixture)")
        if self.default is not None and self.column is None:
            raise ValueError("routing.default is of rows without a value in routing.column; leave it out")
        if self.weights is not None and not math.isclose(sum(self.weights.values()), 1, abs_tol=1e-6):
            raise ValueError(f"routing.weights add up to {sum(self.weights.values()):g}; expected 1")
        return self

    @property
    def shares(self) -> dict[str, float]:
        """The teachers of a mixture that have a share; none where each row has its own."""
        return {name: weight for name, weight in (self.weights or {}).items() if weight > 0}
