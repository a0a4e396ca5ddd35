"""Columns of messages: which tokens are the prompt, and which are labels."""

import json
from pathlib import Path
from typing import Any

import pytest

from minidist.config.data import RenderConfig, SourceConfig
from minidist.data.rendering import Renderer
from minidist.data.sources import read_examples, read_prompts
from minidist.errors import DataError, ModelError
from tests.support.chat import chat_renderer, chat_tokenizer

TURNS = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "three"},
    {"role": "assistant", "content": "four"},
]
SHAREGPT = [{"from": "human", "value": "one"}, {"from": "gpt", "value": "two"}]


def source(path: Path, row: dict[str, Any], **fields: Any) -> SourceConfig:
    path.write_text(json.dumps(row))
    return SourceConfig(path=str(path), **fields)


def labels(renderer: Renderer, config: SourceConfig) -> str:
    (example,), _ = read_examples(config, renderer, max_prompt_tokens=200, max_tokens=400)
    return renderer.tokenizer.decode(example.answer)


def whole(renderer: Renderer, config: SourceConfig) -> str:
    (example,), _ = read_examples(config, renderer, max_prompt_tokens=200, max_tokens=400)
    return renderer.tokenizer.decode(example.tokens)


def test_all_turns_of_the_assistant_are_labels_and_no_others(tmp_path: Path) -> None:
    renderer, config = chat_renderer(), source(tmp_path / "r.jsonl", {"m": TURNS}, messages="m")
    assert labels(renderer, config) == "two<|im_end|>four<|im_end|>"
    assert whole(renderer, config) == renderer.tokenizer.apply_chat_template(TURNS, tokenize=False)


def test_labels_can_be_those_of_the_last_turn_alone(tmp_path: Path) -> None:
    config = source(tmp_path / "r.jsonl", {"m": TURNS}, messages="m", labels="last")
    assert labels(chat_renderer(), config) == "four<|im_end|>"


def test_the_last_turn_is_trained_where_a_user_speaks_after_it(tmp_path: Path) -> None:
    turns = [*TURNS, {"role": "user", "content": "five"}]
    config = source(tmp_path / "r.jsonl", {"m": turns}, messages="m")
    assert labels(chat_renderer(), config) == "two<|im_end|>four<|im_end|>"
    assert labels(chat_renderer(), config.model_copy(update={"labels": "last"})) == "four<|im_end|>"


def test_a_column_of_messages_is_named_where_another_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'prompt', which prompt uses; .*; m holds conversations: set messages: m"):
        read_prompts(source(tmp_path / "r.jsonl", {"m": TURNS}), chat_renderer(), max_prompt_tokens=200)


def test_a_rollout_answers_the_last_message_of_a_user(tmp_path: Path) -> None:
    renderer, config = chat_renderer(), source(tmp_path / "r.jsonl", {"m": TURNS}, messages="m")
    (prompt,), _ = read_prompts(config, renderer, max_prompt_tokens=200, gold=True)
    assert renderer.tokenizer.decode(prompt.tokens) == renderer.tokenizer.apply_chat_template(
        TURNS[:-1], tokenize=False, add_generation_prompt=True
    )
    assert (prompt.text, prompt.answer) == ("three", "four")
    assert prompt.gold is not None and renderer.tokenizer.decode(prompt.gold) == "four<|im_end|>"


@pytest.mark.parametrize(
    ("row", "fields"),
    [
        ({"prompt": TURNS[:4], "completion": TURNS[4:]}, {"answer": "{{ completion }}"}),
        ({"prompt": TURNS[:4], "chosen": TURNS}, {"answer": "{{ chosen }}"}),
        ({"prompt": TURNS[:4], "answer": "four"}, {"answer": "{{ answer }}"}),
        ({"chosen": TURNS}, {"messages": "chosen"}),
        ({"m": json.dumps(TURNS)}, {"messages": "m"}),
        ({"m": [*TURNS[:4], {"role": "assistant", "content": [{"type": "text", "text": "four"}]}]}, {"messages": "m"}),
    ],
)
def test_the_usual_formats_give_the_same_row(tmp_path: Path, row: dict[str, Any], fields: dict[str, Any]) -> None:
    renderer = chat_renderer()
    config = source(tmp_path / "r.jsonl", row, **fields)
    assert whole(renderer, config) == renderer.tokenizer.apply_chat_template(TURNS, tokenize=False)
    assert labels(renderer, config) == "two<|im_end|>four<|im_end|>"


def test_sharegpt_names_of_roles_are_known(tmp_path: Path) -> None:
    config = source(tmp_path / "r.jsonl", {"conversations": SHAREGPT}, messages="conversations")
    assert labels(chat_renderer(), config) == "two<|im_end|>"


def test_tool_calls_are_labels_and_results_are_not(tmp_path: Path) -> None:
    call = {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {}}}],
    }
    turns = [TURNS[1], call, {"role": "tool", "content": "7"}, {"role": "assistant", "content": "seven"}]
    config = source(tmp_path / "r.jsonl", {"m": turns, "t": [{"name": "f"}]}, messages="m", tools="t")
    renderer = chat_renderer()
    assert labels(renderer, config) == '<call>{"name": "f", "arguments": {}}</call><|im_end|>seven<|im_end|>'
    assert "tools: [{" in whole(renderer, config)


def test_messages_of_parquet_leave_out_what_is_null(tmp_path: Path) -> None:
    turns = [each | {"tool_calls": None, "name": None} for each in TURNS]
    config = source(tmp_path / "r.jsonl", {"m": turns}, messages="m")
    assert labels(chat_renderer(), config) == "two<|im_end|>four<|im_end|>"


def test_thinking_that_a_template_drops_from_earlier_turns(tmp_path: Path) -> None:
    """The template writes an empty thought into the last turn alone; the labels follow what it writes."""
    config = source(tmp_path / "r.jsonl", {"m": TURNS}, messages="m")
    renderer = chat_renderer("qwen3")
    assert labels(renderer, config) == "two<|im_end|><think>\n\n</think>\n\nfour<|im_end|>"
    without = Renderer(chat_tokenizer("qwen3"), RenderConfig(template_options={"enable_thinking": False}))
    (example,), _ = read_examples(config.model_copy(update={"labels": "last"}), without, max_prompt_tokens=200, max_tokens=400)
    assert without.tokenizer.decode(example.answer) == "four<|im_end|>"


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"m": "hello"}, "its m is a text, not a list of messages"),
        ({"m": []}, "its m is no list of messages"),
        ({"m": [{"content": "x"}]}, "its m is no list of messages"),
        ({"m": [{"role": "user"}]}, r"a message of its m \(role user\) has no content"),
        (
            {"m": [{"role": "user", "content": [{"type": "image"}]}]},
            "a message of its m has a part of type 'image'; minidist reads text alone",
        ),
        ({"m": [{"role": "user", "content": {"a": 1}}]}, "the content of a message of its m is no text"),
        ({"m": TURNS[2:3]}, "its m has no message before the assistant's"),
        ({"m": TURNS[:2]}, "the answer is empty"),
    ],
)
def test_what_is_no_conversation_is_refused_with_its_row(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    with pytest.raises(DataError, match=rf"the first is row 0: {reason}"):
        labels(chat_renderer(), source(tmp_path / "r.jsonl", row, messages="m"))


def test_a_list_in_a_template_is_no_text(tmp_path: Path) -> None:
    config = source(tmp_path / "r.jsonl", {"m": TURNS}, prompt="Say: {{ m }}")
    with pytest.raises(DataError, match=r"row 0: prompt 'Say: {{ m }}' writes a list, and needs text.*set messages"):
        read_prompts(config, chat_renderer(), max_prompt_tokens=200)


def test_conversations_need_a_template(tmp_path: Path) -> None:
    config = source(tmp_path / "r.jsonl", {"m": TURNS}, messages="m")
    with pytest.raises(ModelError, match="the rows are conversations, and the tokenizer has no chat template"):
        read_prompts(config, Renderer(chat_tokenizer(None), RenderConfig()), max_prompt_tokens=200)


def test_a_template_that_refuses_or_drops_a_role_is_a_sentence(tmp_path: Path) -> None:
    config = source(tmp_path / "r.jsonl", {"m": TURNS}, messages="m")
    with pytest.raises(DataError, match=r"row 0: the chat template refuses a conversation of system, user.*not supported"):
        labels(chat_renderer("gemma"), config)
    with pytest.raises(DataError, match="row 0: the chat template leaves out the messages of role system"):
        labels(chat_renderer("mistral"), config)
    for template, reason in (("gemma", "refuses"), ("mistral", "leaves out")):
        with pytest.raises(ModelError, match=f"data.system: the chat template {reason}"):
            Renderer(chat_tokenizer(template), RenderConfig(system="be brief"))


def test_special_tokens_in_the_text_of_a_row(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a<|im_end|>b"}, {"role": "assistant", "content": "c"}]
    config = source(tmp_path / "r.jsonl", {"m": turns}, messages="m")
    end = chat_tokenizer().convert_tokens_to_ids("<|im_end|>")
    found = {}
    for mode in ("control", "text"):
        renderer = Renderer(chat_tokenizer(), RenderConfig(special_tokens=mode))
        (example,), _ = read_examples(config, renderer, max_prompt_tokens=200, max_tokens=400)
        found[mode] = example.tokens.tolist().count(end)
        assert renderer.counts["special"] == 1
        assert renderer.tokenizer.decode(example.tokens) == renderer.tokenizer.apply_chat_template(turns, tokenize=False)
    assert found == {"control": 3, "text": 2}
    with pytest.raises(DataError, match=r"row 0: it holds the special token '<\|im_end\|>' written out"):
        labels(Renderer(chat_tokenizer(), RenderConfig(special_tokens="refuse")), config)
