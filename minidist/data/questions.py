"""Questions with a fixed set of answers, one of which is right."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minidist.config.data import QuestionsConfig
from minidist.data.rendering import Renderer, Template
from minidist.data.sources import Example, is_text_list, read_rows, too_long, usable_rows


@dataclass(frozen=True)
class Question:
    """A prompt with each of its choices, in their order; `right` is the index of the right choice."""

    choices: tuple[Example, ...]
    right: int


def read_questions(
    source: QuestionsConfig, renderer: Renderer, *, max_prompt_tokens: int, max_tokens: int
) -> tuple[list[Question], int]:
    """The questions of a source, and the number of rows skipped."""
    prompt, answer = Template(source.prompt, "prompt"), Template(source.answer or "{{ answer }}", "answer")

    def read(_: int, row: dict[str, Any]) -> Question | str:
        choices = row[source.choices] if isinstance(source.choices, str) else source.choices
        text, right = prompt.fill(row), answer.fill(row)
        question = _question(text, choices, right, renderer) if text.strip() else "the prompt is empty"
        if isinstance(question, str):
            return question
        first = question.choices[0]
        if reason := too_long(first.tokens[: first.start], max_prompt_tokens):
            return reason
        if (longest := max(len(choice.tokens) for choice in question.choices)) > max_tokens:
            return f"it has {longest} tokens with its longest choice, more than the {max_tokens} that the models hold"
        return question

    return usable_rows(source, read_rows(source), read)


def _question(text: str, choices: Any, answer: str, renderer: Renderer) -> Question | str:
    """The question, or the reason why the row cannot be used."""
    if not is_text_list(choices) or len(choices) < 2:
        return f"its choices are {choices!r}, not a list of two texts or more"
    prompt_P, choices_T = renderer.prompt(text), [renderer.answer(choice)[:-1] for choice in choices]
    if not all(map(len, choices_T)):
        return f"one of its choices {choices!r} is empty"
    if (right := _right(choices, answer.strip())) is None:
        return f"its answer {answer!r} is neither one of its choices {choices!r} nor the number of a choice"
    return Question(tuple(Example(np.concatenate([prompt_P, choice_T]), len(prompt_P)) for choice_T in choices_T), right)


def _right(choices: list[str], answer: str) -> int | None:
    """Index of the right choice: `answer` is the text of a choice or, where no choice has this text, a number from 0."""
    texts = [choice.strip() for choice in choices]
    if answer in texts:
        return texts.index(answer)
    return int(answer) if answer.isdecimal() and int(answer) < len(texts) else None
