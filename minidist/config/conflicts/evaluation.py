"""Conflicts of what only measures."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from minidist.config import EvaluateConfig, EvaluateProgramsConfig


def evaluate(c: "EvaluateConfig") -> Iterator[str]:
    """All conflicts of an evaluation."""
    if c.teacher.payload != "hidden":
        yield "evaluate measures exact divergences: set teacher.payload=hidden"
    if c.teacher.learns:
        yield "evaluate trains nothing: set teacher.placement=actor, and leave teacher.prompt out"
    if not c.teacher.live:
        yield "evaluate needs a live teacher to score new text; set teacher.backend=hf"
    if not c.teacher.writes:
        writes = f"teacher.backend {c.teacher.backend} does not write with teacher.payload hidden"
        yield f"evaluate also measures on answers of the teacher, and {writes}; set teacher.backend=hf"
    if c.rollout.temperature == 0 and len(c.seeds or []) > 1:
        yield f"rollout.temperature 0 gives the same answers with every seed, and seeds are {c.seeds}; give one"
    if len(set(c.seeds or [])) < len(c.seeds or []):
        yield f"seeds are {c.seeds}: a repeated seed gives the same answers; give different ones"


def evaluate_programs(c: "EvaluateProgramsConfig") -> Iterator[str]:
    """All conflicts of an evaluation of programs, beside those of each generation."""
    for name, system in c.systems.items():
        if not re.fullmatch(r"[\w][\w .-]*", name):
            yield f"systems.{name}: a system's name is part of a path: use letters, digits, blanks, _ - and ."
        if both := sorted(system.program.model_fields_set & {"gold", "form"}):
            yield f"systems.{name}.program.{both[0]}: all systems are graded alike; set grade.{both[0]}, and leave it out here"
    seeds, greedy = c.seeds or [], all((system.rollout or c.rollout).temperature == 0 for system in c.systems.values())
    if len(seeds) > 1 and greedy:
        yield f"rollout.temperature 0 gives the same answers with every seed, and seeds are {seeds}; give one"
    if len(set(seeds)) < len(seeds):
        yield f"seeds are {seeds}: a repeated seed gives the same answers; give different ones"
