"""A row: samples, changed inputs, the filter and the columns of the result."""

import asyncio
import json
import pickle
from typing import Any

import pytest

from minidist.config.system2 import ProgramConfig
from minidist.data.templates import BadRow, Template
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


def asked_with(row: dict[str, Any], prompt: str, filter: dict[str, Any]) -> list[list[str]]:
    """The prompts of each sample, where `prompt` is a template over the columns."""
    program, asks = RowProgram(ProgramConfig.model_validate({"type": "direct", "form": "exact", "filter": filter}), 1), []

    def ask(number: int) -> Asked:
        asks.append(Asked(lambda prompt, sample: "A", number))
        return asks[-1]

    template = Template(prompt, "prompt")
    asyncio.run(program.run(row, ask, "seed", template.fill))
    return [each.prompts for each in asks]


def test_the_prompt_is_made_anew_of_changed_columns() -> None:
    row = {"prompt": "Which is red?", "options": ["sky", "blood"]}
    template = "{{ prompt }} {{ options | join(' or ') }}"
    found = asked_with(row, template, {"perturbations": ["shuffled_options"]})
    assert found[:2] == [["Which is red? sky or blood"], ["Which is red? blood or sky"]]


def test_a_paraphrase_takes_the_place_of_the_prompt() -> None:
    row = {"question": "2 + 2?", "paraphrases": ["Two and two?"]}
    found = asked_with(row, "Q: {{ question }}", {"perturbations": ["paraphrased"]})
    assert found[:2] == [["Q: 2 + 2?"], ["Two and two?"]]


@pytest.mark.parametrize(
    ("name", "columns"), [("shuffled_options", ["options"]), ("swapped_responses", ["response_a", "response_b"])]
)
def test_a_change_that_no_prompt_asks_is_refused(name: str, columns: list[str]) -> None:
    program = RowProgram(ProgramConfig.model_validate({"type": "direct", "filter": {"perturbations": [name]}}), 1)
    with pytest.raises(ConfigError, match=rf"changes {' and '.join(columns)}, of which no prompt is made; write"):
        program.check(["prompt", *columns], "rows.jsonl")
    program.check(["prompt", *columns], "rows.jsonl", frozenset({"prompt", *columns}))


def test_responses_that_a_program_reads_itself_may_be_swapped() -> None:
    filter = {"perturbations": ["swapped_responses"]}
    program = RowProgram(ProgramConfig.model_validate({"type": "branch_solve_merge", "filter": filter}), 1)
    program.check(["prompt", "question", "response_a", "response_b"], "rows.jsonl")


@pytest.mark.parametrize("gold", ["blue", None, ""])
def test_a_gold_answer_that_is_none_is_a_bad_row(gold: str | None) -> None:
    with pytest.raises(BadRow, match=r"its gold answer .* is none of the form number"):
        run(replies(4), {"prompt": "2 + 2?", "answer": gold})


def test_a_program_crosses_processes() -> None:
    program = RowProgram(ProgramConfig.model_validate({"form": "number", "gold": "answer", "filter": {"threshold": 0.5}}), 3)
    copy = pickle.loads(pickle.dumps(program))
    asks = lambda number: Asked(lambda prompt, sample: replies(4, 5, 4, 4)[sample], number)  # noqa: E731
    found = [asyncio.run(each.run(ROW, asks, "seed")) for each in (program, copy)]
    assert found[0] == found[1] and found[0]["answer"] == "4"
