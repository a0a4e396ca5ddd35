"""Published methods: one YAML file each, and the code of those that need any."""

from minidist.config.distill import DistillConfig
from minidist.methods.credit import CreditMethod
from minidist.methods.minillm import PolicyCredit
from minidist.methods.ranking import RankingCredit
from minidist.protocols import Learner

CREDIT_METHODS: dict[str, type[CreditMethod]] = {"policy": PolicyCredit, "ranking": RankingCredit}
"""The credit methods that an objective declares in `credited_by`."""


def make_credit(config: DistillConfig, learner: Learner) -> CreditMethod | None:
    """The credit method of the main stream's objective; None when the objective needs no credit."""
    name = config.objective.credited_by
    return None if name is None else CREDIT_METHODS[name](config, learner)
