"""A teacher on an OpenAI-style vLLM server: the run sends token ids, the server returns log-probabilities and token ids."""

import asyncio
import random
from collections.abc import Sequence
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any

import httpx
import numpy as np

from minidist.concurrency import together
from minidist.config.teacher import ServerTeacherConfig
from minidist.data.rendering import Renderer
from minidist.errors import RoleError
from minidist.models.heads import vocabulary_size
from minidist.models.hub import load_config
from minidist.rollout.answers import answered
from minidist.rollout.seeds import sample_seed
from minidist.teachers.payload import classes_asked, to_scores
from minidist.teachers.server import protocol
from minidist.types import Prompt, Rollout, Sampling, TeacherScores, allowed_ids

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 30.0


class ServerTeacher:
    """Scores and writes over HTTP, with at most `teacher.server.requests` requests at a time; answers come in order.

    A request that finds the server busy or absent is sent again. After `teacher.server.attempts` attempts, or if the server
    refuses the request, the call raises RoleError. Cancelling a call cancels its requests.
    """

    def __init__(self, config: ServerTeacherConfig, renderer: Renderer, *, vocabulary: int | None) -> None:
        width = vocabulary_size(load_config(config, "teacher.model"))
        self._config = config
        self._server = config.server
        self._address = protocol.address(config.server)
        self._renderer = renderer
        self._vocabulary = vocabulary
        self._classes = classes_asked(config, width, vocabulary)
        self._allowed = allowed_ids(vocabulary, width)
        self._slots = asyncio.Semaphore(self._server.requests)
        # Requests wait for a slot, never for a connection, since that wait would count towards their timeout.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self._server.requests)
        key, timeout = protocol.headers(self._server), self._server.timeout_s
        self._client = httpx.AsyncClient(base_url=self._address, headers=key, timeout=timeout, limits=limits)
        self._model = self._server.model
        self._answers = 0
        self._retries = 0

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        """Scores of the rollouts' tokens, in order."""
        model = await self._name()
        return await together([self._score(model, rollout) for rollout in rollouts])

    async def extend(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """The teacher's samples, without log-probabilities where the server's may be those of another distribution."""
        assert sampling.no_repeat_ngram_size is None, "a server blocks no n-grams"
        model = await self._name()
        return await together([self._write(model, *job, sampling) for job in sampling.jobs(prompts)])

    async def describe(self) -> dict[str, object]:
        """Server, model, payload and counts: for the run's summary."""
        served = {"class": type(self).__name__, "server": self._address, "model": self._model}
        return served | {"payload": self._config.payload, "requests": self._answers, "retries": self._retries}

    async def close(self) -> None:
        await self._client.aclose()

    async def _name(self) -> str:
        """The name under which the server serves the teacher."""
        if self._model is None:
            self._model, *_ = protocol.read_models(await self._ask("GET", protocol.MODELS))
        return self._model

    async def _score(self, model: str, rollout: Rollout) -> TeacherScores:
        sequence, count = [*rollout.prompt.tokens.tolist(), *rollout.tokens.tolist()], len(rollout.tokens)
        answer = await self._ask("POST", protocol.COMPLETIONS, protocol.scoring(model, sequence, self._classes))
        logprobs, ids, values = (array[-count:] for array in protocol.read_scores(answer, sequence, self._classes))
        return to_scores(logprobs, ids, values, self._config, self._vocabulary)

    async def _write(self, model: str, prompt: Prompt, number: int, sampling: Sampling) -> Rollout:
        body = {"model": model, "prompt": prompt.tokens.tolist(), "seed": sample_seed(sampling.seed, prompt.row, number)}
        # The ids that end answers in every engine do so here, and no others.
        body |= {"ignore_eos": True, "stop_token_ids": list(self._renderer.stops), "allowed_token_ids": self._allowed}
        body |= protocol.drawing(sampling) | {"logprobs": 0, "return_token_ids": True}
        answer = await self._ask("POST", protocol.COMPLETIONS, body)
        try:
            choice = answer["choices"][0]
            tokens = np.array(choice["token_ids"], dtype=np.int32)
            logprobs = np.array(choice["logprobs"]["token_logprobs"], dtype=np.float32)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise RoleError(
                f"the server at {self._address} returns no token ids ({type(error).__name__}: {error}); the teacher "
                "needs a vLLM server that supports return_token_ids"
            ) from None
        known = logprobs if protocol.untruncated(sampling) and self._allowed is None else None
        return answered((prompt, number), self._renderer, tokens, known, version=0)

    async def _ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """The server's answer; while the server is busy or absent, the request is sent again after a pause that doubles."""
        error = ""
        for attempt in range(self._server.attempts):
            pause = min(_FIRST_PAUSE_S * 2**attempt, _LONGEST_PAUSE_S) * random.uniform(0.5, 1)
            try:
                async with self._slots:
                    answer = await self._client.request(method, path, json=body)
            except httpx.TransportError as failure:
                error = f"{type(failure).__name__} {failure}".strip()
            else:
                if answer.is_success:
                    self._answers += 1
                    return self._json(answer)
                if answer.status_code != httpx.codes.TOO_MANY_REQUESTS and not answer.is_server_error:
                    raise RoleError(protocol.refusal(self._config, answer, self._classes))
                error, requested = protocol.error_text(answer), _retry_after(answer)
                pause = pause if requested is None else requested
            if attempt + 1 < self._server.attempts:
                self._retries += 1
                await asyncio.sleep(pause)
        raise RoleError(
            f"the server at {self._address} gave no answer in {self._server.attempts} attempts "
            f"(teacher.server.attempts); the last error: {error}"
        )

    def _json(self, answer: httpx.Response) -> Any:
        try:
            return answer.json()
        except ValueError:
            raise RoleError(f"the server at {self._address} returns no JSON: {answer.text[:100]!r}") from None


def _retry_after(answer: httpx.Response) -> float | None:
    """The pause that the server requests, in seconds; its header holds seconds or a date."""
    header = answer.headers.get("Retry-After", "")
    if header.replace(".", "", 1).isdecimal():
        return float(header)
    try:
        return max(0.0, (parsedate_to_datetime(header) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None
