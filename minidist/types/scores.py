"""What a teacher returns of a rollout."""

from dataclasses import dataclass
from enum import StrEnum

from minidist.types.arrays import Array


class Payload(StrEnum):
    """What a teacher returns for each token, from the poorest payload to the richest; see `TeacherScores`."""

    SAMPLED = "sampled"
    TOP_K = "top_k"
    HIDDEN = "hidden"

    def serves(self, needed: str) -> bool:
        """Whether an objective that needs `needed` can use this payload: a richer payload serves every poorer need.

        >>> Payload.HIDDEN.serves("top_k"), Payload.SAMPLED.serves("top_k")
        (True, False)
        """
        order = list(Payload)
        return order.index(self) >= order.index(Payload(needed))


@dataclass(frozen=True)
class TeacherScores:
    """The teacher's scores of the T generated tokens of a rollout, in one of three payloads.

    SAMPLED: `logprobs` [T], nats, of the generated tokens. TOP_K: also `top_ids` and `top_logprobs` [T, K], in falling order;
    the tail has the remaining probability. HIDDEN: `hidden` [T, D], the states before the output head. The learner applies the
    teacher's head to them, which gives the exact distribution over the vocabulary at a fraction of its bytes. bfloat16 travels
    as uint16; `hidden_dtype` names the real type.
    """

    payload: Payload
    logprobs: Array | None = None
    top_ids: Array | None = None
    top_logprobs: Array | None = None
    hidden: Array | None = None
    hidden_dtype: str = "float32"
