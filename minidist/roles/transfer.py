"""Weights through Ray's object store: the learner stores them once, and all engines on a node read the same copy."""

from collections.abc import Sequence

import numpy as np

from minidist.concurrency import both, together
from minidist.errors import CanaryError, DivergedError
from minidist.protocols import Learner, RolloutEngine


class ObjectStoreTransfer:
    """Publishes to all engines and proves it: each must give the learner's log-probabilities of fresh random tokens.

    An engine may report success and keep a stale head, so only a log-probability proves a sync: it depends on every layer
    and, through the softmax, on every row of the output head.
    """

    def __init__(self, tolerance_nats: float) -> None:
        self.proved = 0
        self._tolerance = tolerance_nats

    async def publish(self, learner: Learner, engines: Sequence[RolloutEngine]) -> float:
        """Largest difference of any engine, nats. Raises CanaryError beyond the tolerance, and DivergedError where the
        learner's own log-probabilities are not finite."""
        keep = getattr(learner, "keep", None)  # a learner in actors leaves its weights in the object store
        weights = await (learner.weights(False) if keep is None else keep("weights", False))
        assert weights is not None, "the first rank gives the weights"
        self.proved += 1
        # Two roles that wait for nothing of each other.
        probe, _ = await both(learner.probe(self.proved), together(engine.load(weights) for engine in engines))
        scored = await together(engine.score(probe.tokens.tolist()) for engine in engines)
        worst = float(np.max([np.abs(probe.logprobs - rows).max() for rows in scored])) if scored else 0.0
        if not np.isfinite(probe.logprobs).all():
            cause = "its weights have grown beyond their precision; lower learner.optimizer.lr"
            raise DivergedError(f"weight sync {self.proved}: the student's log-probabilities are not finite: {cause}")
        if not worst <= self._tolerance:
            raise CanaryError(
                f"weight sync {self.proved}: an engine's log-probabilities differ from the learner's by {worst:.3g} nats, more "
                f"than {self._tolerance:g}; the engine did not take the new weights"
            )
        return worst
