"""Questions with a fixed set of answers, one of which is right."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from minidist.config.data import QuestionsConfig
from minidist.data.rendering import Renderer, Template
from minidist.data.sources import BadRows, Example, are_texts, check_column, read_rows


@dataclass(frozen=True)
class Question:
    """The prompt with each of its choices, in their order; `right` is the index of the right one."""

    choices: tuple[Example, ...]
    right: int


def read_questions(
    source: QuestionsConfig, renderer: Renderer, *, max_prompt_tokens: int, max_tokens: int
) -> tuple[list[Question], int]:
    """The questions of a source, and the number of rows left out."""
    prompt, answer = Template(source.prompt, "prompt"), Template(source.answer or "{{ answer }}", "answer")
    bad, found, seen = BadRows(source), [], 0
    for index, row in enumerate(_rows(source)):
        if source.rows is not None and len(found) == source.rows:
            break
        seen += 1
        choices = row[source.choices] if isinstance(source.choices, str) else source.choices
        text, right = prompt.fill(row), answer.fill(row)
        made = _question(text, choices, right, renderer) if text.strip() else "the prompt is empty"
        if isinstance(made, str):
            bad.add(index, made)
        elif (asked := made.choices[0].start) > max_prompt_tokens:
            bad.add(index, f"the prompt has {asked} tokens, more than data.max_prompt_tokens = {max_prompt_tokens}")
        elif (longest := max(len(each.tokens) for each in made.choices)) > max_tokens:
            bad.add(index, f"it has {longest} tokens with its longest choice, and there is room for {max_tokens}")
        else:
            found.append(made)
    bad.settle(seen)
    return found, len(bad.reasons)


def _rows(source: QuestionsConfig) -> list[dict[str, Any]]:
    rows = read_rows(source)
    if isinstance(source.choices, str):
        check_column(source.choices, list(rows[0]), source.path, "choices")
    return rows


def _question(text: str, choices: Any, answer: str, renderer: Renderer) -> Question | str:
    """The question, or what is wrong with it."""
    if not are_texts(choices) or len(choices) < 2:
        return f"its choices are {choices!r}, not a list of two texts or more"
    asked, said = renderer.prompt(text), [renderer.answer(choice)[:-1] for choice in choices]
    if not all(map(len, said)):
        return f"one of its choices {choices!r} is empty"
    if (right := _right(choices, answer.strip())) is None:
        return f"its answer {answer!r} is none of its choices {choices!r}, nor the number of one"
    return Question(tuple(Example(np.concatenate([asked, choice]), len(asked)) for choice in said), right)


def _right(choices: list[str], answer: str) -> int | None:
    """Index of the right choice, named by its text or, where that is none of them, by its number from 0."""
    texts = [choice.strip() for choice in choices]
    if answer in texts:
        return texts.index(answer)
    return int(answer) if answer.isdecimal() and int(answer) < len(texts) else None
