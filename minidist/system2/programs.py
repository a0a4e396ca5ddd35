"""Programs of several calls: each gives the final answer to a row, and leaves the intermediate text in a side column.

A program is one function `program(row, call)` and one line of PROGRAMS, which names its prompts and what each must use. `call`
fills a prompt from the row and further values and returns the model's reply.
"""

import re
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import Any

from minidist.protocols import Ask
from minidist.system2.answers import final_answer
from minidist.system2.prompts import Prompts
from minidist.types import Finish, Reply

Row = Mapping[str, Any]

CRITERIA = 5
"""Most criteria of branch-solve-merge."""
TIE = "tie"
"""Verdict of branch-solve-merge where the two orders of the responses disagree."""


@dataclass
class Call:
    """Calls of a model for one sample of one row; remembers every reply.

    Args:
        ask: the model.
        prompts: of the program.
        row: whose columns the prompts use.
    """

    ask: Ask
    prompts: Prompts
    row: Row
    replies: list[tuple[str, Reply]] = field(default_factory=list)

    async def __call__(self, name: str, **values: Any) -> str:
        """The reply to the prompt of this name. `values`: beside the columns of the row, and before them."""
        reply = await self.ask(self.prompts.fill(name, {**self.row, **values}))
        self.replies.append((name, reply))
        return reply.text

    @property
    def tokens(self) -> int:
        """Tokens generated in all calls."""
        return sum(reply.tokens for _, reply in self.replies)

    @property
    def truncated(self) -> bool:
        """Whether a reply ended at its limit of tokens."""
        return any(reply.finish is Finish.LENGTH for _, reply in self.replies)


async def direct(_: Row, call: Call) -> str:
    """System 1: the answer at once."""
    return (await call("direct")).strip()


async def chain_of_thought(_: Row, call: Call) -> str:
    """Steps, then the answer (Wei et al., arXiv:2201.11903; Kojima et al., arXiv:2205.11916)."""
    return final_answer(await call("chain_of_thought"))


async def rephrase_and_respond(_: Row, call: Call) -> str:
    """The question in other words and the answer to it, in one call (Deng et al., arXiv:2311.04205)."""
    return final_answer(await call("rephrase_and_respond"))


async def rephrase_then_respond(_: Row, call: Call) -> str:
    """The question in other words, then the answer to both, in two calls (Deng et al., arXiv:2311.04205)."""
    rephrased = await call("rephrase")
    return final_answer(await call("respond", rephrased=rephrased.strip()))


async def system_2_attention(_: Row, call: Call) -> str:
    """The prompt without what biases it, then the answer to that (Weston and Sukhbaatar, arXiv:2311.11829).

    A rewritten prompt without a question is not used; the answer is then that to the prompt as it is.
    """
    found = unbiased(await call("rewrite"))
    if found is None:
        return final_answer(await call("direct"))
    context, question = found
    return final_answer(await call("respond_unbiased", context=context, unbiased_question=question))


def unbiased(rewritten: str) -> tuple[str, str] | None:
    """Context (possibly empty) and question of a rewritten prompt, which stand after "Context:" and "Question:"; None without a
    question.

    >>> unbiased("Context: none of it. Question: Which is larger?")
    ('none of it.', 'Which is larger?')
    """
    match = re.search(r"(?:Context:(?P<context>.*?))?Question:(?P<question>.*)", rewritten, re.DOTALL)
    if match is None or not match["question"].strip():
        return None
    return (match["context"] or "").strip(), match["question"].strip()


async def branch_solve_merge(row: Row, call: Call) -> str:
    """Which of two responses is better: A, B or tie (Saha et al., arXiv:2310.15123).

    Branch: criteria, from the question alone. Solve: the scores of both responses by each criterion. Merge: the sums. The
    verdict holds where both orders of the responses give it; else it is a tie.
    """
    a, b = row["response_a"], row["response_b"]
    listed = (await call("branch")).splitlines()
    criteria = [line.strip() for line in listed if line.strip()][:CRITERIA]
    forward, backward = [], []
    for criterion in criteria:
        for scores, first, second in ((forward, a, b), (backward, b, a)):
            scores.append(two_scores(await call("solve", criterion=criterion, first=first, second=second)))
    return merge(forward, [(of_a, of_b) for of_b, of_a in backward])


def two_scores(reply: str) -> tuple[int, int]:
    """The first two numbers from 1 to 5 of a reply, of the first and of the second response; (0, 0) where there are fewer."""
    found = re.findall(r"(?<!\d)[1-5](?!\d)", reply)
    return (int(found[0]), int(found[1])) if len(found) > 1 else (0, 0)


def merge(forward: list[tuple[int, int]], backward: list[tuple[int, int]]) -> str:
    """The verdict from the scores (A, B) by each criterion, in both orders.

    >>> merge([(5, 1), (2, 3)], [(4, 1), (1, 2)]), merge([(5, 1)], [(1, 5)])
    ('A', 'tie')
    """
    sums = [(sum(a for a, _ in scores), sum(b for _, b in scores)) for scores in (forward, backward)]
    verdicts = {"A" if a > b else "B" if b > a else TIE for a, b in sums}
    return verdicts.pop() if len(verdicts) == 1 else TIE


@dataclass(frozen=True)
class Program:
    """A program.

    Args:
        run: `await run(row, call)` returns the final answer.
        prompts: the names that each prompt must use.
        columns: what the rows must have.
    """

    run: Callable[[Row, Call], Coroutine[Any, Any, str]]
    prompts: Mapping[str, frozenset[str]]
    columns: frozenset[str] = frozenset({"prompt"})


def _uses(**names: str) -> dict[str, frozenset[str]]:
    return {prompt: frozenset(of_prompt.split()) for prompt, of_prompt in names.items()}


PROGRAMS: dict[str, Program] = {
    "direct": Program(direct, _uses(direct="prompt")),
    "chain_of_thought": Program(chain_of_thought, _uses(chain_of_thought="prompt")),
    "rephrase_and_respond": Program(rephrase_and_respond, _uses(rephrase_and_respond="prompt")),
    "rephrase_then_respond": Program(rephrase_then_respond, _uses(rephrase="prompt", respond="rephrased")),
    "system_2_attention": Program(
        system_2_attention, _uses(rewrite="prompt", respond_unbiased="unbiased_question", direct="prompt")
    ),
    "branch_solve_merge": Program(
        branch_solve_merge,
        _uses(branch="question", solve="criterion first second"),
        columns=frozenset({"question", "response_a", "response_b"}),
    ),
}
"""The programs, by their names in a configuration."""
