"""One row: a program on each sample and on changed inputs, the filter over its answers, and the columns of the result."""

import asyncio
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from minidist.config.system2 import ProgramConfig
from minidist.errors import ConfigError
from minidist.protocols import Ask
from minidist.system2.answers import NORMALISERS, final_answer
from minidist.system2.filters import PERTURBATIONS, Vote, chosen, majority
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

    def check(self, columns: list[str], where: str) -> None:
        """Raise ConfigError unless rows with these columns have what program, filter and accuracy need."""
        needed = dict.fromkeys(sorted(self._program.columns), f"program.type={self._config.type}")
        for name in self._config.filter.perturbations:
            needed |= dict.fromkeys(PERTURBATIONS[name].columns, f"program.filter.perturbations={name}")
        if self._config.gold is not None:
            needed |= {self._config.gold: "accuracy (program.gold, grade.gold)"}
        for name, by in needed.items():
            if name not in columns:
                raise ConfigError(f"{where} has no column {name!r}, which {by} needs; its columns are {', '.join(columns)}")

    async def run(self, row: Row, asks: Callable[[int], Ask], seed: str) -> dict[str, Any]:
        """Columns of the result: answer, kept, agreement, votes, tokens, right (with a gold answer), and trace.

        asks: the model, for each number of a sample. seed: of the changes of inputs; a text that names run and row.
        """
        count = self._samples
        answered = await asyncio.gather(*(self._answer(row, asks(number)) for number in range(count)))
        changes = [
            PERTURBATIONS[name].change(row, random.Random(f"{seed}/{name}")) for name in self._config.filter.perturbations
        ]
        changed = await asyncio.gather(*(self._answer(each.row, asks(count + n)) for n, each in enumerate(changes)))
        mapped = [change.back(each.answer) for change, each in zip(changes, changed, strict=True)]
        chooser = Call(asks(count + len(changes)), self._prompts, row)
        vote = await self._vote([each.answer for each in answered], mapped, chooser)
        kept = vote.answer is not None and vote.agreement >= self._config.filter.threshold and self._agree(vote.answer, mapped)
        all_calls = [*(each.calls for each in [*answered, *changed]), chooser]
        return {
            "answer": vote.answer,
            "kept": kept,
            "agreement": vote.agreement,
            "votes": [{"form": form, "count": count} for form, count in vote.votes.items()],
            "tokens": sum(calls.tokens for calls in all_calls),
            "answer_tokens": answered[0].calls.tokens,
            "truncated": sum(calls.truncated for calls in all_calls),
            **self._graded(vote.answer, row),
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

    def _graded(self, answer: str | None, row: Row) -> dict[str, Any]:
        if self._config.gold is None:
            return {}
        gold = final_answer(str(row[self._config.gold]))
        return {"right": answer is not None and self._normalise(answer) == self._normalise(gold)}
