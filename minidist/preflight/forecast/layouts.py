"""Devices dealt to the roles so that a step is shortest, and how much memory each role then needs."""

from collections.abc import Iterator
from dataclasses import replace

from minidist.config.learner import LearnerConfig
from minidist.preflight.forecast.scenario import Design, Layout, Scenario
from minidist.preflight.forecast.seconds import step_seconds
from minidist.preflight.memory import GIB, PROCESS_BYTES, ServedModel, TrainedModel, hf_need, learner_need

_PARTS = 24
"""Parts of all devices in which a first search deals them; a second search goes device by device round the best."""


def deal(scenario: Scenario, devices: int, *, memory: bool = True) -> Scenario | None:
    """The scenario with its devices dealt in the fastest way. None where there is none in which every role fits.

    Disjoint roles get whole engines, whole teachers and at least one rank each. Colocated roles get all devices.

    Args:
        scenario: its layout's splits hold, its numbers of devices do not.
        devices: of all roles together.
        memory: leave out layouts in which a role does not fit its devices' memory.
    """
    layout = scenario.layout
    if scenario.design is Design.COLOCATED:
        shared = scenario.with_layout(replace(layout, rollout=devices, teacher=devices, learner=devices))
        whole = devices % layout.rollout_split == 0 and devices % layout.teacher_split == 0
        return shared if whole and (not memory or fits(shared)) else None
    step = max(1, devices // _PARTS)
    best = _fastest(scenario, _dealt(layout, devices, step, (1, devices), (1, devices)), memory)
    if best is None or step == 1:
        return best
    rollout, teacher = best.layout.rollout, best.layout.teacher
    near = [(size - step, size + step) for size in (rollout, teacher)]
    return _fastest(scenario, _dealt(layout, devices, max(1, step // 8), *near), memory)


def _dealt(layout: Layout, devices: int, step: int, rollouts: tuple[int, int], teachers: tuple[int, int]) -> Iterator[Layout]:
    """Layouts with so many devices for engines and teachers, at least and at most, and the rest for the learner."""
    for rollout in _multiples(rollouts, layout.rollout_split, step):
        for teacher in _multiples(teachers, layout.teacher_split, step):
            if (rest := devices - rollout - teacher) >= 1:
                yield replace(layout, rollout=rollout, teacher=teacher, learner=rest)


def _multiples(between: tuple[int, int], size: int, step: int) -> range:
    """Multiples of `size` in a range, about `step` apart."""
    least, most = between
    stride = size * max(1, round(step / size))
    first = max(size, -(-least // size) * size)
    return range(first, most + 1, stride)


def _fastest(scenario: Scenario, layouts: Iterator[Layout], memory: bool) -> Scenario | None:
    found = (scenario.with_layout(layout) for layout in layouts)
    return min((each for each in found if not memory or fits(each)), key=step_seconds, default=None)


def fits(scenario: Scenario) -> bool:
    """Whether every role fits its devices."""
    return max(device_bytes(scenario).values()) <= scenario.rates.device.gib * GIB


def device_bytes(scenario: Scenario) -> dict[str, int]:
    """Bytes that each role needs on a device, by the formulas of `preflight.memory`; an engine has a cache of the given
    size, or of a tenth of the device.

    Colocated roles sleep while others work: asleep, engines and teachers hold nothing, and the learner weights, gradients and
    the state of its optimizer.
    """
    layout, workload = scenario.layout, scenario.workload
    row = int(workload.row.tokens)
    learner = learner_need(trained(scenario), teacher_head=_head_bytes(scenario))
    cache = scenario.rates.device.gib * GIB / 10 if layout.cache is None else layout.cache / layout.rollout_split
    engine = scenario.student.nbytes // layout.rollout_split + int(cache) + PROCESS_BYTES
    found = {"rollout": engine, "learner": learner.total}
    if scenario.teacher is not None:
        teacher = ServedModel("teacher", scenario.teacher.shape, scenario.teacher.dtype, layout.teacher, layout.teacher_split)
        need = hf_need(teacher, tokens=max(8192, row), logits=not workload.hidden)
        found["teacher"] = need.total - need.parts["buffers"] + PROCESS_BYTES
    if scenario.design is not Design.COLOCATED:
        return found
    asleep = sum(learner.parts[part] for part in ("weights", "gradients", "optimizer"))
    return {role: size if role == "learner" else size + asleep for role, size in found.items()}


def trained(scenario: Scenario) -> TrainedModel:
    """The student in one rank of the learner."""
    layout = scenario.layout
    config = LearnerConfig.model_validate(
        {
            "zero_stage": layout.zero,
            "micro_batch_tokens": layout.micro_batch,
            "chunk_tokens": layout.chunk,
            "activation_checkpointing": layout.checkpointing,
        }
    )
    tokens = max(layout.micro_batch, int(scenario.workload.row.tokens))
    return TrainedModel(scenario.student.shape, config, scenario.student.dtype, layout.learner, tokens, gpu=True)


def _head_bytes(scenario: Scenario) -> int | None:
    """The teacher's head in the learner's memory, where it is applied to hidden states."""
    if scenario.teacher is None or not scenario.workload.hidden:
        return None
    shape = scenario.teacher.shape
    return shape.vocabulary * shape.hidden * scenario.teacher.nbytes // shape.parameters
