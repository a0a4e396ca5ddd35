"""Bytes that a step moves, by the way that they take."""

from minidist.preflight.forecast.scenario import Scenario

_TEXT_BYTES = 52
"""Of a token of text: id, log-probability and version from the engine (16), to the teacher (16), to the learner (20)."""


def score_bytes(scenario: Scenario) -> float:
    """The teacher's scores of all written tokens."""
    return scenario.workload.written * scenario.workload.payload_bytes


def text_bytes(scenario: Scenario) -> float:
    """Text from engines to teachers and learner, all of it through the driver."""
    return _TEXT_BYTES * scenario.workload.written


def gathered_bytes(scenario: Scenario) -> float:
    """What a rank of the learner exchanges with the others in a micro-batch.

    ZeRO 3: the weights three times (forward, recomputation or backward, gradients scattered back; the forward pass of
    checkpointed layers once more), and the output head three times a chunk or a micro-batch. ZeRO 0 to 2: the gradients, which
    ZeRO 0 and 1 add once a step (Rajbhandari et al., arXiv:1910.02054, section 7).
    """
    layout, model = scenario.layout, scenario.student
    if layout.learner == 1:
        return 0.0
    if layout.zero < 3:
        passes = 1.0 if layout.zero == 2 else 2 * scenario.workload.updates / micro_batches(scenario)
        return model.nbytes * passes
    shape = model.shape
    chunks = layout.micro_batch / layout.chunk if scenario.paths.head_per_chunk else 1.0
    head = 3 * chunks * shape.vocabulary * shape.hidden * model.nbytes / shape.parameters
    return 4 * model.nbytes + head


def micro_batches(scenario: Scenario) -> float:
    """Micro-batches of a rank in a step; a row longer than the budget is one of its own."""
    row = scenario.workload.row.tokens
    size = max(scenario.layout.micro_batch, row)
    return max(1.0, rows_per_rank(scenario) * row / size)


def rows_per_rank(scenario: Scenario) -> float:
    """Answers that the busiest rank of the learner reads."""
    return shared(scenario.workload.answers, scenario.layout.learner, even=scenario.paths.even)


def shared(items: float, members: int, *, even: bool) -> float:
    """Items of the busiest of so many members; `even`: of each, in fractions.

    >>> shared(10, 4, even=False), shared(10, 4, even=True)
    (3, 2.5)
    """
    return items / members if even else -(-items // members)


def volumes(scenario: Scenario) -> dict[str, float]:
    """Bytes of a step by path, for people."""
    layout, weights, scores = scenario.layout, scenario.student.nbytes, score_bytes(scenario)
    found = {"scores": scores, "text": text_bytes(scenario), "weights, one publication": float(weights)}
    if scenario.paths.scores == "driver":
        found["scores, in and out of the driver"] = 2 * scores
    if scenario.paths.weights == "host":
        found["weights, to the rollout nodes"] = float(weights * scenario.nodes(layout.rollout))
        if layout.rollout_split > 1:
            found["weights, to the engines' workers"] = float(weights * layout.rollout)
    found["learner, a rank's exchange"] = gathered_bytes(scenario) * micro_batches(scenario)
    return found
