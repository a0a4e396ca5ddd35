"""Programs: the calls that each makes, the answer it gives, and its prompts."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from minidist.config.system2 import ProgramConfig
from minidist.data.tasks import generate
from minidist.errors import ConfigError
from minidist.system2.programs import PROGRAMS, TIE, Call, merge, two_scores, unbiased
from minidist.system2.prompts import PACKAGED, Prompts
from tests.support.asking import Asked

JUDGED = {"question": "2 + 2?", "response_a": "4 apples", "response_b": "5"}


def run(name: str, row: dict[str, Any], ask: Asked) -> str:
    program = PROGRAMS[name]
    return asyncio.run(program.run(row, Call(ask, Prompts(program.prompts), row)))


def test_the_configuration_names_every_program() -> None:
    names = ProgramConfig.model_json_schema()["properties"]["type"]["enum"]
    assert sorted(names) == sorted(PROGRAMS)


def test_every_packaged_prompt_belongs_to_a_program_or_filter() -> None:
    used = {name for program in PROGRAMS.values() for name in program.prompts} | {"most_consistent", "judge"}
    assert used == {file.stem for file in PACKAGED.glob("*.jinja")}


def test_direct_asks_the_prompt_alone() -> None:
    ask = Asked(lambda prompt, _: " 4\n")
    assert run("direct", {"prompt": "2 + 2?"}, ask) == "4"
    assert ask.prompts == ["2 + 2?"]


@pytest.mark.parametrize("name", ["chain_of_thought", "rephrase_and_respond"])
def test_programs_of_one_call_keep_the_final_answer_only(name: str) -> None:
    ask = Asked(lambda prompt, _: "2 and 2 are four. The answer is 4.")
    assert run(name, {"prompt": "2 + 2?"}, ask) == "4"
    assert len(ask.prompts) == 1 and "2 + 2?" in ask.prompts[0]


def test_the_second_call_sees_the_rephrased_question() -> None:
    ask = Asked(lambda prompt, _: "The answer is 4." if "Sum of two and two?" in prompt else "Sum of two and two?")
    assert run("rephrase_then_respond", {"prompt": "2 + 2?"}, ask) == "4"
    assert len(ask.prompts) == 2 and all("2 + 2?" in prompt for prompt in ask.prompts)


def test_attention_answers_the_question_without_the_opinion() -> None:
    row = {"prompt": "I think it is 5. 2 + 2?"}
    rewritten = "Context: none.\nQuestion: 2 + 2?"
    ask = Asked(lambda prompt, _: rewritten if "unbiased answer" in prompt else "The answer is 4.")
    assert run("system_2_attention", row, ask) == "4"
    assert "I think" in ask.prompts[0] and "I think" not in ask.prompts[1]


def test_attention_falls_back_to_the_prompt_where_no_question_is_found() -> None:
    row = {"prompt": "I think it is 5. 2 + 2?"}
    ask = Asked(lambda prompt, _: "I cannot." if "unbiased answer" in prompt else "5")
    assert run("system_2_attention", row, ask) == "5"
    assert ask.prompts[1] == row["prompt"]


@pytest.mark.parametrize(
    ("rewritten", "found"),
    [
        ("Context: c\nQuestion: q?", ("c", "q?")),
        ("Question: q?", ("", "q?")),
        ("Context: c", None),
        ("Question:  ", None),
        ("Context: a\nb\nQuestion: q\nr", ("a\nb", "q\nr")),
    ],
)
def test_the_two_parts_of_a_rewritten_prompt(rewritten: str, found: Any) -> None:
    assert unbiased(rewritten) == found


def judge(prompt: str, _: int) -> str:
    """Likes what is longer, and whatever stands first a little."""
    if "will be judged" in prompt:
        return "a: x\n\nb: y\nc: z\nd\ne\nf\ng"
    first, second = (prompt.split(f"{name} response: ")[1].split("\n")[0] for name in ("First", "Second"))
    return f"{min(5, len(first) // 2 + 2)}\n{min(5, len(second) // 2 + 1)}"


def test_criteria_are_made_from_the_question_alone_and_at_most_five() -> None:
    ask = Asked(judge)
    assert run("branch_solve_merge", JUDGED, ask) == "A"
    assert len(ask.prompts) == 1 + 2 * 5
    assert "4 apples" not in ask.prompts[0] and "2 + 2?" in ask.prompts[0]


def test_verdicts_are_mirrored_when_the_responses_are_swapped() -> None:
    mirrored = {"A": "B", "B": "A", TIE: TIE}
    for row in generate("judging", split="train", rows=40, seed=0):
        swapped = row | {"response_a": row["response_b"], "response_b": row["response_a"]}
        assert run("branch_solve_merge", swapped, Asked(judge)) == mirrored[run("branch_solve_merge", row, Asked(judge))]


def test_a_verdict_that_follows_the_order_is_a_tie() -> None:
    ask = Asked(lambda prompt, _: "5\n1" if "First response" in prompt else "a criterion")
    assert run("branch_solve_merge", JUDGED, ask) == TIE


def test_merging_adds_the_scores_of_the_criteria() -> None:
    assert merge([(1, 5), (5, 4), (5, 2)], [(2, 1)]) == TIE  # 11 to 11 in one order
    assert merge([(1, 5), (5, 4), (5, 1)], [(2, 1)]) == "A"
    assert merge([(1, 5)], [(1, 2)]) == "B"
    assert merge([], []) == TIE


@pytest.mark.parametrize(
    ("reply", "scores"),
    [("5\n3", (5, 3)), ("first: 4, second: 2", (4, 2)), ("10 and 7", (0, 0)), ("3", (0, 0)), ("3 of 5", (3, 5))],
)
def test_scores_are_read(reply: str, scores: tuple[int, int]) -> None:
    assert two_scores(reply) == scores


def test_the_calls_are_those_of_the_last_run() -> None:
    asked = [Asked(judge) for _ in range(2)]
    for ask in asked:
        run("branch_solve_merge", JUDGED, ask)
    assert asked[0].prompts == asked[1].prompts


def test_a_user_s_prompt_replaces_the_packaged_one(tmp_path: Path) -> None:
    (tmp_path / "direct.jinja").write_text("Q: {{ prompt }}\nA:\n")
    prompts = Prompts(PROGRAMS["direct"].prompts, tmp_path)
    assert prompts.fill("direct", {"prompt": "2 + 2?"}) == "Q: 2 + 2?\nA:"


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("Answer the question.", r"direct.jinja does not use \{\{ prompt \}\}.*it uses no name"),
        ("{{ question }}", r"does not use \{\{ prompt \}\}.*it uses question"),
        ("{{ prompt", "not a valid Jinja template"),
    ],
)
def test_a_prompt_without_its_placeholder_is_refused(tmp_path: Path, text: str, match: str) -> None:
    (tmp_path / "direct.jinja").write_text(text)
    with pytest.raises(ConfigError, match=match):
        Prompts(PROGRAMS["direct"].prompts, tmp_path)


def test_a_folder_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no folder at"):
        Prompts(PROGRAMS["direct"].prompts, tmp_path / "none")
