"""`teacher.context`: what the teacher reads in place of the student's prompt."""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from minidist.config.base import Section
from minidist.config.trees import read_text

STUDENT_PROMPT = "student_prompt"
"""Name by which a template of the context has the text of the student's prompt."""


def _read(value: Any) -> Any:
    """The text of a template, or of the file that the value names: a run records the text, and resumes with the same."""
    if not isinstance(value, str) or not value.endswith(".jinja"):
        return value
    remedy = "a value that ends with .jinja names a file with the template; correct it, or write the template itself"
    try:
        return read_text(Path(value).expanduser(), remedy)
    except (ValueError, RuntimeError) as error:  # RuntimeError: a home directory that there is not
        raise ValueError(f"teacher.context: {error}") from None


TemplateText = Annotated[str, BeforeValidator(_read)]


class ContextConfig(Section):
    """What the teacher reads in place of the student's prompt, in place of the last message where the prompt is a conversation:
    hints, the gold answer, System 2 text, a system message (on-policy self-distillation; OPSD arXiv:2601.18734, SDFT
    arXiv:2601.19897). The student reads its plain prompt, and the teacher's scores are of the student's answer tokens.

    A text in place of the section is its `prompt`. A value that ends with .jinja is the path of a file with the template. Rows
    of prompts, of validation and of streams that the teacher scores need the columns; plain text is scored without a context.
    """

    prompt: TemplateText = Field(default="{{ student_prompt }}", min_length=1)
    """Jinja template over the columns of a row, in which `student_prompt` is the text of the student's prompt; or
    `{{ COLUMN }}` of a column of messages, which then is the teacher's conversation."""
    system: TemplateText | None = None
    """Jinja template of the teacher's system message, with columns of the row or without. None: the student's."""
    max_prompt_tokens: int | None = Field(default=None, ge=1)
    """Most tokens of the teacher's prompt; a longer one is a bad row, or loses text as data.truncate says. None: what the
    teacher's own context leaves beside the answer."""

    @model_validator(mode="before")
    @classmethod
    def _text(cls, tree: Any) -> Any:
        return {"prompt": tree} if isinstance(tree, str) else tree

    @model_validator(mode="after")
    def _names_a_column(self) -> "ContextConfig":
        if "{{" not in self.prompt:
            fixed = "teacher.context.prompt names no column, so the teacher would read the same prompt in every row"
            place = "write {{ student_prompt }} where the student's prompt belongs"
            raise ValueError(f"{fixed}; {place}, or set teacher.context.system to a text that is the same for all rows")
        return self
