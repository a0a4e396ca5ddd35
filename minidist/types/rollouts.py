"""Prompts, how answers are drawn, and answers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from minidist.types.arrays import Array


class Finish(StrEnum):
    """Why a rollout ended: with an id that ends answers, or at the token limit."""

    STOP = "stop"
    LENGTH = "length"


class Writer(StrEnum):
    """The author of a rollout's text."""

    STUDENT = "student"
    TEACHER = "teacher"
    DATASET = "dataset"


@dataclass(frozen=True)
class Prompt:
    """A question to the student.

    row: row of the data source, from which the seeds of the samples are derived. tokens [P] int32: the input of the model.
    text, answer: for people and graders. gold: tokens of the gold answer, if the run trains on them. references: all gold
    answers, if the source lists several; `answer` is the first. teacher_tokens [P'] int32, teacher_text: the prompt that the
    teacher reads in place of this one (teacher.context), as ids and for people; None: the teacher reads this one. teacher: name
    of the teacher, of several, that the row is for (routing.column); empty: one teacher, or all of them.
    """

    row: int
    tokens: Array
    text: str
    answer: str | None = None
    gold: Array | None = None
    references: tuple[str, ...] = ()
    teacher_tokens: Array | None = None
    teacher_text: str | None = None
    teacher: str = ""

    @property
    def for_teacher(self) -> "Prompt":
        """The prompt as the teacher reads it: the only place where one becomes the other."""
        if self.teacher_tokens is None:
            return self
        return replace(self, tokens=self.teacher_tokens, text=self.teacher_text or "", teacher_tokens=None, teacher_text=None)


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How answers are drawn: these fields, the prompt and the weights decide every answer.

    max_new_tokens: longest answer, in tokens, end-of-sequence token included. samples: answers per prompt. temperature: divides
    the logits; 0 is greedy. top_p: applied after the temperature; the fewest likeliest tokens whose probabilities add up to
    top_p stay. seed: each sample's seed is derived from this seed, the prompt's row and the sample's number.
    no_repeat_ngram_size: no n-gram of this many tokens occurs twice, prompt included; None: no restriction.
    """

    max_new_tokens: int
    samples: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    no_repeat_ngram_size: int | None = None

    @property
    def truncated(self) -> bool:
        """Whether tokens outside the nucleus of top_p are never sampled. Greedy decoding has none: its log-probabilities are
        those of the whole distribution at temperature 1."""
        return self.temperature > 0 and self.top_p < 1

    @property
    def own(self) -> bool:
        """Whether answers are drawn from the model's own distribution, as divergences need them."""
        return self.temperature == 1 and not self.truncated

    @property
    def processed(self) -> tuple[float, float]:
        """Temperature and top_p of the distribution whose log-probabilities an answer has, as `Learner.measure` takes them."""
        return (self.temperature, self.top_p) if self.temperature > 0 else (1.0, 1.0)

    def jobs(self, prompts: Sequence[Prompt]) -> list[tuple[Prompt, int]]:
        """Prompt and sample number of each rollout of a call, in the order in which the call returns them."""
        return [(prompt, number) for prompt in prompts for number in range(self.samples)]


@dataclass(frozen=True)
class Rollout:
    """One answer. Token ids are authoritative; `text` is for people.

    tokens [T] int32, with the end-of-sequence token if the answer ended with it. logprobs [T] float32, nats, under the sampled
    distribution (temperature and truncation applied); None if the text was not sampled. versions [T] int32, the published
    weights that each token came from, -1 for text of a data set. coins [T] bool, in teacher-mixed sampling: whether the teacher
    chose the token; `logprobs` are then the student's, and NaN at the teacher's tokens. labelled [T] bool: which tokens of
    given text are trained on; None: all.

    Prompt "1+2=" answered "3<eos>" by the student's weights of version 7: tokens [3, eos], logprobs [-0.1, -0.02],
    versions [7, 7], finish STOP.
    """

    prompt: Prompt
    tokens: Array
    logprobs: Array | None
    versions: Array
    finish: Finish
    sample: int = 0
    text: str = ""
    writer: Writer = Writer.STUDENT
    coins: Array | None = None
    labelled: Array | None = None

    @classmethod
    def written(
        cls, prompt: Prompt, tokens: ArrayLike, logprobs: ArrayLike | None, *, version: int, stopped: bool, **fields: Any
    ) -> "Rollout":
        """A rollout whose tokens [T] all come from one version of the weights.

        stopped: whether it ended with an id that ends answers, not at the token limit. fields: other fields, by name.
        """
        ids = np.asarray(tokens, dtype=np.int32)
        return cls(
            prompt=prompt,
            tokens=ids,
            logprobs=None if logprobs is None else np.asarray(logprobs, dtype=np.float32),
            versions=np.full(len(ids), version, dtype=np.int32),
            finish=Finish.STOP if stopped else Finish.LENGTH,
            **fields,
        )

    @property
    def for_teacher(self) -> "Rollout":
        """The same answer after the prompt that the teacher reads."""
        return self if self.prompt.teacher_tokens is None else replace(self, prompt=self.prompt.for_teacher)

    def answering(self, prompt: Prompt) -> "Rollout":
        """The answer after another prompt: the student's, where a teacher wrote the answer after its own."""
        return self if self.prompt is prompt else replace(self, prompt=prompt)


@dataclass(frozen=True)
class Reply:
    """The answer of a model to one call of a program of several calls; see `protocols.Ask`.

    text: without the token that ended it. tokens: generated, end-of-sequence token included.
    """

    text: str
    tokens: int
    finish: Finish
