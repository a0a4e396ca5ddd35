"""A row: samples, changed inputs, the filter and the columns of the result."""

import asyncio
import json
from typing import Any

import pytest

from minidist.config.system2 import ProgramConfig
from minidist.errors import ConfigError
from minidist.system2.rows import RowProgram
from tests.support.asking import Asked

ROW = {"prompt": "2 + 2?", "answer": "so it is\n#### 4"}


def run(answers: list[str], row: dict[str, Any] = ROW, count: int | None = None, **options: Any) -> dict[str, Any]:
    """The result where sample i replies with answers[i]; the call after the samples chooses."""
    config = ProgramConfig.model_validate({"form": "number", "gold": "answer", **options})
    program = RowProgram(config, count or len(answers))
    asks = lambda number: Asked(lambda prompt, sample: [*answers, "Response 2", "Response 2"][sample], number)  # noqa: E731
    return asyncio.run(program.run(row, asks, "seed"))


def replies(*numbers: int) -> list[str]:
    return [f"Let me think about it. The answer is {number}." for number in numbers]


def test_the_majority_is_kept_and_graded() -> None:
    result = run(replies(4, 5, 4))
    assert (result["answer"], result["kept"], result["right"]) == ("4", True, True)
    assert result["agreement"] == pytest.approx(2 / 3) and result["votes"] == [
        {"form": "4", "count": 2},
        {"form": "5", "count": 1},
    ]


def test_a_tie_is_dropped_and_not_right() -> None:
    result = run(replies(4, 5))
    assert (result["answer"], result["kept"], result["right"]) == (None, False, False)


def test_a_wrong_majority_is_kept_and_wrong() -> None:
    assert (run(replies(5, 5, 4))["kept"], run(replies(5, 5, 4))["right"]) == (True, False)


def test_stricter_thresholds_keep_fewer() -> None:
    cases = [replies(*numbers) for numbers in ([4, 4, 4, 4], [4, 4, 4, 5], [4, 4, 5, 6], [4, 5, 6, 7], [5, 5, 5, 4])]
    kept = [[run(case, filter={"threshold": threshold})["kept"] for case in cases] for threshold in (0, 0.5, 0.75, 1)]
    assert [sum(each) for each in kept] == [4, 4, 3, 1]
    assert all(strict <= loose for strict, loose in zip(kept[1:], kept, strict=False))


def test_no_intermediate_text_is_in_the_answer() -> None:
    result = run(replies(4, 4, 4))
    side = result.pop("trace")
    assert "think" not in json.dumps(result) and all("think" in call["reply"] for call in side)


def test_all_tokens_are_counted_and_those_of_one_sample() -> None:
    result = run(replies(4, 5, 4))
    assert (result["tokens"], result["answer_tokens"]) == (3 * 10, 10)


def test_a_changed_input_must_agree() -> None:
    row = ROW | {"paraphrases": ["Two and two?"]}
    options = {"filter": {"perturbations": ["paraphrased"]}, "count": 2}
    assert run(replies(4, 4, 4), row, **options)["kept"] is True
    assert run(replies(4, 4, 5), row, **options)["kept"] is False


def test_the_model_chooses_the_most_consistent() -> None:
    result = run(replies(3, 4, 5), filter={"type": "universal"})
    assert (result["answer"], result["kept"], result["right"]) == ("4", True, True)
    assert result["trace"][-1] == {"call": "most_consistent", "reply": "Response 2"}


def test_a_row_is_a_function_of_the_replies() -> None:
    row = ROW | {"paraphrases": ["Two and two?", "Double two?"]}
    options = {"filter": {"perturbations": ["paraphrased"]}, "count": 2}
    assert run(replies(4, 4, 4), row, **options) == run(replies(4, 4, 4), row, **options)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (
            {"type": "branch_solve_merge"},
            "no column 'question', which program.type=branch_solve_merge needs; its columns are prompt",
        ),
        ({"gold": "answer"}, "no column 'answer', which accuracy .program.gold, grade.gold. needs"),
        (
            {"filter": {"perturbations": ["shuffled_options"]}},
            "'options', which program.filter.perturbations=shuffled_options needs",
        ),
    ],
)
def test_missing_columns_are_refused(options: dict[str, Any], match: str) -> None:
    program = RowProgram(ProgramConfig.model_validate(options), 1)
    with pytest.raises(ConfigError, match=match):
        program.check(["prompt"], "rows.jsonl")
