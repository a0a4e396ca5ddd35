"""Engines and servers behind the calls of a pipeline."""

import asyncio
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest

from minidist.config.generate import ChatServerConfig
from minidist.data.templates import BadRow
from minidist.errors import RoleError
from minidist.pipelines.writers import EngineWriter, Sample, ServerWriter, ask_of, number_of
from minidist.types import Finish, Prompt, Rollout, Sampling
from tests.support.chat_server import chat_server
from tests.support.tiny import tiny_renderer

SAMPLING = Sampling(max_new_tokens=4, seed=3)


class Engine:
    """Writes the prompt's row, as many tokens as the sample's number says; remembers the calls."""

    def __init__(self, fails: bool = False, seconds: float = 0.001) -> None:
        self.calls: list[int] = []
        self.fails = fails
        self.seconds = seconds

    async def generate(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        self.calls.append(len(prompts))
        await asyncio.sleep(self.seconds)
        if self.fails:
            raise RoleError("the rollout died")
        return [
            Rollout.written(
                prompt, [5] * (number + 1), [-0.5] * (number + 1), version=0, stopped=True, text=f"{prompt.row}/{number}"
            )
            for prompt, number in sampling.jobs(prompts)
        ]


def writer(*engines: Engine, limit: int = 100) -> EngineWriter:
    return EngineWriter(cast(Any, engines), tiny_renderer(), SAMPLING, max_prompt_tokens=limit)


async def many(target: EngineWriter, count: int, samples: int = 1) -> list[list[Sample]]:
    return await asyncio.gather(*(target.write("1+2=", str(n), samples) for n in range(count)))


def test_each_call_gets_its_own_samples() -> None:
    found = asyncio.run(many(writer(Engine(), Engine()), 7, samples=2))
    for number, (first, second) in enumerate(found):
        assert (first.text, second.text) == (f"{number_of(str(number))}/0", f"{number_of(str(number))}/1")
        assert (first.tokens, second.tokens) == (1, 2) and first.finish is Finish.STOP
        assert second.ids is not None and np.array_equal(second.ids, [5, 5])


def test_calls_that_wait_together_go_to_an_engine_together() -> None:
    engine = Engine()
    asyncio.run(many(writer(engine), 9))
    assert engine.calls == [9]


def test_calls_that_wait_together_are_shared_out_evenly() -> None:
    engines = Engine(), Engine()
    asyncio.run(many(writer(*engines), 9))
    assert [engine.calls for engine in engines] == [[5], [4]]


def test_calls_go_to_the_engine_with_the_fewest() -> None:
    engines = Engine(seconds=0.5), Engine(seconds=0.5)  # no call ends before the last one is there

    async def one_after_another() -> None:
        target = writer(*engines)
        calls = []
        for number in range(6):
            calls.append(asyncio.ensure_future(target.write("1+2=", str(number), 1)))
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        await asyncio.gather(*calls)

    asyncio.run(one_after_another())
    assert [sum(engine.calls) for engine in engines] == [3, 3]


def test_an_engine_s_failure_reaches_every_call() -> None:
    with pytest.raises(RoleError, match="the rollout died"):
        asyncio.run(many(writer(Engine(fails=True)), 3))


def test_a_prompt_that_is_too_long_is_a_bad_row() -> None:
    with pytest.raises(BadRow, match=r"the prompt has 4 tokens, more than data.max_prompt_tokens = 3"):
        asyncio.run(many(writer(Engine(), limit=3), 1))


def test_each_call_of_a_program_has_an_identity_of_its_own() -> None:
    async def calls(identity: str) -> list[str]:
        ask = ask_of(writer(Engine()), identity)
        return [(await ask("1+2=")).text for _ in range(3)]

    first = asyncio.run(calls("row/0"))
    assert len(set(first)) == 3 and first == asyncio.run(calls("row/0"))
    assert not set(first) & set(asyncio.run(calls("row/1")))


def config(url: str, **options: Any) -> ChatServerConfig:
    return ChatServerConfig(**{"url": url, "attempts": 3, "pause_s": 0.01, "timeout_s": 5, **options})


def ask_server(chat: ChatServerConfig, text: str = "hello there", samples: int = 1) -> list[Sample]:
    async def asked() -> list[Sample]:
        target = ServerWriter(chat, SAMPLING)
        try:
            await target.start()
            return await target.write(text, "7", samples)
        finally:
            await target.connection.close()

    return asyncio.run(asked())


def test_a_server_answers_in_text_with_a_seed_for_each_sample() -> None:
    with chat_server(lambda text, seed: f"{text} {seed}") as server:
        first = ask_server(config(server.url), samples=3)
        assert len({each.text for each in first}) == 3 and first == ask_server(config(server.url), samples=3)
        assert first[0].tokens == 4 and first[0].ids is None
        assert server.requests[0] | {"seed": 0} == {
            "model": "tiny",
            "messages": [{"role": "user", "content": "hello there"}],
            "max_tokens": 4,
            "temperature": 1.0,
            "top_p": 1.0,
            "seed": 0,
        }


def test_an_answer_at_its_limit_is_known() -> None:
    with chat_server(lambda text, seed: "a b c d e f") as server:
        [sample] = ask_server(config(server.url))
        assert (sample.finish, sample.tokens) == (Finish.LENGTH, 4)


def test_a_busy_server_is_asked_again() -> None:
    with chat_server(lambda text, seed: "done") as server:
        server.fail = lambda number: 503 if number < 2 else 0
        assert ask_server(config(server.url))[0].text == "done"
        assert len(server.requests) == 3


def test_a_server_that_stays_busy_is_named() -> None:
    with chat_server(lambda text, seed: "done") as server:
        server.fail = lambda number: 503
        with pytest.raises(
            RoleError, match=r"the server at http://127.0.0.1:\d+ gave no usable answer in 3 attempts \(server.attempts\)"
        ):
            ask_server(config(server.url))


def test_a_server_that_refuses_is_not_asked_again() -> None:
    with chat_server(lambda text, seed: "done") as server:
        server.fail = lambda number: 400
        with pytest.raises(RoleError, match="refuses a request: 400 not now"):
            ask_server(config(server.url))
        assert len(server.requests) == 1


def test_a_dead_server_is_named() -> None:
    with pytest.raises(RoleError, match=r"the server at http://127.0.0.1:9 gave no usable answer"):
        ask_server(config("http://127.0.0.1:9"))


@pytest.mark.parametrize(
    ("models", "name", "found"), [(["a", "b"], None, "offers a, b"), (["a"], "c", "offers a"), ([], None, "no model")]
)
def test_a_model_that_the_server_does_not_offer_is_refused(models: list[str], name: str | None, found: str) -> None:
    with chat_server(lambda text, seed: "done") as server:
        server.models = models
        with pytest.raises(RoleError, match=f"{found}; set server.model"):
            ask_server(config(server.url, model=name))
