"""Conflicts of what only writes files: answers and scores."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from minidist.config.conflicts.teacher import teacher_role

if TYPE_CHECKING:
    from minidist.config import GenerateConfig, ScoreConfig, ScoreTableConfig


def generate(c: "GenerateConfig") -> Iterator[str]:
    """All conflicts of a generation."""
    if (c.model is None) == (c.server is None):
        yield "set exactly one of model (a model that this program runs) and server (one that answers over HTTP)"
    if c.files.tokens and (c.server is not None or c.program is not None):
        by = "a server answers in text alone" if c.server is not None else "a program makes several calls for each row"
        yield f"files.tokens is set, and {by}; set files.tokens=false"
    if (
        c.program is not None
        and c.program.filter.type == "majority"
        and c.rollout.samples_per_prompt > 1
        and c.rollout.temperature == 0
    ):
        yield "rollout.temperature 0 gives the same answer in every sample; set a temperature, or rollout.samples_per_prompt=1"
    if c.rollout.teacher_mix:
        yield "generate has no teacher to mix with; leave rollout.teacher_mix out"


def score(c: "ScoreConfig") -> Iterator[str]:
    """All conflicts of scoring given text."""
    if not c.teacher.live:
        yield "score needs a live teacher; set teacher.backend=hf, vllm or server, and leave teacher.cache out"
    if c.teacher.learns:
        yield "score trains nothing: set teacher.placement=actor, and leave teacher.prompt out"
    yield from teacher_role(c)
    if c.cache.absolute().is_relative_to(c.run.directory.absolute()):
        yield f"cache {c.cache} lies in run.directory, whose files a new start deletes; set cache to a directory outside"


def score_table(c: "ScoreTableConfig") -> Iterator[str]:
    """All conflicts of scoring into a table."""
    if not c.teacher.live or c.teacher.learns:
        yield "a table of scores needs a live, frozen teacher; set teacher.backend=hf, vllm or server"
    if c.teacher.payload != "sampled":
        yield "a table holds the log-probability of each token: set teacher.payload=sampled"
    if c.teacher.context is not None:
        yield "a table is of the rows as they are; leave teacher.context out, and write the context into data.rows.prompt"
    if (c.answers is None) == (c.data.rows.answer is None) and c.data.rows.task is None:
        yield "set exactly one of answers (a column of lists) and data.rows.answer (a template)"
    if c.ids is not None and c.answers is None:
        yield f"ids {c.ids} go with a column of answers; set answers"
    if c.logprobs is not None and c.ids is None:
        yield f"logprobs {c.logprobs} are of token ids: set ids, the column that holds them"
