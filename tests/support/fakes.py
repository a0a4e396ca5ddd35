"""Small fake roles: student and teacher are tables of next-token logits."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from minidist.protocols import RolloutEngine
from minidist.types import Batch, Finish, Payload, Probe, Prompt, Rollout, Sampling, TeacherScores, Update, Weights


def log_softmax(logits: np.ndarray) -> np.ndarray:
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def table_logprobs(table: np.ndarray, tokens: Sequence[int]) -> np.ndarray:
    """Log-probabilities of every token after the first, given the one before it."""
    return log_softmax(table)[tokens[:-1], tokens[1:]]


class TableEngine(RolloutEngine):
    """Writes the likeliest tokens of the table that was loaded last."""

    def __init__(self, table: np.ndarray, calls: list[str] | None = None) -> None:
        self.table, self._version, self.calls = table.copy(), 0, [] if calls is None else calls
        self.asked: list[dict[str, Any]] = []

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        self.calls.append("generate")
        self.asked.append({"rows": [prompt.row for prompt in prompts], **asdict(sampling)})
        return [self._write(prompt, number, sampling.max_new_tokens) for prompt, number in sampling.jobs(prompts)]

    def _write(self, prompt: Prompt, number: int, count: int) -> Rollout:
        tokens = [int(prompt.tokens[-1])]
        for _ in range(count):
            tokens.append(int(self.table[tokens[-1]].argmax()))
        logprobs, versions = table_logprobs(self.table, tokens), np.full(count, self._version)
        return Rollout(prompt, np.array(tokens[1:]), logprobs, versions, Finish.LENGTH, number)

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return [table_logprobs(self.table, list(sequence)).tolist() for sequence in sequences]

    async def load(self, weights: Weights) -> None:
        self.calls.append("load")
        self.table, self._version = weights.arrays["table"].copy(), weights.version

    async def version(self) -> int:
        return self._version

    async def figures(self) -> dict[str, float]:
        return {}


class StaleEngine(TableEngine):
    """Reports success, and keeps its old weights."""

    async def load(self, weights: Weights) -> None:
        self._version = weights.version


class TableTeacher:
    """Scores with its own table."""

    def __init__(self, table: np.ndarray, calls: list[str] | None = None) -> None:
        self.table, self.calls = table, [] if calls is None else calls

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        self.calls.append("score")
        texts = [[int(rollout.prompt.tokens[-1]), *rollout.tokens.tolist()] for rollout in rollouts]
        return [TeacherScores(Payload.SAMPLED, logprobs=table_logprobs(self.table, text)) for text in texts]


class TableLearner:
    """Raises the logits of tokens that are likelier under the teacher than under the student."""

    def __init__(self, table: np.ndarray, calls: list[str] | None = None) -> None:
        self.table, self.version, self.calls = table.copy(), 0, [] if calls is None else calls

    async def update(self, batch: Batch) -> Update:
        self.calls.append("update")
        gaps = []
        for row in batch.steps[0][0].rows:
            before = row.tokens[row.outputs]
            student_logprobs = log_softmax(self.table)[before, row.labels]
            gaps.append(row.scores.logprobs - student_logprobs)
            np.add.at(self.table, (before, row.labels), gaps[-1])
        self.version += 1
        return Update(self.version, {"gap": float(np.abs(np.concatenate(gaps)).mean())})

    async def weights(self, whole: bool = True) -> Weights:
        self.calls.append("weights")
        return Weights(self.version, {"table": self.table}, {"table": "float64"})

    async def probe(self, version: int) -> Probe:
        tokens = np.random.default_rng(version).integers(0, len(self.table), (2, 32), dtype=np.int32)
        return Probe(tokens, np.array([table_logprobs(self.table, line.tolist()) for line in tokens]))


class NumberedRole(RolloutEngine):
    """An engine and a teacher whose results carry its number."""

    def __init__(self, number: int) -> None:
        self.number, self.loaded, self.closed = number, "", False

    async def generate(self, prompts: Sequence[Any], sampling: Sampling) -> list[Any]:
        return [(prompt, self.number, sample, sampling) for prompt, sample in sampling.jobs(prompts)]

    extend = generate

    async def score(self, items: Sequence[Any]) -> list[Any]:
        return [(item, self.number) for item in items]

    async def load(self, weights: str) -> None:
        self.loaded = weights

    async def version(self) -> int:
        return 7

    async def figures(self) -> dict[str, float]:
        return {"mixed/tokens": 10.0 + self.number}

    async def describe(self) -> dict[str, object]:
        return {"class": f"role {self.number}", "tokens_written": 10 + self.number}

    async def close(self) -> None:
        self.closed = True
