"""Verdicts: what is asked of a judge for each answer, and what is read in its reply."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from minidist.config.judge import JudgeConfig
from minidist.errors import ConfigError
from minidist.pipelines.judging import Judge, judge_prompts, read_verdict, verdict_summary
from minidist.pipelines.writers import Sample
from minidist.types import Finish

VERDICT = JudgeConfig.model_fields["verdict"].default
SERVER = {"url": "http://127.0.0.1:1"}


class Judging:
    """Scores a response by its length, and remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []

    async def write(self, asking: Any, identity: str, samples: int, tools: Any = None) -> list[Sample]:
        self.asked.append((identity, asking))
        response = asking.split("Answer: ")[1].split("\n")[0]
        return [Sample(f"It is short. Score: {len(response)}", 5, Finish.STOP)]

    async def close(self) -> None: ...


def verdicts(row: dict[str, Any], texts: list[str], writer: Judging | None = None, template: Path | None = None) -> Any:
    judge = Judge(writer or Judging(), judge_prompts(template), VERDICT)
    return asyncio.run(judge.columns(row, texts, "k"))


def test_each_answer_has_its_own_verdict() -> None:
    found = verdicts({"prompt": "2 + 2?"}, ["four", "4"])
    assert found["verdict"] == ["4", "1"] and found["verdict_tokens"] == [5, 5]
    assert found["verdict_reply"] == ["It is short. Score: 4", "It is short. Score: 1"]


def test_the_judge_sees_the_prompt_and_the_answer_that_is_judged() -> None:
    writer = Judging()
    verdicts({"prompt": "2 + 2?", "response": "a column of the same name"}, ["four"], writer)
    [(identity, asked)] = writer.asked
    assert "2 + 2?" in asked and "Answer: four\n" in asked and "same name" not in asked
    assert identity == "k/judge/0/0"  # each answer has its own seed


def test_a_user_s_prompt_reads_any_column(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("Right is {{ gold }}.\nAnswer: {{ response }}\n")
    writer = Judging()
    verdicts({"prompt": "2 + 2?", "gold": "4"}, ["four"], writer, tmp_path / "own.jinja")
    assert writer.asked[0][1] == "Right is 4.\nAnswer: four"


@pytest.mark.parametrize(
    ("pattern", "reply", "verdict"),
    [
        (VERDICT, "Score: 3? No. score: 7.5", "7.5"),
        (VERDICT, "I cannot say.", None),
        (r"\[\[(A|B|C)\]\]", "Both are good. [[C]]", "C"),
        ("yes|no", "no, no, yes", "yes"),
        (r"Verdict:(.*)", "Verdict:", ""),
    ],
)
def test_the_last_verdict_of_a_reply_is_read(pattern: str, reply: str, verdict: str | None) -> None:
    assert read_verdict(pattern, reply) == verdict


def test_a_prompt_without_the_response_is_refused(tmp_path: Path) -> None:
    (tmp_path / "own.jinja").write_text("Is {{ prompt }} easy?")
    with pytest.raises(ConfigError, match=r"judge.template: .*own.jinja does not use \{\{ response \}\}.*it uses prompt"):
        judge_prompts(tmp_path / "own.jinja")


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "set exactly one of judge.model"),
        ({"server": SERVER, "model": {"model": "m"}}, "set exactly one of judge.model"),
        ({"server": SERVER, "verdict": "("}, r"judge.verdict '\(' is no regular expression"),
        ({"server": SERVER, "rollout": {"samples_per_prompt": 2}}, "a judge gives one verdict"),
    ],
)
def test_settings_that_give_no_verdict_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        JudgeConfig.model_validate(options)


def test_verdicts_are_counted_and_their_mean_is_that_of_all() -> None:
    results = [{"verdict": ["7", "7", None]}, {"verdict": "4"}, {"error": "too long"}]
    assert verdict_summary(results) == {"verdicts": {"7": 2, "4": 1}, "verdicts_unread": 1, "verdict_mean": 6.0}


def test_verdicts_that_are_no_numbers_have_no_mean() -> None:
    assert "verdict_mean" not in verdict_summary([{"verdict": "A"}, {"verdict": "3"}]) and verdict_summary([]) == {
        "verdicts": {},
        "verdicts_unread": 0,
    }
