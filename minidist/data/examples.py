"""Given text to train on, and the rollouts that nobody sampled."""

from dataclasses import dataclass

import numpy as np

from minidist.types import Array, Prompt, Rollout, Writer


@dataclass(frozen=True)
class Example:
    """Given text to train on: the first `start` of `tokens` are the prompt, the rest are labels.

    labelled [len(tokens) - start] bool: which of the rest are labels, where some are not: the user's turns of a conversation,
    and what a chat template writes after the end of the answer. teacher_tokens: the prompt that the teacher reads in place of
    the first `start` tokens; None: the same. teacher: name of the teacher, of several, that scores the text.
    """

    tokens: Array
    start: int
    labelled: Array | None = None
    teacher_tokens: Array | None = None
    teacher: str = ""

    @property
    def labels(self) -> int:
        """Number of labels."""
        return len(self.tokens) - self.start if self.labelled is None else int(self.labelled.sum())

    @property
    def answer(self) -> Array:
        """The labels alone, token ids."""
        rest = self.tokens[self.start :]
        return rest if self.labelled is None else rest[self.labelled]

    def as_rollout(self) -> Rollout:
        """The example up to its last label, as a rollout that nobody sampled, for `collate` and for a teacher to score."""
        prompt = Prompt(0, self.tokens[: self.start], "", teacher_tokens=self.teacher_tokens, teacher=self.teacher)
        rest, labelled = self.tokens[self.start :], self.labelled
        if labelled is not None:
            end = int(labelled.nonzero()[0][-1]) + 1
            rest, labelled = rest[:end], None if labelled[:end].all() else labelled[:end]
        return Rollout.written(prompt, rest, None, version=-1, stopped=True, writer=Writer.DATASET, labelled=labelled)


def as_example(prompt: Prompt) -> Example:
    """A prompt with its gold answer, where it was read with one."""
    gold = prompt.tokens[:0] if prompt.gold is None else prompt.gold
    return Example(np.concatenate([prompt.tokens, gold]), len(prompt.tokens))


def gold_rollout(prompt: Prompt, max_new_tokens: int | None = None) -> Rollout:
    """The gold answer of a prompt as a rollout that nobody sampled, cut at `max_new_tokens`; None: the whole answer."""
    assert prompt.gold is not None, "the prompt was read with gold=True"
    tokens, stopped = prompt.gold[:max_new_tokens], max_new_tokens is None or len(prompt.gold) <= max_new_tokens
    text = prompt.answer or ""
    return Rollout.written(prompt, tokens, None, version=-1, stopped=stopped, text=text, writer=Writer.DATASET)
