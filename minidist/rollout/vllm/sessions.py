"""Sequences that vLLM writes in turns with another model, and whose keys and values it keeps from one turn to the next.

vLLM's resumable requests wait, when they have written what they were asked for, for more to read. What a turn writes last was
drawn and never read, and vLLM drops it when the request goes on; so it is handed back in, before what came after it.
"""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Sampling:
    """How every token is drawn, from the model's own distribution; `logprobs`: whether its probability is wanted."""

    temperature: float
    top_p: float
    logprobs: bool = False


@dataclass(frozen=True)
class Turn:
    """What an engine is to do next on one sequence.

    place: which sequence of its party. given: what was written since this engine's last turn on it; at its first, all that
    stands there, prompt included. count: tokens to write, fewer if the end-of-sequence token is among them. seed: of the
    engine's draws, from the first turn on.
    """

    place: int
    given: list[int]
    count: int
    seed: int


@dataclass(frozen=True)
class Written:
    """What a turn wrote; nats, of the distribution that was sampled, none where they are not wanted.

    stopped: the last token ends the sequence.
    """

    place: int
    tokens: list[int]
    logprobs: list[float]
    stopped: bool


@dataclass
class _Session:
    """A resumable request of vLLM, and what its present turn has written."""

    party: "_Party"
    place: int
    request: Any
    tokens: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)


@dataclass
class _Party:
    """The sequences of one caller."""

    sessions: dict[int, _Session] = field(default_factory=dict)
    working: int = 0
    written: list[Written] = field(default_factory=list)


class Sessions:
    """The resumable requests of one vLLM engine, used in the engine's thread.

    They hold keys and values while they wait and vLLM cannot take these back, so a caller opens no more than `places` of them.
    """

    def __init__(self, engine: Any, eos: int, allowed: list[int] | None) -> None:
        self._engine, self._eos, self._allowed = engine, eos, allowed
        self._parties: dict[str, _Party] = {}
        self._by_name: dict[str, _Session] = {}

    def __len__(self) -> int:
        return len(self._by_name)

    def places(self, tokens: int) -> int:
        """How many sequences of at most `tokens` tokens fit at one time."""
        config = self._engine.vllm_config
        blocks = config.cache_config.num_gpu_blocks - 1  # vLLM keeps one for itself
        return min(blocks // -(-tokens // config.cache_config.block_size), config.scheduler_config.max_num_seqs)

    def submit(self, party: str, turns: Sequence[Turn], ended: Sequence[int], sampling: Sampling) -> None:
        """Free what `ended`, then give the engine its turns."""
        self.end(party, ended)
        mine = self._parties.setdefault(party, _Party())
        fresh = None
        for turn in turns:
            session = mine.sessions.get(turn.place)
            if session is None:
                fresh = fresh or self._request(sampling)
                session = self._opened(party, mine, turn, fresh)
                given = turn.given
            else:
                given = [session.tokens[-1], *turn.given]
            session.tokens, session.logprobs = [], []
            self._engine.engine_core.add_request(_turn(session.request, list(given), turn.count))
        mine.working += len(turns)

    def take(self, outputs: Sequence[Any]) -> list[Any]:
        """Keep what a step of the engine wrote in sessions, and give back the rest of its outputs."""
        others = []
        for output in outputs:
            session = self._by_name.get(output.request_id)
            if session is None:
                others.append(output)
                continue
            session.tokens += output.new_token_ids
            if output.new_logprobs is not None:
                session.logprobs += output.new_logprobs.logprobs[:, 0].tolist()
            if output.finish_reason is not None:
                stopped = session.tokens[-1] == self._eos
                session.party.written.append(Written(session.place, session.tokens, session.logprobs, stopped))
                session.party.working -= 1
        return others

    def enough(self, party: str, share: float) -> bool:
        """Whether at least this share of the party's turns is done, or the party has ended."""
        mine = self._parties.get(party)
        if mine is None or not mine.working:
            return True
        return len(mine.written) >= share * (len(mine.written) + mine.working)

    def collect(self, party: str) -> list[Written]:
        """The turns done since the last time, in the order in which they ended."""
        mine = self._parties.get(party, _Party())
        written, mine.written = mine.written, []
        return written

    def end(self, party: str, places: Sequence[int] | None = None) -> None:
        """Forget sequences of a party, in whatever state they are; None: all of them, and the party."""
        mine = self._parties.get(party)
        if mine is None:
            return
        gone = list(mine.sessions) if places is None else [place for place in places if place in mine.sessions]
        names = [mine.sessions.pop(place).request.request_id for place in gone]
        for name in names:
            del self._by_name[name]
        self._engine.engine_core.abort_requests(names)
        if places is None:
            del self._parties[party]

    def _opened(self, party: str, mine: _Party, turn: Turn, fresh: Any) -> _Session:
        request = copy.copy(fresh)
        request.request_id = f"{party}/{turn.place}"
        request.sampling_params = copy.copy(fresh.sampling_params)
        request.sampling_params.seed = turn.seed
        session = _Session(mine, turn.place, request)
        mine.sessions[turn.place] = self._by_name[request.request_id] = session
        return session

    def _request(self, sampling: Sampling) -> Any:
        """A request as vLLM's input processor makes it, once for all that differ in tokens and seed alone."""
        from vllm import SamplingParams

        parameters = SamplingParams(
            max_tokens=1,
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=0,
            logprobs=0 if sampling.logprobs else None,
            detokenize=False,
            stop_token_ids=[self._eos],
            allowed_token_ids=self._allowed,
        )
        tasks = self._engine.get_supported_tasks()
        return self._engine.input_processor.process_inputs("", {"prompt_token_ids": [0]}, parameters, tasks, resumable=True)


def _turn(request: Any, given: list[int], count: int) -> Any:
    """The request's next turn: other tokens to read, another number to write."""
    turn = copy.copy(request)
    turn.prompt_token_ids = given
    turn.sampling_params = copy.copy(request.sampling_params)
    turn.sampling_params.max_tokens = count
    return turn


class TakesTurns:
    """The verbs of whoever has a `VLLMCore` to take turns with."""

    _core: Any

    async def take_turns(
        self, party: str, turns: Sequence[Turn], *, ended: Sequence[int], sampling: Sampling, share: float
    ) -> list[Written]:
        """Forget the sequences `ended` of this party, take the turns, and return those that are done as soon as they are this
        share of all it waits for. The others go on at the next call. Counts alone decide when it returns, not time.
        """
        return await self._core.take_turns(party, turns, ended=ended, sampling=sampling, share=share)

    async def end_turns(self, party: str) -> None:
        """Forget all sequences of a party, and free what they hold."""
        await self._core.end_turns(party)

    async def places(self, tokens: int) -> int:
        """How many sequences of at most `tokens` tokens may be open at one time."""
        return self._core.places(tokens)
