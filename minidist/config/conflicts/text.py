"""Conflicts of the text of the main stream: who writes it, how far ahead, and what is replayed."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from minidist.config.conflicts.objective import own_samples
from minidist.config.conflicts.teacher import teacher_mix

if TYPE_CHECKING:
    from minidist.config import DistillConfig


def text(c: "DistillConfig") -> Iterator[str]:
    """Between the objective, the teacher and the text of the main stream."""
    if c.objective.learns_from == "given_text" and c.prefix.student_writes:
        yield f"objective.type {c.objective.type} would train the student on its own samples; set prefix.student=0"
    if c.objective.learns_from == "own_samples":
        yield from own_samples(c)
    if c.teacher_mix:
        yield from teacher_mix(c)
    if c.gold and not c.data.prompts.gold:
        yield "prefix.dataset needs data.prompts.answer; so do prefix.replay and a stream of writer dataset"
    if c.rollout.temperature == 0 and c.rollout.samples_per_prompt > 1:
        yield "rollout.temperature 0 writes the same answer each time; set rollout.samples_per_prompt=1"
    if c.rollout.no_repeat_ngram_size is not None:
        yield "rollout.no_repeat_ngram_size belongs to evaluate, since it changes the sampled distribution; leave it out"


def replay(c: "DistillConfig") -> Iterator[str]:
    """Of adaptive replay."""
    if c.prefix.replay is None:
        return
    if c.prefix.replay.capacity < c.answers_per_step:
        small = f"prefix.replay.capacity {c.prefix.replay.capacity} is less than the {c.answers_per_step} texts of a step"
        yield f"{small}; raise it, or lower rollout.prompts_per_step"
    if c.prefix.replay.growth > 0 and not (c.evaluation.every and c.data.validation and c.data.validation.gold):
        needed = "prefix.replay follows the loss on validation answers: set evaluation.every, and data.validation with answer"
        yield f"{needed}; or prefix.replay.growth=0 with a fixed prefix.student"


def overlap(c: "DistillConfig") -> Iterator[str]:
    """Of what overlaps: text that is written ahead, and answers that are scored as they finish."""
    if c.loop.max_staleness:
        ahead = f"loop.max_staleness {c.loop.max_staleness}"
        if not c.prefix.student_writes:
            yield f"{ahead} lets the student write ahead, and prefix.student is 0; set loop.max_staleness=0"
        if c.objective.credited_by == "ranking":
            whole = "compares whole answers, which no ratio of single tokens corrects"
            yield f"{ahead}: objective.type {c.objective.type} {whole}; set loop.max_staleness=0"
        if c.rollout.truncated:
            full = "weights tokens by their probability under the full distribution, and rollout.top_p is below 1"
            yield f"{ahead} {full}; set rollout.top_p=1, or loop.max_staleness=0"
        if c.rollout.temperature != c.objective.temperature:
            found = f"rollout.temperature {c.rollout.temperature:g} and objective.temperature {c.objective.temperature:g}"
            yield f"{found} differ, and {ahead} weights tokens by the sampled distribution; set them equal"
    if c.loop.stream:
        if not (c.prefix.student_writes and c.main_scored):
            yield "loop.stream scores the student's answers as they finish, and no teacher actor scores any; leave it out"
        if c.teacher_mix:
            turns = "loop.stream scores while the student writes, and with rollout.teacher_mix the teacher writes too"
            yield f"{turns}; leave loop.stream out, or set rollout.teacher_mix=0"
