"""Requests to an OpenAI-style vLLM server: what they say, what comes back, and what a refusal means."""

import os
import re
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np

from minidist.config.teacher import ServerConfig, TeacherConfig
from minidist.errors import RoleError
from minidist.types import Array

COMPLETIONS = "/v1/completions"


def address(config: ServerConfig) -> str:
    """The server's address without /v1."""
    return config.url.rstrip("/").removesuffix("/v1")


def headers(config: ServerConfig) -> dict[str, str]:
    """The API key, from the environment; RoleError when it is not there."""
    if config.key_variable is None:
        return {}
    if not (key := os.environ.get(config.key_variable)):
        raise RoleError(
            f"the environment variable {config.key_variable}, which teacher.server.key_variable names, is not set where the "
            "teacher runs; set it there"
        )
    return {"Authorization": f"Bearer {key}"}


def scoring(model: str, sequence: Sequence[int], classes: int) -> dict[str, Any]:
    """A request for the log-probabilities of a sequence, with the `classes` likeliest tokens at each position."""
    # The server must write one token to say anything; it is thrown away.
    return {"model": model, "prompt": list(sequence), "max_tokens": 1, "temperature": 0, "prompt_logprobs": classes}


def read_scores(answer: Any, sequence: Sequence[int], classes: int) -> tuple[Array, Array, Array]:
    """Of an answer to `scoring` a sequence of S tokens: logprobs [S-1], ids [S-1, classes] and values [S-1, classes], falling.

    Raises RoleError if the answer lacks a position, a token or a class.
    """
    try:
        positions = answer["choices"][0]["prompt_logprobs"][1:]  # the first token has no probability
        own = [position[str(token)]["logprob"] for token, position in zip(sequence[1:], positions, strict=True)]
        # A position also holds the sequence's own token, which need not be among the likeliest.
        best = [sorted(p.items(), key=lambda entry: (-entry[1]["logprob"], entry[1]["rank"]))[:classes] for p in positions]
        shape = (len(own), classes)
        ids = np.array([[int(token) for token, _ in row] for row in best], dtype=np.int32).reshape(shape)
        values = np.array([[entry["logprob"] for _, entry in row] for row in best], dtype=np.float32).reshape(shape)
        return np.asarray(own, dtype=np.float32), ids, values
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise RoleError(
            f"the server's answer does not hold the log-probabilities that were asked for ({type(error).__name__}: {error}); "
            "it must be a vLLM server, whose /v1/completions gives prompt_logprobs"
        ) from None


def words(answer: httpx.Response) -> str:
    """What the server says of an error, in one line."""
    try:
        said = answer.json()
        said = said.get("error", said)
        text = str(said.get("message", said) if isinstance(said, dict) else said)
    except (ValueError, AttributeError):
        text = answer.text
    return f"{answer.status_code} {' '.join(text.split())[:300]}".strip()


def refusal(config: TeacherConfig, answer: httpx.Response, classes: int) -> str:
    """A full sentence on a request that the server will not serve, however often it is asked."""
    assert config.server is not None
    where, said = address(config.server), words(answer)
    if answer.status_code in (401, 403):
        return f"the server at {where} refuses the API key; set teacher.server.key_variable (it said: {said})"
    limit = re.search(r"logprobs.*max allowed: (\d+)", said)
    if limit is None or not classes:
        return f"the server at {where} refuses a request of the teacher: {said}"
    # Padded ids are asked for as well, and dropped.
    fits = int(limit[1]) - max(0, classes - config.top_k)
    lower = f"teacher.top_k={fits}" if 0 < fits < config.top_k else "teacher.payload=sampled"
    return (
        f"the server at {where} gives at most {limit[1]} log-probabilities a position, and teacher.top_k={config.top_k} needs "
        f"{classes}; start it with --max-logprobs {classes}, or set {lower} (it said: {said})"
    )
