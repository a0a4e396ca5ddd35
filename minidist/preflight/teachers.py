"""What only one kind of teacher needs before a run: a table from the class of the section `teacher` to its check."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minidist.config import DistillConfig, ScoreConfig
from minidist.config.teacher import CacheTeacherConfig, PromptedTeacherConfig, ServerTeacherConfig, TeacherConfig
from minidist.data.rendering import Renderer
from minidist.preflight.checks import check_soft_prompt
from minidist.preflight.facts import PairFacts
from minidist.preflight.server import check_server, check_writing
from minidist.types import Prompt


@dataclass(frozen=True)
class TeacherFacts:
    """The facts that a teacher is checked by. `prompt`: one of the run's; `tokens`: its longest sequence that is scored;
    `own_tokens`: the longest row that the teacher reads in a context of its own, 0 where it reads the student's rows."""

    run: DistillConfig | ScoreConfig
    models: PairFacts
    renderer: Renderer
    prompt: Prompt
    tokens: int
    own_tokens: int = 0


def teacher_lines(facts: TeacherFacts) -> list[str]:
    """Lines of the plan about the teacher. Raises ConfigError or ModelError where it cannot be the teacher of this run."""
    teacher, padded = facts.run.teacher, facts.models.teacher.rows - facts.models.vocabulary.count
    check = _CHECKS.get(type(teacher))
    found = [*_context_lines(facts), *([] if check is None else check(teacher, facts))]
    if not teacher.cuts_padding and padded > 0:
        share = f"teacher's log-probabilities hold the share of {padded:,} ids that are not shared"
        found.append(f"{share}, which vLLM cannot slice off (teacher.backend=hf can)")
    return found


def _context_lines(facts: TeacherFacts) -> list[str]:
    """What the teacher reads in place of the student's prompt, and whose weights it has."""
    run, teacher = facts.run, facts.run.teacher
    if teacher.context is None or isinstance(teacher, CacheTeacherConfig):
        return []
    whole = isinstance(run, DistillConfig) and teacher.hosted and run.student.init is None
    start = run.student.model if whole else None
    itself = start is not None and Path(start).resolve() == Path(teacher.model).resolve()
    weights = f"the weights that the student starts from ({teacher.model})" if itself else f"the weights of {teacher.model}"
    reads = f"teacher.context: the teacher reads prompts of its own, in rows of up to {facts.own_tokens:,} tokens"
    return [f"{reads}; it has {weights}, frozen"]


def _server_lines(teacher: ServerTeacherConfig, facts: TeacherFacts) -> list[str]:
    """The server is asked."""
    width, vocabulary = facts.models.teacher.rows, facts.models.vocabulary
    if isinstance(facts.run, DistillConfig) and facts.run.teacher_writes:
        check_writing(teacher, width=width, vocabulary=vocabulary)
    return check_server(teacher, facts.renderer, prompt=facts.prompt, tokens=facts.tokens, width=width, vocabulary=vocabulary)


def _soft_prompt_lines(teacher: PromptedTeacherConfig, facts: TeacherFacts) -> list[str]:
    run, prompt = facts.run, teacher.prompt
    assert isinstance(run, DistillConfig), "scores are given by teachers that stay as they are"
    check_soft_prompt(run, prompt, facts.renderer, facts.models.teacher.context)
    without = "" if run.evaluation.every is None else "; evaluation measures the distance to the teacher without them"
    held = f"every learner rank holds a whole frozen copy of the teacher{without}"
    return [f"the teacher is trained too: {prompt.tokens} virtual tokens before every text; {held}"]


_CHECKS: dict[type[TeacherConfig], Callable[[Any, TeacherFacts], list[str]]] = {
    ServerTeacherConfig: _server_lines,
    PromptedTeacherConfig: _soft_prompt_lines,
}
