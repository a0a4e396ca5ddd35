"""Who answers the calls of a pipeline: rollout engines, or a server that speaks the OpenAI protocol."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, NotRequired, Protocol

from pydantic import Field, TypeAdapter
from typing_extensions import TypedDict

from minidist.config.generate import ChatServerConfig
from minidist.data.rendering import Asking, Renderer
from minidist.data.sources import check_prompt_length
from minidist.errors import RoleError
from minidist.pipelines.gathering import Gathering
from minidist.protocols import Ask, RolloutEngine
from minidist.rollout.seeds import sample_seed
from minidist.teachers.server.connection import Connection
from minidist.teachers.server.protocol import address, error_text
from minidist.teachers.server.wire import Question, parsed
from minidist.types import Array, Finish, Prompt, Reply, Rollout, Sampling


@dataclass(frozen=True)
class Sample:
    """An answer to one call. ids [T] int32 and logprobs [T] float32 (nats, of the sampled distribution): None if unknown."""

    text: str
    tokens: int
    finish: Finish
    ids: Array | None = None
    logprobs: Array | None = None


class TextWriter(Protocol):
    """Answers one call."""

    async def write(self, asking: Asking, identity: str, samples: int, tools: Any = None) -> list[Sample]:
        """`samples` answers to a prompt. They are a function of the prompt, the weights, the run's seed and `identity` alone.

        Raises BadRow for a prompt that is too long.
        """
        ...

    async def close(self) -> None:
        """End what the writer started."""


def number_of(identity: str) -> int:
    """A 62-bit number for an identity, which takes the part of a prompt's row in its seeds."""
    return int.from_bytes(hashlib.blake2s(identity.encode(), digest_size=8).digest(), "big") >> 2


class EngineWriter:
    """Answers by rollout engines. Calls that wait at one time are shared out among them.

    Args:
        engines: hold the same weights.
        renderer: text to tokens.
        sampling: how answers are drawn.
        max_prompt_tokens: longest prompt.
    """

    def __init__(
        self, engines: Sequence[RolloutEngine], renderer: Renderer, sampling: Sampling, *, max_prompt_tokens: int
    ) -> None:
        self._engines = list(engines)
        self._renderer = renderer
        self._sampling = sampling
        self._limit = max_prompt_tokens
        self._gathered: dict[int, Gathering[RolloutEngine, Prompt, list[Rollout]]] = {}
        """The calls by their number of samples."""

    async def write(self, asking: Asking, identity: str, samples: int, tools: Any = None) -> list[Sample]:
        tokens = self._renderer.prompt(asking, tools)
        check_prompt_length(tokens, self._limit)
        if samples not in self._gathered:
            self._gathered[samples] = Gathering(self._engines, partial(self._send, samples))
        rollouts = await self._gathered[samples].call(Prompt(number_of(identity), tokens, ""))
        return [Sample(each.text, len(each.tokens), each.finish, each.tokens, each.logprobs) for each in rollouts]

    async def close(self) -> None:
        """The engines end with their cluster."""

    async def _send(self, samples: int, engine: RolloutEngine, prompts: list[Prompt]) -> list[list[Rollout]]:
        rollouts = await engine.generate(prompts, replace(self._sampling, samples=samples))
        return [rollouts[start : start + samples] for start in range(0, len(rollouts), samples)]


_Count = Annotated[int, Field(ge=0)]


class _Message(TypedDict):
    content: str | None


class _Choice(TypedDict):
    message: _Message
    finish_reason: NotRequired[str | None]


class _Usage(TypedDict):
    completion_tokens: _Count


class _Completion(TypedDict):
    choices: Annotated[list[_Choice], Field(min_length=1, max_length=1)]
    usage: NotRequired[_Usage | None]


class _Model(TypedDict):
    id: str


class _Models(TypedDict):
    data: list[_Model]


_COMPLETION, _MODELS = TypeAdapter(_Completion), TypeAdapter(_Models)


class ServerWriter:
    """Answers by a server's /v1/chat/completions, which needs to give nothing but text.

    A server that is busy or absent is asked again, within server.attempts; one that refuses raises RoleError.

    Args:
        config: the server.
        sampling: how answers are drawn.
    """

    def __init__(self, config: ChatServerConfig, sampling: Sampling) -> None:
        self._config = config
        self._sampling = sampling
        self._model = config.model
        self.connection = Connection(config, self._refusal, where="server")

    async def start(self) -> str:
        """The name of the server's model. Raises RoleError where server.model names none, and there is not exactly one."""
        found = await self.connection.ask(Question("GET", "/v1/models", None, _names))
        if self._model is None and len(found) == 1:
            self._model = found[0]
        if self._model not in found:
            offered = ", ".join(found) or "no model"
            raise RoleError(f"the server at {self.connection.address} offers {offered}; set server.model to one of its models")
        return self._model

    async def write(self, asking: Asking, identity: str, samples: int, tools: Any = None) -> list[Sample]:
        messages = [{"role": "user", "content": asking}] if isinstance(asking, str) else list(asking)
        calls = (self._one(messages, tools, sample_seed(self._sampling.seed, number_of(identity), n)) for n in range(samples))
        return list(await asyncio.gather(*calls))

    async def close(self) -> None:
        await self.connection.close()

    async def _one(self, messages: Sequence[Mapping[str, Any]], tools: Any, seed: int) -> Sample:
        sampling = self._sampling
        body: dict[str, Any] = {"model": self._model, "messages": messages, "max_tokens": sampling.max_new_tokens}
        body |= {"temperature": sampling.temperature, "top_p": sampling.top_p, "seed": seed}
        body |= {} if tools is None else {"tools": tools}
        return await self.connection.ask(Question("POST", "/v1/chat/completions", body, _sample))

    def _refusal(self, answer: Any) -> str:
        return f"the server at {address(self._config)} refuses a request: {error_text(answer)}"


def _names(raw: bytes) -> list[str]:
    return [each["id"] for each in parsed(_MODELS, raw)["data"]]


def _sample(raw: bytes) -> Sample:
    found = parsed(_COMPLETION, raw)
    choice, usage = found["choices"][0], found.get("usage")
    text = choice["message"]["content"] or ""
    finish = Finish.LENGTH if choice.get("finish_reason") == "length" else Finish.STOP
    return Sample(text, usage["completion_tokens"] if usage else 0, finish)


@dataclass
class CountedAsk:
    """The calls of one sample of one row: see `protocols.Ask`."""

    writer: TextWriter
    identity: str
    calls: int = 0

    async def __call__(self, text: str) -> Reply:
        self.calls += 1
        [sample] = await self.writer.write(text, f"{self.identity}/{self.calls - 1}", 1)
        return Reply(sample.text, sample.tokens, sample.finish)


def ask_of(writer: TextWriter, identity: str) -> Ask:
    """The model, for the calls of the sample that `identity` names."""
    return CountedAsk(writer, identity)
