"""Published methods: one YAML file each, and the code of those that need any."""

from minidist.config.distill import DistillConfig
from minidist.config.objectives import MiniLLMConfig, PolicyGradientConfig, RankingConfig
from minidist.methods.credit import CreditMethod
from minidist.methods.minillm import PolicyCredit
from minidist.methods.ranking import RankingCredit
from minidist.protocols import Learner

_CREDIT_METHODS: dict[type, type[CreditMethod]] = {
    MiniLLMConfig: PolicyCredit,
    PolicyGradientConfig: PolicyCredit,
    RankingConfig: RankingCredit,
}


def make_credit(config: DistillConfig, learner: Learner) -> CreditMethod | None:
    """The credit method of the main stream's objective; None when the objective needs no credit."""
    method = _CREDIT_METHODS.get(type(config.objective))
    return None if method is None else method(config, learner)
