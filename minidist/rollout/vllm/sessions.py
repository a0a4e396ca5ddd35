"""Sequences that a vLLM engine writes in turns with another model, and whose keys and values it keeps between turns.

A resumable request of vLLM waits for more input once it has written the tokens asked for. The last token of a turn was sampled
but never read, and vLLM drops it when the request resumes; the next turn therefore begins its input with that token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from minidist.rollout.vllm.requests import copied, request_template
from minidist.rollout.vllm.sampling import sampling_params
from minidist.types import Sampling


@dataclass(frozen=True)
class Turn:
    """The next piece of one sequence that an engine writes.

    index: of the sequence within its call. unread: tokens that this engine has not read yet; at its first turn the prompt and
    all that was written so far, later what the other engine has written since. count: tokens to write, fewer if one of
    them ends the answer. seed: of this engine's draws on the sequence, the same at every turn.
    """

    index: int
    unread: list[int]
    count: int
    seed: int


@dataclass(frozen=True)
class TurnRequest:
    """The turns that an engine takes next for one call of `generate`.

    call: id of the call. finished: indices of sequences that the engine may forget. sampling: temperature and top_p of every
    token. logprobs: whether the engine returns log-probabilities. fraction: the engine answers once this fraction of all turns
    that the call waits for is done, and works on the others at the next request. Counts decide when it answers, not time.
    """

    call: str
    turns: Sequence[Turn]
    finished: Sequence[int]
    sampling: Sampling
    logprobs: bool
    fraction: float


@dataclass(frozen=True)
class TurnResult:
    """The tokens that a turn wrote, and their log-probabilities in nats under the sampled distribution (none if not asked for).

    stopped: the last token ends the sequence.
    """

    index: int
    tokens: list[int]
    logprobs: list[float]
    stopped: bool


@dataclass
class _Session:
    """A resumable request of vLLM, and what its present turn has written."""

    call: "_Call"
    index: int
    request: Any
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    working: bool = False
    """The turn is under way."""


@dataclass
class _Call:
    """The sequences of one call, the number of turns in work, and the results not yet collected."""

    sessions: dict[int, _Session] = field(default_factory=dict)
    working: int = 0
    results: list[TurnResult] = field(default_factory=list)


class Sessions:
    """The resumable requests of one vLLM engine, used in the engine's thread.

    Waiting requests hold keys and values that vLLM cannot take back, so a caller opens at most `capacity` sequences.
    """

    def __init__(self, engine: Any, stops: Sequence[int]) -> None:
        self._engine = engine
        self._stops = stops
        self._calls: dict[str, _Call] = {}
        self._by_name: dict[str, _Session] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def capacity(self, tokens: int) -> int:
        """Number of sequences of at most `tokens` tokens that fit at one time.

        Layers of another kind, such as those with a sliding window, have blocks of their own from the same pool.
        """
        cache = self._engine.engine_core.engine_core.scheduler.kv_cache_config
        each = sum(-(-tokens // group.kv_cache_spec.block_size) for group in cache.kv_cache_groups)
        free = cache.num_blocks - 1  # vLLM keeps one block for itself
        return min(free // each, self._engine.vllm_config.scheduler_config.max_num_seqs)

    def submit(self, request: TurnRequest) -> None:
        """Free the finished sequences, then give the engine its turns."""
        self.end(request.call, request.finished)
        call = self._calls.setdefault(request.call, _Call())
        template = None
        for turn in request.turns:
            if (session := call.sessions.get(turn.index)) is None:
                template = template or self._template(request)
                session = self._open(call, f"{request.call}/{turn.index}", turn, template)
            resumed = copied(session.request)
            resumed.prompt_token_ids = [*session.tokens[-1:], *turn.unread]
            resumed.sampling_params.max_tokens = turn.count
            session.tokens = []
            session.logprobs = []
            session.working = True
            self._engine.engine_core.add_request(resumed)
        call.working += len(request.turns)

    def take(self, outputs: Sequence[Any]) -> list[Any]:
        """Keep what a step of the engine wrote in sessions, and return its other outputs.

        Where vLLM schedules the next step before it has seen the last one, an ended turn may write a token more: it is dropped.
        """
        others = []
        for output in outputs:
            if (session := self._by_name.get(output.request_id)) is None:
                others.append(output)
                continue
            if not session.working:
                continue
            session.tokens += output.new_token_ids
            if output.new_logprobs is not None:
                session.logprobs += output.new_logprobs.logprobs[:, 0].tolist()
            if output.finish_reason is not None:
                stopped = session.tokens[-1] in self._stops
                session.call.results.append(TurnResult(session.index, session.tokens, session.logprobs, stopped))
                session.call.working -= 1
                session.working = False
        return others

    def enough(self, name: str, fraction: float) -> bool:
        """Whether at least this fraction of the call's turns is done, or the call has ended."""
        call = self._calls.get(name, _Call())
        return not call.working or len(call.results) >= fraction * (len(call.results) + call.working)

    def collect(self, name: str) -> list[TurnResult]:
        """The turns done since the last collection, in the order in which they ended."""
        call = self._calls.get(name, _Call())
        results, call.results = call.results, []
        return results

    def end(self, name: str, indices: Sequence[int] | None = None) -> None:
        """Forget sequences of a call, in whatever state they are; None: all of them, and the call."""
        if (call := self._calls.get(name)) is None:
            return
        ended = list(call.sessions) if indices is None else [index for index in indices if index in call.sessions]
        requests = [call.sessions.pop(index).request.request_id for index in ended]
        for request in requests:
            del self._by_name[request]
        self._engine.engine_core.abort_requests(requests)
        if indices is None:
            del self._calls[name]

    def _open(self, call: _Call, name: str, turn: Turn, template: Any) -> _Session:
        request = copied(template)
        request.request_id = name
        request.sampling_params.seed = turn.seed
        session = _Session(call, turn.index, request)
        call.sessions[turn.index] = self._by_name[name] = session
        return session

    def _template(self, request: TurnRequest) -> Any:
        """A request as vLLM's input processor makes it, once for all requests that differ in tokens and seed alone."""
        fields = {"max_tokens": 1, "seed": 0, "logprobs": 0 if request.logprobs else None}
        parameters = sampling_params(request.sampling, self._stops, **fields)
        return request_template(self._engine, parameters, resumable=True)


class TurnTaker:
    """The verbs of an engine or a teacher whose `VLLMCore` can take turns with another one."""

    _core: Any

    async def take_turns(self, request: TurnRequest) -> list[TurnResult]:
        """Forget the finished sequences, take the turns, and return the results that `request.fraction` asks for."""
        return await self._core.take_turns(request)

    async def end_turns(self, call: str) -> None:
        """Forget all sequences of a call, and free what they hold."""
        await self._core.end_turns(call)

    async def turn_capacity(self, tokens: int) -> int:
        """Number of sequences of at most `tokens` tokens that may be open at one time."""
        return self._core.sessions.capacity(tokens)
