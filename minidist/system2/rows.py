"""One row: a program on each sample and on changed inputs, the filter over its answers, and the columns of the result."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minidist.config.system2 import ProgramConfig
from minidist.data.templates import BadRow
from minidist.errors import ConfigError
from minidist.protocols import Ask
from minidist.system2.answers import NORMALISERS, final_answer
from minidist.system2.filters import PERTURBATIONS, Changed, Vote, chosen, majority
from minidist.system2.programs import PROGRAMS, Call, Row
from minidist.system2.prompts import Prompts

_UNIVERSAL = {"most_consistent": frozenset({"responses"})}


@dataclass(frozen=True)
class Answered:
    """An answer of a program, and the calls that led to it."""

    answer: str
    calls: Call


class RowProgram:
    """A program with its filter, as a function of a row.

    Raises:
        ConfigError: a prompt of the program cannot be read or does not use what it must.
    """

    def __init__(self, config: ProgramConfig, samples: int) -> None:
        universal = _UNIVERSAL if config.filter.type == "universal" else {}
        self.gold = config.gold
        self._config = config
        self._samples = samples
        self._program = PROGRAMS[config.type]
        self._prompts = Prompts({**self._program.prompts, **universal}, config.templates)
        self._normalise = NORMALISERS[config.form]

    def check(self, columns: list[str], where: str, of_prompt: frozenset[str] = frozenset({"prompt"})) -> None:
        """Raise ConfigError unless rows with these columns have what program, filter and accuracy need, and prompts are made of
        what the perturbations change. `of_prompt`: the columns of which the prompt of a row is made."""
        needed = dict.fromkeys(sorted(self._program.columns), f"program.type={self._config.type}")
        for name in self._config.filter.perturbations:
            needed |= dict.fromkeys(PERTURBATIONS[name].columns, f"program.filter.perturbations={name}")
        if self._config.gold is not None:
            needed |= {self._config.gold: "accuracy (program.gold, grade.gold)"}
        for name, by in needed.items():
            if name not in columns:
                raise ConfigError(f"{where} has no column {name!r}, which {by} needs; its columns are {', '.join(columns)}")

        used = frozenset().union(*self._prompts.columns.values(), self._program.columns)
        used |= of_prompt if "prompt" in used else frozenset()
        for name in self._config.filter.perturbations:
            if unasked := sorted(PERTURBATIONS[name].changes - used):
                raise ConfigError(
                    f"program.filter.perturbations={name} changes {' and '.join(unasked)}, of which no prompt is made; write "
                    f"{{{{ {unasked[0]} }}}} into data.rows.prompt, or into a prompt of program.templates"
                )

    def gold_form(self, row: Row) -> str | None:
        """The form of a row's gold answer; None without program.gold. Raises BadRow where it is no answer."""
        if self.gold is None:
            return None
        return gold_form(row.get(self.gold), self._config.form)

    async def run(
        self, columns: Row, asks: Callable[[int], Ask], seed: str, prompt: Callable[[Row], str] | None = None
    ) -> dict[str, Any]:
        """Columns of the result: answer, kept, agreement, votes, tokens, right (with a gold answer), and trace.

        asks: the model, for each number of a sample. seed: of the changes of inputs; a text that names run and row. prompt:
        makes the column `prompt` of the columns as they are, and of changed ones; None: it is a column.
        """
        count, row, gold = self._samples, _with_prompt(columns, prompt), self.gold_form(columns)
        answered = await asyncio.gather(*(self._answer(row, asks(number)) for number in range(count)))
        changes = [self._changed(name, columns, seed, prompt) for name in self._config.filter.perturbations]
        changed = await asyncio.gather(*(self._answer(each.row, asks(count + n)) for n, each in enumerate(changes)))
        mapped = [change.back(each.answer) for change, each in zip(changes, changed, strict=True)]
        chooser = Call(asks(count + len(changes)), self._prompts, row)
        vote = await self._vote([each.answer for each in answered], mapped, chooser)
        kept = vote.answer is not None and vote.agreement >= self._config.filter.threshold and self._agree(vote.answer, mapped)
        all_calls = [*(each.calls for each in [*answered, *changed]), chooser]
        right = {} if gold is None else {"right": vote.answer is not None and self._normalise(vote.answer) == gold}
        return {
            "answer": vote.answer,
            "kept": kept,
            "agreement": vote.agreement,
            "votes": [{"form": form, "count": count} for form, count in vote.votes.items()],
            "tokens": sum(calls.tokens for calls in all_calls),
            "answer_tokens": answered[0].calls.tokens,
            "truncated": sum(calls.truncated for calls in all_calls),
            **right,
            "trace": [{"call": name, "reply": reply.text} for calls in all_calls for name, reply in calls.replies],
        }

    async def _answer(self, row: Row, ask: Ask) -> Answered:
        calls = Call(ask, self._prompts, row)
        return Answered(await self._program.run(row, calls), calls)

    async def _vote(self, answers: list[str], mapped: list[str], chooser: Call) -> Vote:
        if self._config.filter.type == "majority":
            return majority([*answers, *mapped], self._normalise)
        if self._config.filter.type == "none" or len(answers) == 1:
            first = answers[0] if self._normalise(answers[0]) else None
            return Vote(first, float(first is not None), {})
        numbered = "\n".join(f"Response {number}: {answer}" for number, answer in enumerate(answers, start=1))
        choice = chosen(await chooser("most_consistent", responses=numbered), answers)
        votes = majority(answers, self._normalise).votes
        return Vote(choice or None, votes.get(self._normalise(choice), 0) / len(answers), votes)

    def _agree(self, answer: str, mapped: list[str]) -> bool:
        return all(self._normalise(each) == self._normalise(answer) for each in mapped)

    def _changed(self, name: str, columns: Row, seed: str, prompt: Callable[[Row], str] | None) -> Changed:
        """A changed input, whose prompt is made anew unless it is what is changed."""
        perturbation = PERTURBATIONS[name]
        changed = perturbation.change(columns, random.Random(f"{seed}/{name}"))
        return changed if "prompt" in perturbation.changes else Changed(_with_prompt(changed.row, prompt), changed.back)


def _with_prompt(columns: Row, prompt: Callable[[Row], str] | None) -> Row:
    return columns if prompt is None else {**columns, "prompt": prompt(columns)}


def gold_form(gold: Any, form: str) -> str:
    """The form in which answers are compared with a gold one. Raises BadRow where the gold answer has none."""
    found = NORMALISERS[form](final_answer("" if gold is None else str(gold)))
    if not found:
        raise BadRow(f"its gold answer {str(gold)[:60]!r} is none of the form {form}")
    return found
