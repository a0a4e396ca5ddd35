"""Questions with a fixed set of answers, one of which is right."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minidist.config.data import QuestionsConfig
from minidist.data.examples import Example
from minidist.data.exchanges import Record
from minidist.data.rendering import Renderer
from minidist.data.sources import check_prompt_length, is_text_list, read_rows, usable_rows
from minidist.data.templates import BadRow, Template


@dataclass(frozen=True)
class Question:
    """A prompt with each of its choices, in their order; `right` is the index of the right choice."""

    choices: tuple[Example, ...]
    right: int


def read_questions(
    source: QuestionsConfig, renderer: Renderer, *, max_prompt_tokens: int, max_tokens: int
) -> tuple[list[Question], int]:
    """The questions of a source, and the number of rows skipped."""
    prompt = Template(source.prompt, "prompt", renderer.guard)
    answer = Template(source.answer or "{{ answer }}", "answer", renderer.guard)

    def read(_: int, row: Record) -> Question:
        choices = row.get(source.choices) if isinstance(source.choices, str) else source.choices
        text, right = prompt.fill(row), answer.fill(row)
        if not text.strip():
            raise BadRow("the prompt is empty")
        question = _question(text, choices, right, renderer)
        first = question.choices[0]
        check_prompt_length(first.tokens[: first.start], max_prompt_tokens)
        if (longest := max(len(choice.tokens) for choice in question.choices)) > max_tokens:
            raise BadRow(f"it has {longest} tokens with its longest choice, more than the {max_tokens} that the models hold")
        return question

    return usable_rows(source, read_rows(source), read)


def _question(text: str, choices: Any, answer: str, renderer: Renderer) -> Question:
    if not is_text_list(choices) or len(choices) < 2:
        raise BadRow(f"its choices are {choices!r}, not a list of two texts or more")
    if not all(choices):
        raise BadRow(f"one of its choices {choices!r} is empty")
    if (right := _right(choices, answer.strip())) is None:
        raise BadRow(f"its answer {answer!r} is neither one of its choices {choices!r} nor the number of a choice")
    return Question(tuple(_choice(renderer.example(text, choice)) for choice in choices), right)


def _choice(example: Example) -> Example:
    """Without the end of the answer, which is the same after every choice."""
    return Example(np.concatenate([example.tokens[: example.start], example.answer[:-1]]), example.start)


def _right(choices: list[str], answer: str) -> int | None:
    """Index of the right choice: `answer` is the text of a choice or, where no choice has this text, a number from 0."""
    texts = [choice.strip() for choice in choices]
    if answer in texts:
        return texts.index(answer)
    numbered = answer.isdecimal() and len(answer) < 10  # Python reads no number of thousands of digits
    return int(answer) if numbered and int(answer) < len(texts) else None
