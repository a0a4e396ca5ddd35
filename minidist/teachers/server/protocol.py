"""Servers by the names of their APIs; their addresses and keys, and the meaning of refusals."""

import json
import os
import re
from dataclasses import replace

import httpx

from minidist.config.teacher import ServerConfig, ServerTeacherConfig
from minidist.errors import RoleError
from minidist.teachers.server.sglang import SGLangApi
from minidist.teachers.server.vllm import VLLMApi
from minidist.text import hide, shown
from minidist.types import Sampling

APIS = {"vllm": VLLMApi, "sglang": SGLangApi}
"""The wire format of each `teacher.server.api`."""


def address(config: ServerConfig) -> str:
    """The server's address without /v1."""
    return config.url.rstrip("/").removesuffix("/v1")


def headers(config: ServerConfig, where: str = "teacher.server") -> dict[str, str]:
    """The header with the API key, from the environment; RoleError if the variable is not set, or holds no key."""
    if config.key_variable is None:
        return {}
    variable = f"the environment variable {config.key_variable}, which {where}.key_variable names,"
    if not (key := os.environ.get(config.key_variable)):
        raise RoleError(f"{variable} is not set where the teacher runs; set it there")
    if not re.fullmatch(r"[!-~]+", key):
        raise RoleError(f"{variable} holds no API key: a key has neither blanks nor characters beyond ASCII; set it to the key")
    hide(key)
    return {"Authorization": f"Bearer {key}"}


def untruncated(sampling: Sampling) -> bool:
    """Whether answers are drawn from the model's own distribution, whose log-probabilities a server reports.

    A server takes them before temperature and truncation, unless it was started otherwise.
    """
    own = Sampling(max_new_tokens=sampling.max_new_tokens, samples=sampling.samples, seed=sampling.seed)
    return sampling in (own, replace(own, temperature=0))


def error_text(answer: httpx.Response) -> str:
    """Status and error message of an answer, in one line."""
    text = answer.content[:10_000].decode("utf-8", "replace")
    message = re.search(r'"(?:message|detail|error)"\s*:\s*("(?:[^"\\\x00-\x1f]|\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))*")', text)
    return f"{answer.status_code} {shown(json.loads(message[1]) if message else text)}".strip()


def refusal(config: ServerTeacherConfig, answer: httpx.Response, *, classes: int) -> str:
    """A full sentence on a request that the server refuses for good."""
    where, error = address(config.server), error_text(answer)
    if answer.status_code in (401, 403):
        return f"the server at {where} refuses the API key; set teacher.server.key_variable (the server's message: {error})"
    limit = re.search(r"logprobs.*max allowed: (\d{1,9})", error)
    if limit is None or not classes:
        return f"the server at {where} refuses a request of the teacher: {error}"
    # Padded ids are requested as well, and dropped later.
    fits = int(limit[1]) - max(0, classes - config.top_k)
    lower = f"teacher.top_k={fits}" if 0 < fits < config.top_k else "teacher.payload=sampled"
    return (
        f"the server at {where} gives at most {limit[1]} log-probabilities a position, and teacher.top_k={config.top_k} needs "
        f"{classes}; start the server with --max-logprobs {classes}, or set {lower} (the server's message: {error})"
    )
