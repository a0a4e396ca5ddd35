"""Conflicts of an objective: with the teacher, and with the text that it learns from."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from minidist.config.objective import ObjectiveSection

if TYPE_CHECKING:
    from minidist.config import DistillConfig


def objective(c: "DistillConfig", key: str, section: ObjectiveSection) -> Iterator[str]:
    """Between one objective, at a dotted key, and the teacher."""
    listed = c.teacher.payload != "hidden"
    if section.needs is not None and not c.teacher.payload.serves(section.needs):
        poorer = f"teacher.payload {c.teacher.payload} is poorer than {section.demand(key)} needs"
        yield f"{poorer}; set teacher.payload={section.needs}"
    if section.needs is not None and listed and section.temperature != 1:
        yield f"{key}.temperature {section.temperature:g} needs the teacher's whole distribution; set teacher.payload=hidden"
    if listed and (section.listed or 0) > c.teacher.top_k:
        longer = f"{key}.top_k is {section.listed}, and the teacher lists {c.teacher.top_k} classes"
        yield f"{longer}; lower it, or set teacher.top_k={section.listed}"
    if key != "objective" and section.learns_from == "own_samples":
        yield f"{key}.type {section.type} learns on the student's own samples, not on given text"


def own_samples(c: "DistillConfig") -> Iterator[str]:
    """Of an objective that needs the sampling probability of every token."""
    name = f"objective.type {c.objective.type}"
    if c.prefix.student < 1 or c.prefix.replay is not None:
        yield f"{name} learns from samples of the current student; set prefix.student=1, without replay"
    if c.rollout.truncated:
        yield f"{name} needs samples of the full distribution, and rollout.top_p is below 1; set rollout.top_p=1"
    if c.rollout.temperature != c.objective.temperature:
        temperatures = f"rollout.temperature {c.rollout.temperature:g} and objective.temperature {c.objective.temperature:g}"
        yield f"{temperatures} differ, and {name} weights tokens by the sampled distribution; set them equal"
    if c.rollout.samples_per_prompt < c.objective.samples:
        yield f"{name} compares answers to one prompt; set rollout.samples_per_prompt=4"
    if c.objective.parts > c.answers_per_step:
        excess = f"objective.minibatches {c.objective.parts} is more than the {c.answers_per_step} rollouts of a step"
        yield f"{excess}; lower it, or raise rollout.prompts_per_step"
