"""Where text becomes tokens: templates, chat templates, and the character tokenizer."""

import re
import string

import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from minidist.config.data import RenderConfig
from minidist.data import tasks
from minidist.data.rendering import Renderer, character_tokenizer
from minidist.data.templates import BadRow, Template
from minidist.errors import ConfigError, DataError, ModelError
from tests.support.tiny import answer_of

CHAT = "{% for m in messages %}<{{ m['role'][0] }}>{{ m['content'] }}|{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"


def chatty() -> PreTrainedTokenizerBase:
    tokenizer = character_tokenizer("0123456789<>|usa")
    tokenizer.chat_template = CHAT
    return tokenizer


def shown(renderer: Renderer, text: str) -> str:
    return renderer.tokenizer.decode(renderer.prompt(text).tolist())


def test_chat_template_is_used_when_there_is_one() -> None:
    assert shown(Renderer(chatty(), RenderConfig()), "12") == "<u>12|<a>"
    assert shown(Renderer(chatty(), RenderConfig(chat_template="on")), "12") == "<u>12|<a>"
    assert shown(Renderer(chatty(), RenderConfig(chat_template="off")), "12") == "12"
    assert shown(Renderer(character_tokenizer("12"), RenderConfig()), "12") == "12"


def test_system_message_comes_first() -> None:
    assert shown(Renderer(chatty(), RenderConfig(system="7")), "12") == "<s>7|<u>12|<a>"


def test_chat_template_that_is_not_there_is_refused() -> None:
    with pytest.raises(ModelError, match=r"data.chat_template is on, but .* no chat template; set data.chat_template=off"):
        Renderer(character_tokenizer("12"), RenderConfig(chat_template="on"))


def test_tokenizer_without_end_is_refused() -> None:
    tokenizer = character_tokenizer("12")
    tokenizer.eos_token = None
    with pytest.raises(ModelError, match="no end-of-sequence token"):
        Renderer(tokenizer, RenderConfig())


def test_answer_and_text_end_with_eos_and_prompts_do_not() -> None:
    renderer = Renderer(character_tokenizer("12="), RenderConfig())
    assert answer_of(renderer, "12").tolist() == [2, 3, renderer.eos]
    assert renderer.text("12").tolist() == [2, 3, renderer.eos]
    assert renderer.prompt("12=").tolist() == [2, 3, 4]
    assert answer_of(renderer, "").tolist() == [renderer.eos]


def test_decode_leaves_the_last_eos_away_and_only_that() -> None:
    renderer = Renderer(character_tokenizer("12="), RenderConfig())
    assert renderer.decode(answer_of(renderer, "121")) == "121"
    assert renderer.decode(renderer.prompt("121")) == "121"
    assert renderer.decode(answer_of(renderer, "")) == ""
    assert renderer.decode(renderer.prompt("")) == ""


ALPHABETS = [task.alphabet for task in tasks.TASKS.values()]
ALPHABETS += ["]^-\\[", "^a-z]", "a&b~|-c", " \t\n.#", string.printable.replace("\r", ""), "äß漢🙂\u0301"]


@pytest.mark.parametrize("alphabet", ALPHABETS, ids=repr)
def test_character_tokenizer_round_trip(alphabet: str) -> None:
    renderer = Renderer(character_tokenizer(alphabet), RenderConfig())
    for text in (alphabet, alphabet[::-1], alphabet[0] * 3, alphabet[-1] + alphabet[0]):
        ids = renderer.prompt(text).tolist()
        assert ids == [2 + alphabet.index(character) for character in text]
        assert renderer.decode(answer_of(renderer, text)) == text


def test_character_outside_the_alphabet_is_unknown() -> None:
    tokenizer = character_tokenizer("12")
    assert len(tokenizer) == 4
    assert tokenizer("1x2", add_special_tokens=False)["input_ids"] == [2, tokenizer.unk_token_id, 3]


def test_template_fills_columns() -> None:
    template = Template("{{ a }}{% if b %} and {{ b }}{% endif %}\n", "prompt")
    assert template.columns == {"a", "b"}
    assert template.fill({"a": 1, "b": None}) == "1\n"
    assert template.fill({"a": "<&>", "b": "x"}) == "<&> and x\n"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{{ cycler.__init__.__globals__.os }}", "SecurityError"),
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError: division by zero"),
        ("{{ a + 1 }}", "TypeError"),
        ("{% include 'x' %}", "TypeError: no loader"),
        ("{{ a | truncate(-1) }}", "AssertionError"),
        ("{{ a.b.c }}", "UndefinedError"),
        ("{% for x in range(10 ** 9) %}{{ x }}{% endfor %}", "OverflowError"),
        ("{{ a * 10 ** 9 }}", "TooMuchError"),
        ("{{ 10 ** 100000 }}", "TooMuchError"),
    ],
)
def test_whatever_a_template_raises_names_template_and_reason(source: str, reason: str) -> None:
    """Templates run in a sandbox: a configuration that somebody else wrote runs no code."""
    with pytest.raises(BadRow, match=rf"prompt {re.escape(repr(source))} cannot be filled from it: {reason}"):
        Template(source, "prompt").fill({"a": "x"})


def test_null_is_empty_text_for_filters_and_null_in_json() -> None:
    assert Template("[{{ a }}{{ a | trim }}{{ a | upper }}] {{ a | tojson }} {{ {'b': a} | tojson }}", "prompt").fill({}) == (
        '[] null {"b": null}'
    )


def test_half_a_character_is_refused() -> None:
    with pytest.raises(BadRow, match="lone surrogate"):
        Template("{{ a }}", "prompt").fill({"a": "\ud800"})


def test_template_refusals() -> None:
    with pytest.raises(ConfigError, match="prompt is not a valid Jinja template"):
        Template("{{ a", "prompt")
    with pytest.raises(ConfigError, match=r"answer is not a valid Jinja template.*nope"):
        Template("{{ a | nope }}", "answer")
    with pytest.raises(DataError, match=r"file has no column 'b', which prompt uses; its columns are a, c"):
        Template("{{ a }}{{ b }}", "prompt").check(["a", "c"], "file")


def test_the_beginning_that_a_text_brings_along_is_not_doubled() -> None:
    tokenizer = character_tokenizer("12=")
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<s> $A <eos>", special_tokens=[("<s>", tokenizer.bos_token_id), ("<eos>", tokenizer.eos_token_id)]
    )
    renderer = Renderer(tokenizer, RenderConfig())
    begun = [tokenizer.bos_token_id, 2, 3]
    assert renderer.prompt("12").tolist() == renderer.prompt("<s>12").tolist() == begun
    assert renderer.example("12", "1").tokens.tolist() == [*begun, 2, renderer.eos]
    assert renderer.example("12", "1<eos>").tokens.tolist() == [*begun, 2, renderer.eos]
    assert renderer.text("12").tolist() == [*begun, renderer.eos]
    assert (renderer.chat, renderer.stops) == (None, (renderer.eos,))


def test_ids_that_the_model_lists_end_an_answer_too() -> None:
    renderer = Renderer(character_tokenizer("12="), RenderConfig(), stops=[3])
    assert renderer.stops == (0, 3)
    assert renderer.decode(np.array([2, 3])) == "1" and renderer.decode(np.array([2, 3, 0])) == "12"
