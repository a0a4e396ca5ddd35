"""The wire format of an OpenAI-style vLLM server: requests, answers, and the meaning of refusals."""

import os
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import httpx
import numpy as np

from minidist.config.teacher import ServerConfig, ServerTeacherConfig
from minidist.errors import RoleError
from minidist.types import Array, Sampling

MODELS, TOKENIZE, COMPLETIONS = "/v1/models", "/tokenize", "/v1/completions"


def address(config: ServerConfig) -> str:
    """The server's address without /v1."""
    return config.url.rstrip("/").removesuffix("/v1")


def headers(config: ServerConfig) -> dict[str, str]:
    """The header with the API key, from the environment; RoleError if the variable is not set."""
    if config.key_variable is None:
        return {}
    if not (key := os.environ.get(config.key_variable)):
        raise RoleError(
            f"the environment variable {config.key_variable}, which teacher.server.key_variable names, is not set where the "
            "teacher runs; set it there"
        )
    return {"Authorization": f"Bearer {key}"}


def read_models(answer: Any) -> dict[str, dict[str, Any]]:
    """The answer to GET `MODELS`: the entry of each model, by its name. Raises KeyError or TypeError for another answer."""
    return {str(card["id"]): card for card in answer["data"]}


def tokenizing(model: str, text: str) -> dict[str, Any]:
    """A request for the tokens of a text."""
    return {"model": model, "prompt": text, "add_special_tokens": False}


def read_tokens(answer: Any) -> list[int]:
    """The answer to `tokenizing`. Raises KeyError or TypeError for another answer."""
    return list(answer["tokens"])


def scoring(model: str, sequence: Sequence[int], classes: int) -> dict[str, Any]:
    """A request for the log-probabilities of a sequence, with the `classes` likeliest tokens at each position."""
    # A server answers only if it writes at least one token, which is ignored.
    return {"model": model, "prompt": list(sequence), "max_tokens": 1, "temperature": 0, "prompt_logprobs": classes}


def drawing(sampling: Sampling) -> dict[str, Any]:
    """The sampling fields of a request; every option for which a server may have another default is set."""
    drawn = {"max_tokens": sampling.max_new_tokens, "temperature": sampling.temperature, "top_p": sampling.top_p}
    return drawn | {"top_k": 0, "min_p": 0, "repetition_penalty": 1, "presence_penalty": 0, "frequency_penalty": 0}


def untruncated(sampling: Sampling) -> bool:
    """Whether answers are drawn from the model's own distribution, whose log-probabilities a server reports.

    A server takes them before temperature and truncation, unless it was started otherwise.
    """
    own = Sampling(max_new_tokens=sampling.max_new_tokens, samples=sampling.samples, seed=sampling.seed)
    return sampling in (own, replace(own, temperature=0))


def read_scores(answer: Any, sequence: Sequence[int], classes: int) -> tuple[Array, Array, Array]:
    """The answer to `scoring` a sequence of S tokens: logprobs [S-1], ids and values [S-1, classes], in falling order.

    Raises RoleError if the answer lacks a position, a token or a class.
    """
    try:
        positions = answer["choices"][0]["prompt_logprobs"][1:]  # the first token has no probability
        logprobs = [position[str(token)]["logprob"] for token, position in zip(sequence[1:], positions, strict=True)]
        # A position also lists the token of the sequence, which need not be among the likeliest.
        best = [sorted(p.items(), key=lambda entry: (-entry[1]["logprob"], entry[1]["rank"]))[:classes] for p in positions]
        shape = (len(logprobs), classes)
        ids = np.array([[int(token) for token, _ in row] for row in best], dtype=np.int32).reshape(shape)
        values = np.array([[entry["logprob"] for _, entry in row] for row in best], dtype=np.float32).reshape(shape)
        return np.asarray(logprobs, dtype=np.float32), ids, values
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise RoleError(
            f"the server's answer lacks requested log-probabilities ({type(error).__name__}: {error}); the teacher needs a "
            "vLLM server, whose /v1/completions returns prompt_logprobs"
        ) from None


def error_text(answer: httpx.Response) -> str:
    """Status and error message of an answer, in one line."""
    try:
        body = answer.json()
        error = body.get("error", body)
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        text = answer.text
    return f"{answer.status_code} {' '.join(text.split())[:300]}".strip()


def refusal(config: ServerTeacherConfig, answer: httpx.Response, classes: int) -> str:
    """A full sentence on a request that the server refuses for good."""
    where, error = address(config.server), error_text(answer)
    if answer.status_code in (401, 403):
        return f"the server at {where} refuses the API key; set teacher.server.key_variable (the server's message: {error})"
    limit = re.search(r"logprobs.*max allowed: (\d+)", error)
    if limit is None or not classes:
        return f"the server at {where} refuses a request of the teacher: {error}"
    # Padded ids are requested as well, and dropped later.
    fits = int(limit[1]) - max(0, classes - config.top_k)
    lower = f"teacher.top_k={fits}" if 0 < fits < config.top_k else "teacher.payload=sampled"
    return (
        f"the server at {where} gives at most {limit[1]} log-probabilities a position, and teacher.top_k={config.top_k} needs "
        f"{classes}; start the server with --max-logprobs {classes}, or set {lower} (the server's message: {error})"
    )
