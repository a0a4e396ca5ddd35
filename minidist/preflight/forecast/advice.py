"""What to change: placement, overlap, payload, ZeRO stage and micro-batch, each compared on the same devices."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product

from minidist.preflight.forecast.layouts import deal
from minidist.preflight.forecast.scenario import Design, Scenario
from minidist.preflight.forecast.seconds import step_seconds

STALE_GAIN = 0.15
"""Share of a step that text of an earlier student must save before it is advised."""
PAYLOAD_COST = 0.10
"""Share of a step that exact scores of the whole vocabulary may cost and still be advised."""
_ZERO = ((2, False), (2, True), (3, False), (3, True))
"""ZeRO stage, and activation checkpointing."""
_MICRO_BATCHES = (4096, 8192, 16_384, 32_768)


@dataclass(frozen=True)
class Option:
    """A scenario with its devices dealt, and the seconds of its step. scenario None: no layout fits."""

    name: str
    scenario: Scenario | None

    @property
    def seconds(self) -> float:
        """Of a step; infinite where nothing fits."""
        return float("inf") if self.scenario is None else step_seconds(self.scenario)


def designs(scenario: Scenario, devices: int) -> list[Option]:
    """Each design on so many devices, with the learner's fastest settings that fit."""
    return [Option(design, _fastest(replace(scenario, design=design), devices)) for design in Design]


def choose(options: list[Option]) -> Option:
    """The fastest design; text of an earlier student only where it saves `STALE_GAIN` of the fastest on-policy step."""
    strict = min((each for each in options if each.name != Design.STALE), key=lambda each: each.seconds)
    fastest = min(options, key=lambda each: each.seconds)
    return fastest if fastest.seconds <= (1 - STALE_GAIN) * strict.seconds else strict


def payloads(scenario: Scenario, sizes: dict[str, float]) -> list[Option]:
    """The same devices with other payloads. `sizes`: bytes of each payload's scores of a token."""
    found = []
    for name, size in sizes.items():
        workload = replace(scenario.workload, payload_bytes=size, hidden=name == "hidden", top_k=name == "top_k")
        found.append(Option(name, replace(scenario, workload=workload)))
    return found


def choose_payload(options: list[Option]) -> Option:
    """Hidden states, which give the exact vocabulary, unless they cost more than `PAYLOAD_COST` of a step; then top k."""
    by_name = {each.name: each for each in options}
    cheap = min(options, key=lambda each: each.seconds)
    within = [name for name in ("hidden", "top_k") if by_name[name].seconds <= (1 + PAYLOAD_COST) * cheap.seconds]
    return by_name[within[0]] if within else cheap


def overrides(scenario: Scenario) -> dict[str, object]:
    """The settings of a configuration that give a scenario's layout."""
    layout = scenario.layout
    found: dict[str, object] = {
        "cluster.rollout.actors": layout.engines,
        "cluster.rollout.tensor_parallel": layout.rollout_split,
        "cluster.teacher.actors": layout.teachers,
        "cluster.learner.ranks": layout.learner,
        "learner.zero_stage": layout.zero,
        "learner.micro_batch_tokens": layout.micro_batch,
        "learner.activation_checkpointing": str(layout.checkpointing).lower(),
        "loop.max_staleness": int(scenario.design is Design.STALE),
    }
    if scenario.design is Design.COLOCATED:
        found["cluster.residency"] = "true"
    return found if scenario.teacher else {name: value for name, value in found.items() if ".teacher." not in name}


def _fastest(scenario: Scenario, devices: int) -> Scenario | None:
    dealt = (deal(each, devices) for each in _learners(scenario))
    return min((each for each in dealt if each is not None), key=step_seconds, default=None)


def _learners(scenario: Scenario) -> Iterator[Scenario]:
    """The learner with other stages and micro-batches: the smallest stage first, which wins where two are equally fast."""
    sizes = sorted({*_MICRO_BATCHES, scenario.layout.micro_batch})
    sizes = [size for size in sizes if size >= scenario.workload.row.tokens] or [scenario.layout.micro_batch]
    for (zero, checkpointing), size in product(_ZERO, sizes[:2]):
        yield scenario.with_layout(replace(scenario.layout, zero=zero, checkpointing=checkpointing, micro_batch=size))
