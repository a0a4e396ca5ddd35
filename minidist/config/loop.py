"""`loop`: what overlaps in a distillation."""

from typing import Annotated

from pydantic import Field

from minidist.config.base import FREE, Section


class LoopConfig(Section):
    """What overlaps: scoring with writing, and learning with the writing of later collections."""

    max_staleness: int = Field(default=0, ge=0)
    """Most collections that the engines write ahead of the learner, with the weights published last. 0: strictly on-policy;
    roles take turns. 1: while the learner trains on a collection the next is written, so that a step takes as long as the
    slower of the two. The tokens are then up to max_staleness collections old (age/updates_max); see ratio_max."""
    ratio_max: float = Field(default=2.0, ge=1)
    """With max_staleness of at least 1: bound on the importance ratio q_now / q_written by which a loss that depends on the
    sampled token is weighted (truncated importance sampling; Ionides, Journal of Computational and Graphical Statistics
    17(2), 2008; per token as in IMPALA's V-trace, Espeholt et al., arXiv:1802.01561, section 4.1). A divergence over all
    classes does not depend on it and has no weight. The prefixes stay those of the student that wrote them."""
    stream: Annotated[bool | None, FREE] = None
    """Score the student's answers as they finish, while others are still being written. Same text, same scores. None: where
    engines and teacher share neither devices nor cores: each on GPUs of its own, a teacher on a server, or cluster.threads that
    add up to at most the machine's cores."""
