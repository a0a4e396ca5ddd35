"""A teacher's server looked at before a run: whether it is there, serves the model, has the room, and speaks its tokens."""

from typing import Any

import httpx

from minidist.config.teacher import ServerConfig, ServerTeacherConfig
from minidist.data.rendering import Renderer
from minidist.errors import ConfigError, ModelError, RoleError
from minidist.teachers.payload import classes_asked
from minidist.teachers.server.protocol import COMPLETIONS, address, error_text, headers, read_scores, refusal, scoring
from minidist.types import Prompt

_TEXT = "It's 12.5% <b>naïve</b>:\n\tdef f(x): return x\n\n東京 🙂"  # where tokenizers differ
_TIMEOUT_S = 20.0


def check_server(
    config: ServerTeacherConfig, renderer: Renderer, *, prompt: Prompt, tokens: int, width: int, vocabulary: int
) -> list[str]:
    """Lines of the plan on the server; ConfigError or ModelError, in a sentence, if it cannot be the teacher.

    `prompt` is one of the run's, `tokens` its longest sequence; `width` counts the rows of the teacher's softmax.
    """
    try:
        with httpx.Client(base_url=address(config.server), headers=headers(config.server), timeout=_TIMEOUT_S) as client:
            card = _served(client, config)
            _check_room(card, config.server, tokens)
            compared = _compare_tokens(client, str(card["id"]), renderer, prompt.text + _TEXT)
            _check_scores(client, str(card["id"]), config, prompt, classes_asked(config, width, vocabulary))
    except RoleError as error:
        raise ConfigError(str(error)) from None
    except httpx.TransportError as error:
        raise ConfigError(
            f"teacher.server.url: no server answers at {address(config.server)} ({type(error).__name__}: {error}); start it "
            "first, or correct the url"
        ) from None
    return [f"teacher served as {card['id']} at {address(config.server)}", *compared]


def _served(client: httpx.Client, config: ServerTeacherConfig) -> dict[str, Any]:
    """What the server says of the teacher's model."""
    answer = client.get("/v1/models")
    if answer.status_code in (401, 403):
        raise ConfigError(refusal(config, answer, 0))
    try:
        cards = {str(card["id"]): card for card in answer.raise_for_status().json()["data"]}
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError):
        where, got = address(config.server), error_text(answer)
        raise ConfigError(f"teacher.server.url: {where} is no OpenAI-style server; /v1/models gives {got}") from None
    served, name = ", ".join(cards), config.server.model
    if name is None and len(cards) != 1:
        raise ConfigError(f"the server at {address(config.server)} serves {served}; set teacher.server.model to one of them")
    if name is not None and name not in cards:
        raise ConfigError(f"teacher.server.model is {name!r}, and {address(config.server)} serves {served}")
    return cards[name or served]


def _check_room(card: dict[str, Any], server: ServerConfig, tokens: int) -> None:
    """To score a sequence, vLLM wants room for one more token."""
    context = card.get("max_model_len")
    if context is not None and context < tokens + 1:
        raise ConfigError(
            f"the server at {address(server)} takes {context} tokens, a prompt with its answer needs {tokens} and one more; "
            f"start it with --max-model-len {tokens + 1}, or lower data.max_prompt_tokens + rollout.max_new_tokens"
        )


def _compare_tokens(client: httpx.Client, model: str, renderer: Renderer, text: str) -> list[str]:
    """Raise ModelError if the server makes other tokens of a text than the student's tokenizer."""
    answer = client.post("/tokenize", json={"model": model, "prompt": text, "add_special_tokens": False})
    try:
        theirs = answer.raise_for_status().json()["tokens"]
    except (httpx.HTTPStatusError, ValueError, KeyError, TypeError):
        return [f"the server offers no /tokenize ({answer.status_code}): its tokenizer was not compared"]
    ours = renderer.tokenizer(text, add_special_tokens=False)["input_ids"]
    if list(theirs) != list(ours):
        at = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
        raise ModelError(
            f"student and server have different tokenizers: of {text[:30]!r}... they make {len(ours)} and {len(theirs)} "
            f"tokens, and at place {at} {ours[at : at + 1]} and {theirs[at : at + 1]}; the server must hold a model of the "
            "student's tokenizer"
        )
    return []


def _check_scores(client: httpx.Client, model: str, config: ServerTeacherConfig, prompt: Prompt, classes: int) -> None:
    """Two tokens are scored as the run will have them scored: the server's limits show, and whether it can at all."""
    pair = [int(token) for token in (*prompt.tokens[:1], *prompt.tokens[-1:])]
    answer = client.post(COMPLETIONS, json=scoring(model, pair, classes))
    if not answer.is_success:
        raise ConfigError(refusal(config, answer, classes))
    read_scores(answer.json(), pair, classes)
