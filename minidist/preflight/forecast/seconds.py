"""Seconds of a step by closed formulas: every phase from bytes, products and rates, and the step of each design.

Answers have one length here; what different lengths cost is the matter of `simulation`, which runs the loop with the same costs
(`engine_step`, `scoring`, `learning`, `publishing`).
"""

import math
from dataclasses import dataclass

from minidist.preflight.forecast.scenario import Design, Scenario
from minidist.preflight.forecast.volumes import gathered_bytes, micro_batches, rows_per_rank, score_bytes, shared
from minidist.preflight.memory import BYTES
from minidist.run.flops import Work


def engine_step(scenario: Scenario, sequences: float, context: float) -> float:
    """Seconds in which an engine writes one more token of each of `sequences`, whose mean length is `context`.

    Reading weights and caches, or computing, whichever takes longer; two sums over the devices a layer, where the engine is
    split; and what the engine does beside that.
    """
    layout, rates, shape = scenario.layout, scenario.rates, scenario.student.shape
    split, costs = layout.rollout_split, rates.overheads
    reading = (scenario.student.nbytes + sequences * context * scenario.kv_token) / (rates.device.bandwidth * split)
    computing = shape.flops.forward(Work(1, context, 1)) * sequences / (rates.device.score_flops * split)
    exchanged = 2 * shape.layers * 2 * (split - 1) / split * sequences * shape.hidden * BYTES[scenario.student.dtype]
    device = max(reading, computing) + exchanged / rates.wires.link
    python = sequences * costs.written_token
    return costs.engine_step + (max(device, python) if costs.overlaps else device + python)


def prefill(scenario: Scenario, prompts: float) -> float:
    """Seconds in which an engine reads so many prompts, each once for all its samples."""
    work = Work.row(round(scenario.workload.prompt))
    rate = scenario.rates.device.score_flops * scenario.layout.rollout_split
    return prompts * scenario.student.shape.flops.forward(work) / rate


def generating(scenario: Scenario) -> float:
    """Seconds of the busiest engine: its prompts, and its answers in waves of as many as it holds."""
    workload, slots = scenario.workload, scenario.slots
    prompts = shared(workload.prompts, scenario.layout.engines, even=scenario.paths.even)
    context = workload.prompt + workload.answer / 2
    answers = prompts * workload.samples
    read = prefill(scenario, prompts)
    if scenario.paths.even:
        return read + answers * workload.answer / slots * engine_step(scenario, slots, context)
    waves, rest = divmod(answers, slots)
    whole = waves * engine_step(scenario, slots, context)
    return read + workload.answer * (whole + (engine_step(scenario, rest, context) if rest else 0.0))


def scoring(scenario: Scenario, work: Work) -> float:
    """Seconds in which one teacher scores rows of so much work."""
    if scenario.teacher is None:
        return 0.0
    flops, rates = scenario.teacher.shape.flops, scenario.rates
    tokens = work.heads
    heads = 0.0 if scenario.workload.hidden else tokens
    computing = flops.forward(Work(work.tokens, work.pairs, heads)) / (rates.device.score_flops * scenario.layout.teacher_split)
    return max(computing, rates.overheads.top_k_token * work.tokens if scenario.workload.top_k else 0.0)


def learning(scenario: Scenario, work: Work) -> float:
    """Seconds in which one rank of the learner trains on rows of so much work, without its exchange with other ranks.

    Forward and backward pass, with checkpointing one more forward pass of the layers; the teacher's head on hidden states; and
    the loss's passes over its tables of logits.
    """
    shape, rates, workload = scenario.student.shape, scenario.rates, scenario.workload
    again = Work(work.tokens, work.pairs) if scenario.layout.checkpointing else Work()
    flops = shape.flops.forward(work + again) + shape.flops.backward(work)
    if workload.hidden and scenario.teacher is not None:
        flops += scenario.teacher.shape.flops.head * work.heads
    tables = rates.overheads.loss_passes * work.heads * shape.vocabulary * 4
    return flops / scenario.update_flops + tables / rates.device.bandwidth


def optimizing(scenario: Scenario) -> float:
    """Seconds of one optimizer step beside its gradients: Adam reads and writes some 28 bytes a parameter."""
    layout = scenario.layout
    owners = layout.learner if layout.zero else 1
    return scenario.rates.overheads.update + 28 * scenario.student.shape.trainable / owners / scenario.rates.device.bandwidth


def exchanging(scenario: Scenario) -> float:
    """Seconds of a micro-batch's exchange with other ranks."""
    return gathered_bytes(scenario) / scenario.wire(scenario.layout.learner)


def updating(scenario: Scenario) -> tuple[float, float]:
    """Seconds in which the busiest rank computes, and seconds of its exchange that nothing hides."""
    row, count = scenario.workload.row, micro_batches(scenario)
    rows = rows_per_rank(scenario)
    work = Work(rows * row.tokens, rows * row.pairs, rows * row.heads)
    computing = learning(scenario, work) + math.ceil(count) * scenario.rates.overheads.micro_batch
    exchange = count * exchanging(scenario)
    exposed = max(0.0, exchange - computing) if scenario.paths.overlap else exchange
    return computing + scenario.workload.updates * optimizing(scenario), exposed


def moving(scenario: Scenario) -> float:
    """Seconds in which scores move, and nothing hides it.

    Through the driver: from the teachers' devices into their nodes' stores, to the driver's node and on from there, where nodes
    are several, and once more into the store as arguments of the update. By reference: into the stores of the teachers' nodes,
    by all teachers at once, and from there to the learner's nodes, while the learner computes.
    """
    wires, layout, size = scenario.rates.wires, scenario.layout, score_bytes(scenario)
    if scenario.teacher is None:
        return 0.0
    put = 1 / wires.store + (1 / wires.to_host if scenario.workload.hidden else 0.0)
    several = scenario.nodes(scenario.devices) > 1
    if scenario.paths.scores == "driver":
        hops = 2 / wires.between if several else 0.0
        return size * (put / scenario.nodes(layout.teacher) + 1 / wires.store + hops)
    fetched = size / scenario.nodes(layout.learner) / (wires.between if several else wires.store)
    return size * put / layout.teachers + max(0.0, fetched - updating(scenario)[0])


def publishing(scenario: Scenario) -> float:
    """Seconds from the learner's weights to proved engines.

    Through the host: copied from the first rank's device, stored, sent from node to node in a tree, to the workers of a split
    engine through its pipe, and onto the devices. By broadcast: once over the wire, and with ZeRO 3 gathered before.
    """
    wires, layout, size = scenario.rates.wires, scenario.layout, scenario.student.nbytes
    proof = scenario.rates.overheads.publish
    several = scenario.nodes(scenario.devices) > 1
    if scenario.paths.weights == "broadcast":
        gathered = size / scenario.wire(layout.learner) if layout.zero == 3 and layout.learner > 1 else 0.0
        return proof + gathered + size / (wires.network if several else wires.link)
    hops = math.ceil(math.log2(scenario.nodes(layout.rollout) + 1)) if several else 0
    pipe = size * layout.rollout_split / wires.pipe if layout.rollout_split > 1 else 0.0
    return proof + size * (1 / wires.to_host + 1 / wires.store + hops / wires.between + 1 / wires.to_device) + pipe


@dataclass(frozen=True)
class Phases:
    """Seconds of each phase of a step, when all of them follow one another.

    generate, score, update: of the busiest device. move: scores. exchange: of the learner's ranks, unhidden. publish: weights.
    decode: texts, in the engines. count: figures of the text, in the driver. step: of the loop itself.
    """

    generate: float
    score: float
    update: float
    move: float
    exchange: float
    publish: float
    decode: float
    count: float
    step: float = 0.0

    @property
    def total(self) -> float:
        return sum(vars(self).values())


def phases(scenario: Scenario) -> Phases:
    """The phases of a step of the scenario."""
    workload, layout, costs = scenario.workload, scenario.layout, scenario.rates.overheads
    even, row = scenario.paths.even, workload.row
    rows = shared(workload.answers, layout.teachers, even=even)
    score = scoring(scenario, Work(rows * row.tokens, rows * row.pairs, rows * row.heads))
    update, exchange = updating(scenario)
    answers = shared(workload.prompts, layout.engines, even=even) * workload.samples
    return Phases(
        generate=generating(scenario),
        score=score + (costs.score_call if scenario.teacher else 0.0),
        update=update,
        move=moving(scenario),
        exchange=exchange,
        publish=publishing(scenario),
        decode=costs.decoded_token * answers * workload.answer,
        count=costs.counted_token * workload.written,
        step=costs.step,
    )


def step_seconds(scenario: Scenario) -> float:
    """Seconds of a step.

    Disjoint: the sum of the phases. Colocated: the sum, each phase on all devices, and three times a role gives way to another.
    Streamed: answers of one wave are scored while those of the next are written. Stale: writing beside everything else, but
    for the publication, for which it stops.
    """
    each = phases(scenario)
    if scenario.design is Design.COLOCATED:
        return each.total + 3 * scenario.rates.overheads.switch
    written, scored = each.generate + each.decode, each.score + each.move
    if scenario.design is Design.STREAMED:
        return each.total - written - scored + pipelined(written, scored, waves(scenario))
    if scenario.design is Design.STALE:
        return max(written, each.total - written - each.publish) + each.publish
    return each.total


def waves(scenario: Scenario) -> int:
    """How often an engine fills, when all answers are equally long."""
    answers = shared(scenario.workload.prompts, scenario.layout.engines, even=False) * scenario.workload.samples
    return max(1, math.ceil(answers / scenario.slots))


def pipelined(first: float, second: float, parts: int) -> float:
    """Seconds of two stages over equal parts, the second of a part beside the first of the next.

    >>> pipelined(40.0, 20.0, 4)
    45.0
    """
    a, b = first / parts, second / parts
    return a + (parts - 1) * max(a, b) + b


def device_seconds(scenario: Scenario) -> float:
    """Seconds that all devices together work in a step: writing, scoring, learning. An engine without a prompt does not."""
    each, layout = phases(scenario), scenario.layout
    writing = layout.rollout * min(1.0, scenario.workload.prompts / layout.engines)
    teachers = layout.teacher if scenario.teacher else 0
    return each.generate * writing + each.score * teachers + each.update * layout.learner


def busy_share(scenario: Scenario) -> float:
    """Share of the devices' time in which they work."""
    return device_seconds(scenario) / (scenario.devices * step_seconds(scenario))
