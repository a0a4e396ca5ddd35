"""Conflicts of several teachers: with the way that rows are divided among them, and with what only one teacher can do."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from minidist.config.routing import RoutingConfig

if TYPE_CHECKING:
    from minidist.config import DistillConfig


def routing(c: "DistillConfig") -> Iterator[str]:
    """All conflicts of `teachers` and `routing`."""
    if c.routing is None:
        if c.teachers:
            yield "teachers are several, and nothing divides the rows among them; set routing.column or routing.weights"
        return
    if len(c.teachers) < 2:
        held = f"teachers holds {len(c.teachers)}"
        yield f"routing divides rows among several teachers, and {held}; name two or more, or leave routing out"
    yield from names(c, c.routing)
    yield from kinds(c)
    yield from one_teacher(c)
    if c.mixes_teachers:
        yield from mixture(c)


def names(c: "DistillConfig", section: RoutingConfig) -> Iterator[str]:
    """Of the names of teachers, which are also parts of the names of metrics."""
    known = ", ".join(c.teachers)
    for name in c.teachers:
        if not re.fullmatch(r"[\w-]+", name):
            yield f"teachers.{name}: a teacher's name is part of the names of metrics; use letters, digits, _ and -"
    if section.default is not None and section.default not in c.teachers:
        yield f"routing.default is {section.default!r}, and the teachers are {known}; set it to one of them"
    if section.weights is not None and section.weights.keys() != c.teachers.keys():
        given = ", ".join(section.weights) or "none"
        yield f"routing.weights has the names {given}, and the teachers are {known}; give each of them a weight"


def kinds(c: "DistillConfig") -> Iterator[str]:
    """Of teachers that only stand alone."""
    for name, teacher in c.teachers.items():
        if teacher.learns:
            trained = "is trained beside the student, and several teachers stay as they are"
            yield f"teachers.{name} {trained}; set teachers.{name}.placement=actor, and leave its prompt out"
        if not teacher.live:
            found = f"teachers.{name}.backend is {teacher.backend}"
            yield f"{found}, and several teachers all score live; set it to hf, vllm or server"
        if teacher.context is not None:
            yield f"teachers.{name}.context is read by one teacher alone; leave it out, or set teacher in place of teachers"


def one_teacher(c: "DistillConfig") -> Iterator[str]:
    """Of settings that mean one teacher."""
    if c.teacher_mix:
        key = "rollout" if c.rollout.teacher_mix is not None else "objective"
        mixed = "samples text from the student and one teacher, and teachers are several"
        yield f"{key}.teacher_mix {c.teacher_mix:g} {mixed}; set {key}.teacher_mix=0"
    if c.student.init is not None and c.student.model is None:
        cut = "student.init cuts the student from its teacher, and teachers are several"
        yield f"{cut}; set student.model to the model that it is cut from"
    if c.data.template_from == "teacher":
        yield "data.template_from is teacher, and teachers are several; set it to student, or to the directory of a tokenizer"


def mixture(c: "DistillConfig") -> Iterator[str]:
    """Of the teachers' mixture, which is known where all of them give whole distributions, or the sampled token."""
    payloads = {f"teachers.{name}.payload {teacher.payload}" for name, teacher in c.teachers.items()}
    given = sorted({teacher.payload.value for teacher in c.teachers.values()})
    if given not in (["hidden"], ["sampled"]):
        alike = "routing.weights mixes whole distributions, or the probabilities of sampled tokens"
        yield f"{alike}, and found {', '.join(sorted(payloads))}; set all to hidden, or use routing.column"
    keys = [f"streams.{name}.writer teacher" for name, stream in c.streams.items() if stream.writer == "teacher"]
    for key in [*(["prefix.teacher"] if c.prefix.teacher > 0 else []), *keys]:
        yield f"{key} is text of a teacher, and no teacher writes text of the mixture of routing.weights; leave it out"
