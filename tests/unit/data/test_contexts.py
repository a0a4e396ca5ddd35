"""The prompt that a teacher reads in place of the student's: made of a row's columns, and nothing of it in the student's."""

import json
from pathlib import Path
from typing import Any

import pytest

from minidist.config.context import ContextConfig
from minidist.config.data import RenderConfig, SourceConfig
from minidist.data.contexts import ContextReader
from minidist.data.rendering import Renderer
from minidist.data.sources import Example, read_examples, read_prompts
from minidist.errors import ConfigError, DataError
from minidist.types import Prompt
from tests.support.chat import chat_tokenizer

ROWS = [{"q": "two plus two?", "a": "4", "hint": "even"}, {"q": "three plus two?", "a": "5", "hint": None}]
TURN = {"role": "user", "content": "and now?"}
ANSWER = {"role": "assistant", "content": "then"}


def renderer(template: str | None, **settings: Any) -> Renderer:
    return Renderer(chat_tokenizer(template), RenderConfig(**settings))


def context(text: Any, template: str | None = None, *, room: int = 400, **settings: Any) -> ContextReader:
    return ContextReader(ContextConfig.model_validate(text), renderer(template, **settings), room)


def source(folder: Path, rows: list[dict[str, Any]], **fields: Any) -> SourceConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SourceConfig(path=str(path), **({"prompt": "{{ q }}", "answer": "{{ a }}"} | fields))


def prompts(
    folder: Path, text: Any, rows: list[dict[str, Any]] = ROWS, *, template: str | None = None, **fields: Any
) -> list[Prompt]:
    settings = fields.pop("settings", {})
    reader = context(text, template, room=fields.pop("room", 400), **settings)
    limits = {"max_prompt_tokens": fields.pop("max_prompt_tokens", 100), "answer_tokens": fields.pop("answer_tokens", 10)}
    rendering = renderer(template, **settings)
    return read_prompts(source(folder, rows, **fields), rendering, context=reader, gold=True, **limits)[0]


def examples(folder: Path, written: Any, rows: list[dict[str, Any]] = ROWS, **fields: Any) -> list[Example]:
    limits = {"max_prompt_tokens": 100, "max_tokens": 200}
    return read_examples(source(folder, rows, **fields), renderer("chatml"), context=context(written, "chatml"), **limits)[0]


@pytest.mark.parametrize("template", [None, "chatml"])
def test_the_template_is_filled_with_the_columns_of_the_row_and_the_students_prompt(tmp_path: Path, template: str) -> None:
    first, second = prompts(tmp_path, "{{ student_prompt }} {{ a }}{% if hint %} ({{ hint }}){% endif %}", template=template)
    rendered = renderer(template)
    assert first.teacher_tokens is not None and second.teacher_tokens is not None
    assert first.teacher_tokens.tolist() == rendered.prompt("two plus two? 4 (even)").tolist()
    assert second.teacher_tokens.tolist() == rendered.prompt("three plus two? 5").tolist()
    assert first.teacher_text == rendered.whole(rendered.prompt("two plus two? 4 (even)"))


def test_another_context_moves_no_token_of_the_student(tmp_path: Path) -> None:
    one, two = (prompts(tmp_path, f"{word} {{{{ q }}}} {{{{ a }}}}") for word in ("Hint.", "Look at this:"))
    for left, right in zip(one, two, strict=True):
        assert left.tokens.tolist() == right.tokens.tolist()
        assert left.gold is not None and right.gold is not None and left.gold.tolist() == right.gold.tolist()
        assert left.text == right.text
        assert left.teacher_tokens is not None and right.teacher_tokens is not None
        assert left.teacher_tokens.tolist() != right.teacher_tokens.tolist()


CONVERSATION = [{"m": [{"role": "system", "content": "be brief"}, TURN, ANSWER, TURN, ANSWER]}]


@pytest.mark.parametrize("template", [None, "chatml", "gemma"])
@pytest.mark.parametrize("truncate", ["refuse", "left", "right"])
def test_an_equal_context_is_the_students_prompt(tmp_path: Path, template: str | None, truncate: str) -> None:
    rows = [row | {"q": row["q"] * 9} for row in ROWS] if truncate != "refuse" else ROWS
    for prompt in prompts(tmp_path, "{{ student_prompt }}", rows, template=template, settings={"truncate": truncate}):
        assert prompt.teacher_tokens is not None and prompt.teacher_tokens.tolist() == prompt.tokens.tolist()


def test_an_equal_context_of_a_conversation_is_the_conversation(tmp_path: Path) -> None:
    fields = {"prompt": "{{ prompt }}", "answer": None, "messages": "m"}
    [prompt] = prompts(tmp_path, "{{ student_prompt }}", CONVERSATION, template="chatml", **fields)
    assert prompt.teacher_tokens is not None and prompt.teacher_tokens.tolist() == prompt.tokens.tolist()


def test_the_context_takes_the_place_of_the_last_message_and_of_the_system_message(tmp_path: Path) -> None:
    fields = {"prompt": "{{ prompt }}", "answer": None, "messages": "m"}
    text = {"prompt": "{{ student_prompt }} (then)", "system": "You know {{ m | length }} turns."}
    [prompt] = prompts(tmp_path, text, CONVERSATION, template="chatml", **fields)
    asked = [{"role": "system", "content": "You know 5 turns."}, TURN, ANSWER, TURN | {"content": "and now? (then)"}]
    assert prompt.teacher_tokens is not None
    assert prompt.teacher_tokens.tolist() == renderer("chatml").prompt(asked).tolist()


def test_a_fixed_system_message_needs_no_column(tmp_path: Path) -> None:
    [first, _] = prompts(tmp_path, {"system": "Think."}, template="chatml")
    asked = [{"role": "system", "content": "Think."}, {"role": "user", "content": "two plus two?"}]
    assert first.teacher_tokens is not None
    assert first.teacher_tokens.tolist() == renderer("chatml").prompt(asked).tolist()


def test_a_column_of_messages_is_the_teachers_conversation(tmp_path: Path) -> None:
    rows = [ROWS[0] | {"seen": [TURN, ANSWER, {"role": "user", "content": "two plus two? It is 4."}]}]
    [prompt] = prompts(tmp_path, "{{ seen }}", rows, template="chatml")
    assert prompt.teacher_tokens is not None
    assert prompt.teacher_tokens.tolist() == renderer("chatml").prompt(rows[0]["seen"]).tolist()


def test_a_context_that_does_not_fit_is_a_bad_row(tmp_path: Path) -> None:
    text = {"prompt": "{{ q }} {{ a }}", "max_prompt_tokens": 16}
    with pytest.raises(DataError, match=r"row 1: the teacher's prompt has 17 tokens, more than .*max_prompt_tokens = 16"):
        prompts(tmp_path, text)
    assert len(prompts(tmp_path, text, bad_rows="skip")) == 1


def test_a_context_must_leave_the_teacher_room_for_the_answer(tmp_path: Path) -> None:
    found = r"the 15 that the teacher's context of 25 leaves beside an answer of 10"
    with pytest.raises(DataError, match=found):
        prompts(tmp_path, "{{ q }} {{ a }}", [ROWS[1]], room=25)


@pytest.mark.parametrize(("side", "kept"), [("left", "wo? 5"), ("right", "three")])
def test_a_context_is_cut_as_the_data_section_says_and_counted(tmp_path: Path, side: str, kept: str) -> None:
    reader = context({"prompt": "{{ q }} {{ a }}", "max_prompt_tokens": 5}, truncate=side)
    [prompt], _ = read_prompts(source(tmp_path, [ROWS[1]]), renderer(None), max_prompt_tokens=99, context=reader)
    assert prompt.teacher_text == kept and prompt.text == ROWS[1]["q"]
    assert reader.renderer.counts["truncated"] == 1


def test_a_column_that_the_rows_do_not_have_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"rows.jsonl has no column 'trace', which teacher.context.prompt uses; .* q, a, hint"):
        prompts(tmp_path, "{{ student_prompt }} {{ trace }}")


def test_an_empty_prompt_of_the_teacher_is_a_bad_row(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 1: the teacher's prompt is empty"):
        prompts(tmp_path, "{{ hint }}")


def test_a_system_message_without_a_chat_template_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"no chat template; write the text into teacher\.context\.prompt"):
        context({"system": "Think."})


def test_rows_of_a_stream_carry_the_teachers_prompt_before_the_same_answer(tmp_path: Path) -> None:
    for example, row in zip(examples(tmp_path, "{{ student_prompt }} {{ a }}"), ROWS, strict=True):
        rollout = example.as_rollout()
        read = rollout.for_teacher
        assert read.prompt.tokens.tolist() == renderer("chatml").prompt(f"{row['q']} {row['a']}").tolist()
        assert rollout.prompt.tokens.tolist() == renderer("chatml").prompt(row["q"]).tolist()
        assert read.tokens is rollout.tokens and read.labelled is rollout.labelled


def test_a_conversation_with_several_labelled_answers_is_refused(tmp_path: Path) -> None:
    fields = {"prompt": "{{ prompt }}", "answer": None, "messages": "m"}
    with pytest.raises(DataError, match="stands before one answer, and the conversation has several; set labels: last"):
        examples(tmp_path, "{{ student_prompt }}", CONVERSATION, **fields)
    [example] = examples(tmp_path, "{{ student_prompt }}", CONVERSATION, **fields, labels="last")
    assert example.teacher_tokens is not None
    assert example.teacher_tokens.tolist() == example.tokens[: example.start].tolist()


def test_plain_text_is_read_without_a_context(tmp_path: Path) -> None:
    found = examples(tmp_path, "{{ student_prompt }} {{ missing }}", text="{{ q }}", answer=None)
    assert [example.teacher_tokens for example in found] == [None, None]
