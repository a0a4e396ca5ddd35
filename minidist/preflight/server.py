"""Checks of a teacher's server before a run: it responds, serves the model, has the context, and the same tokenizer."""

from typing import Any

import httpx

from minidist.config.teacher import ServerConfig, ServerTeacherConfig
from minidist.data.rendering import Renderer
from minidist.errors import ConfigError, ModelError, RoleError
from minidist.teachers.payload import classes_asked
from minidist.teachers.server import protocol
from minidist.teachers.server.protocol import address, refusal
from minidist.types import Prompt

_TEXT = "It's 12.5% <b>naïve</b>:\n\tdef f(x): return x\n\n東京 🙂"  # where tokenizers differ
_TIMEOUT_S = 20.0


def check_server(
    config: ServerTeacherConfig, renderer: Renderer, *, prompt: Prompt, tokens: int, width: int, vocabulary: int
) -> list[str]:
    """Lines of the plan about the server. Raises ConfigError or ModelError where the server cannot be the teacher.

    Args:
        config: teacher with its server.
        renderer: the student's tokenizer.
        prompt: one of the run's prompts.
        tokens: length of the run's longest sequence.
        width: rows of the teacher's softmax, padded ones included.
        vocabulary: tokens that student and teacher share.
    """
    where = address(config.server)
    try:
        with httpx.Client(base_url=where, headers=protocol.headers(config.server), timeout=_TIMEOUT_S) as client:
            card = _model_card(client, config)
            _check_context(card, config.server, tokens)
            compared = _compare_tokens(client, str(card["id"]), renderer, prompt.text + _TEXT)
            _check_scores(client, str(card["id"]), config, prompt, classes_asked(config, width, vocabulary))
    except RoleError as error:
        raise ConfigError(str(error)) from None
    except httpx.TransportError as error:
        found = f"no server answers at {where} ({type(error).__name__}: {error})"
        raise ConfigError(f"teacher.server.url: {found}; start it first, or correct the url") from None
    return [f"teacher served as {card['id']} at {where}", *compared]


def _model_card(client: httpx.Client, config: ServerTeacherConfig) -> dict[str, Any]:
    """The server's entry for the teacher's model."""
    answer = client.get(protocol.MODELS)
    if answer.status_code in (401, 403):
        raise ConfigError(refusal(config, answer, 0))
    try:
        cards = protocol.read_models(answer.raise_for_status().json())
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError):
        where, got = address(config.server), protocol.error_text(answer)
        raise ConfigError(f"teacher.server.url: {where} is no OpenAI-style server; {protocol.MODELS} gives {got}") from None
    served, name = ", ".join(cards), config.server.model
    if name is None and len(cards) != 1:
        raise ConfigError(f"the server at {address(config.server)} serves {served}; set teacher.server.model to one of them")
    if name is not None and name not in cards:
        raise ConfigError(f"teacher.server.model is {name!r}, and {address(config.server)} serves {served}")
    return cards[name or served]


def _check_context(card: dict[str, Any], server: ServerConfig, tokens: int) -> None:
    """To score a sequence, vLLM needs a context of one token more."""
    context = card.get("max_model_len")
    if context is not None and context < tokens + 1:
        found = f"the server at {address(server)} takes {context} tokens, a prompt with its answer needs {tokens} and one more"
        lower = "lower data.max_prompt_tokens + rollout.max_new_tokens"
        raise ConfigError(f"{found}; start it with --max-model-len {tokens + 1}, or {lower}")


def _compare_tokens(client: httpx.Client, model: str, renderer: Renderer, text: str) -> list[str]:
    """Raise ModelError unless the server and the student's tokenizer make the same tokens of a text."""
    answer = client.post(protocol.TOKENIZE, json=protocol.tokenizing(model, text))
    try:
        server_ids = protocol.read_tokens(answer.raise_for_status().json())
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError):
        return [f"the server offers no {protocol.TOKENIZE} ({answer.status_code}): its tokenizer was not compared"]
    student_ids = list(renderer.tokenizer(text, add_special_tokens=False)["input_ids"])
    if server_ids != student_ids:
        shorter = min(len(student_ids), len(server_ids))
        at = next((index for index in range(shorter) if student_ids[index] != server_ids[index]), shorter)
        made = f"{len(student_ids)} and {len(server_ids)} tokens, and at index {at} {student_ids[at : at + 1]}"
        found = f"of {text[:30]!r}... they make {made} and {server_ids[at : at + 1]}"
        need = "the server must hold a model with the student's tokenizer"
        raise ModelError(f"student and server have different tokenizers: {found}; {need}")
    return []


def _check_scores(client: httpx.Client, model: str, config: ServerTeacherConfig, prompt: Prompt, classes: int) -> None:
    """Score two tokens as the run will: a server that cannot, or allows too few classes, is refused."""
    pair = [int(token) for token in (*prompt.tokens[:1], *prompt.tokens[-1:])]
    answer = client.post(protocol.COMPLETIONS, json=protocol.scoring(model, pair, classes))
    if not answer.is_success:
        raise ConfigError(refusal(config, answer, classes))
    protocol.read_scores(answer.json(), pair, classes)
