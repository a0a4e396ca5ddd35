"""The answers of a row under a teacher: log-probabilities, perplexity, estimates of a divergence, and grades."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from minidist.config.score_table import ScoreTableConfig
from minidist.data.exchanges import Exchange, ExchangeReader
from minidist.data.rendering import Renderer
from minidist.data.templates import BadRow
from minidist.pipelines.gathering import Gathering
from minidist.pipelines.judging import Judge
from minidist.pipelines.shards import Result
from minidist.pipelines.steps import Item
from minidist.protocols import Teacher
from minidist.system2.answers import NORMALISERS, final_answer
from minidist.system2.rows import gold_form
from minidist.types import Array, Prompt, Rollout, TeacherScores, Writer


def estimates(sampler_T: Array, teacher_T: Array) -> dict[str, float]:
    """Three estimates of KL(sampler || teacher) in nats a token, from the log-probabilities of T sampled tokens.

    With r = log p - log q of each token, p the teacher and q the sampler: k1 = mean(-r), unbiased, of any sign; k2 =
    mean(r^2 / 2), biased, with little variance; k3 = mean(exp(r) - 1 - r), unbiased and never negative (Schulman, Approximating
    KL divergence, 2020, http://joschu.net/blog/kl-approx.html).

    >>> estimates(np.log([0.5, 0.5]), np.log([0.5, 0.25]))["kl_k3"].__round__(3)
    0.097
    """
    ratio_T = teacher_T.astype(np.float64) - sampler_T.astype(np.float64)
    values = {"kl_k1": -ratio_T, "kl_k2": ratio_T**2 / 2, "kl_k3": np.expm1(ratio_T) - ratio_T}
    return {name: float(value.mean()) for name, value in values.items()}


@dataclass(frozen=True)
class Scored:
    """The scores of the answers of each row.

    Args:
        config: the columns.
        reader: makes the prompt of a row.
        renderer: text to the teacher's tokens.
        teachers: score rollouts that wait together.
        judge: gives verdicts on the answers, or None.
    """

    config: ScoreTableConfig
    reader: ExchangeReader
    renderer: Renderer
    teachers: Gathering[Teacher, Rollout, TeacherScores]
    judge: Judge | None = None

    async def run(self, item: Item) -> Result:
        exchange, row = self.reader.read(item.columns), item.columns
        texts = self._texts(exchange, row)
        rollouts = [self._rollout(exchange, row, number, text) for number, text in enumerate(texts)]
        found = [self._measured(await self.teachers.call(each), row, number) for number, each in enumerate(rollouts)]
        columns = {name: [each[name] for each in found] for name in found[0]}
        columns |= self._graded(texts, row)
        if self.judge is not None:
            columns |= await self.judge.columns({**row, "prompt": exchange.text}, texts, item.key)
        if self.config.answers is None:  # one answer: values in place of lists
            columns = {name: values[0] for name, values in columns.items()}
        return {**row, **columns, "tokens": sum(len(each.tokens) for each in rollouts)}

    async def close(self) -> None:
        """The teachers end with their cluster."""
        if self.judge is not None:
            await self.judge.writer.close()

    def _texts(self, exchange: Exchange, row: Mapping[str, Any]) -> list[str]:
        if self.config.answers is None:
            return [exchange.answer_text or ""]
        texts = row.get(self.config.answers)
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise BadRow(f"its {self.config.answers} is {str(texts)[:60]!r}, not a list of texts")
        return texts

    def _rollout(self, exchange: Exchange, row: Mapping[str, Any], number: int, text: str) -> Rollout:
        if self.config.ids is not None:
            prompt = self.renderer.prompt(exchange.asking, exchange.tools)
            ids = np.asarray(self._entry(row, self.config.ids, number), dtype=np.int64)
            if len(ids) and not 0 <= ids.min() <= ids.max() < len(self.renderer.tokenizer):
                raise BadRow(f"its {self.config.ids} holds ids that the teacher's tokenizer does not have")
            rollout = Rollout.written(Prompt(0, prompt, ""), ids, None, version=-1, stopped=True, writer=Writer.DATASET)
        else:
            rollout = self.renderer.example(exchange.asking, text, exchange.tools).as_rollout()
        if not len(rollout.tokens):
            raise BadRow("an answer has no token")
        if (length := len(rollout.prompt.tokens) + len(rollout.tokens)) > self.config.max_tokens:
            raise BadRow(f"prompt and answer have {length} tokens, more than max_tokens = {self.config.max_tokens}")
        return rollout

    def _measured(self, scores: TeacherScores, row: Mapping[str, Any], number: int) -> dict[str, Any]:
        assert scores.logprobs is not None
        logprobs_T = scores.logprobs.astype(np.float64)
        found: dict[str, Any] = {"teacher_logprob_sums": float(logprobs_T.sum()), "teacher_tokens": len(logprobs_T)}
        found["perplexity"] = float(np.exp(-logprobs_T.mean()))
        if self.config.logprobs is not None:
            sampler_T = np.asarray(self._entry(row, self.config.logprobs, number), dtype=np.float64)
            if len(sampler_T) != len(logprobs_T):
                have = f"{len(sampler_T)} {self.config.logprobs} and {len(logprobs_T)} tokens"
                raise BadRow(f"answer {number} has {have}; they must be of the same tokens")
            found |= estimates(sampler_T, logprobs_T)
        if self.config.files.tokens:
            found["teacher_logprobs"] = logprobs_T.tolist()
        return found

    def _entry(self, row: Mapping[str, Any], column: str, number: int) -> Sequence[Any]:
        lists = row.get(column)
        if not isinstance(lists, list) or number >= len(lists) or not isinstance(lists[number], list):
            raise BadRow(f"its {column} has no list for answer {number}")
        return lists[number]

    def _graded(self, texts: Sequence[str], row: Mapping[str, Any]) -> dict[str, list[bool]]:
        if self.config.grade is None:
            return {}
        normalise = NORMALISERS[self.config.grade.form]
        gold = gold_form(row.get(self.config.grade.gold), self.config.grade.form)
        return {"right": [normalise(final_answer(text)) == gold for text in texts]}
