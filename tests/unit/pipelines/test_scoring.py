"""Scores of answers: sums, perplexity, estimates of the divergence, and grades."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

from minidist.config.data import SourceConfig
from minidist.config.score_table import ScoreTableConfig
from minidist.data.exchanges import ExchangeReader
from minidist.data.templates import BadRow
from minidist.pipelines.gathering import Gathering
from minidist.pipelines.scoring import Scored, estimates
from minidist.pipelines.steps import Item
from minidist.types import Payload, Rollout, TeacherScores
from tests.support.tiny import tiny_renderer


class Halving:
    """Gives token t of every answer the log-probability -(t + 1) / 2, and remembers the ids."""

    def __init__(self) -> None:
        self.ids: list[list[int]] = []

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        self.ids += [rollout.tokens.tolist() for rollout in rollouts]
        return [TeacherScores(Payload.SAMPLED, logprobs=-(np.arange(len(r.tokens)) + 1.0) / 2) for r in rollouts]


def score(row: dict[str, Any], teacher: Halving | None = None, **options: Any) -> dict[str, Any]:
    source = {"path": "rows.jsonl"} if "answers" in options else {"path": "rows.jsonl", "answer": "{{ answer }}"}
    config = ScoreTableConfig.model_validate(
        {
            "stage": "score_table",
            "run": {"directory": "run"},
            "teacher": {"model": "teacher", "payload": "sampled"},
            "data": {"rows": source},
            **options,
        }
    )
    renderer, found = tiny_renderer(), teacher or Halving()

    async def send(one: Any, rollouts: list[Rollout]) -> list[TeacherScores]:
        return await one.score(rollouts)

    async def run() -> dict[str, Any]:
        step = Scored(
            config, ExchangeReader(SourceConfig(**source), renderer.guard), renderer, Gathering([cast(Any, found)], send)
        )
        return await step.run(Item(0, "0", row))

    return asyncio.run(run())


def test_sums_and_perplexity_of_one_answer_are_values() -> None:
    result = score({"prompt": "1+2=", "answer": "34"})  # two digits and the end
    assert result["teacher_logprob_sums"] == pytest.approx(-3.0) and result["teacher_tokens"] == result["tokens"] == 3
    assert result["perplexity"] == pytest.approx(np.exp(1.0)) and result["answer"] == "34"


def test_each_of_several_answers_has_its_scores() -> None:
    result = score({"prompt": "1+2=", "answers": ["3", "34"]}, answers="answers", files={"tokens": True})
    assert result["teacher_tokens"] == [2, 3] and result["tokens"] == 5
    assert result["teacher_logprobs"] == [[-0.5, -1.0], [-0.5, -1.0, -1.5]]


def test_ids_are_scored_as_they_are() -> None:
    teacher = Halving()
    score({"prompt": "1+2=", "answers": ["3"], "token_ids": [[7, 5, 6]]}, teacher, answers="answers", ids="token_ids")
    assert teacher.ids == [[7, 5, 6]]


def test_estimates_are_those_of_their_formulas() -> None:
    sampler, teacher = np.log([0.5, 0.2]), np.log([0.25, 0.4])
    ratio = np.array([0.5, 2.0])
    found = estimates(sampler, teacher)
    assert found["kl_k1"] == pytest.approx(-np.log(ratio).mean())
    assert found["kl_k2"] == pytest.approx((np.log(ratio) ** 2 / 2).mean())
    assert found["kl_k3"] == pytest.approx((ratio - 1 - np.log(ratio)).mean())


def test_estimates_of_equal_distributions_are_zero_and_k3_is_never_negative() -> None:
    logprobs = np.log(np.random.default_rng(0).dirichlet(np.ones(5)))
    assert all(value == 0 for value in estimates(logprobs, logprobs).values())
    for seed in range(50):
        q, p = np.random.default_rng(seed).dirichlet(np.ones(4), size=2)
        assert estimates(np.log(q), np.log(p))["kl_k3"] >= 0


def test_k1_and_k3_are_unbiased() -> None:
    q, p = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.5, 0.3])
    exact = (q * np.log(q / p)).sum()
    each = [estimates(np.log(q[[token]]), np.log(p[[token]])) for token in range(3)]
    for name in ("kl_k1", "kl_k3"):
        assert sum(weight * found[name] for weight, found in zip(q, each, strict=True)) == pytest.approx(exact)


def test_the_row_s_own_log_probabilities_give_the_estimates() -> None:
    row = {"prompt": "1+2=", "answers": ["3"], "token_ids": [[7, 5]], "logprobs": [[-0.5, -1.0]]}
    result = score(row, answers="answers", ids="token_ids", logprobs="logprobs")
    assert (result["kl_k1"], result["kl_k2"], result["kl_k3"]) == ([0.0], [0.0], [0.0])


def test_answers_are_graded_by_their_form() -> None:
    row = {"prompt": "1+2=", "answers": ["3", "4"], "gold": "so #### 3.0"}
    assert score(row, answers="answers", grade={"gold": "gold", "form": "number"})["right"] == [True, False]


@pytest.mark.parametrize(
    ("row", "options", "sentence"),
    [
        ({"answers": "3"}, {"answers": "answers"}, "its answers is '3', not a list of texts"),
        ({"answers": []}, {"answers": "answers"}, "not a list of texts"),
        (
            {"answers": ["3"], "ids": [[999]]},
            {"answers": "answers", "ids": "ids"},
            "the teacher's tokenizer does not have",
        ),
        ({"answers": ["3", "4"], "ids": [[5]]}, {"answers": "answers", "ids": "ids"}, "its ids has no list for answer 1"),
        ({"answers": ["3"], "ids": [[]]}, {"answers": "answers", "ids": "ids"}, "an answer has no token"),
        ({"answer": "3" * 40}, {"max_tokens": 20}, "prompt and answer have 45 tokens, more than max_tokens = 20"),
        (
            {"answers": ["3"], "ids": [[5, 6]], "q": [[-1.0]]},
            {"answers": "answers", "ids": "ids", "logprobs": "q"},
            "answer 0 has 1 q and 2 tokens",
        ),
    ],
)
def test_rows_that_cannot_be_scored_say_why(row: dict[str, Any], options: dict[str, Any], sentence: str) -> None:
    with pytest.raises(BadRow, match=sentence):
        score({"prompt": "1+2=", **row}, **options)
