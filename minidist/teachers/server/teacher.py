"""A teacher on a server: the run sends token ids, the server returns log-probabilities and token ids."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from minidist.concurrency import together
from minidist.config.teacher import ServerTeacherConfig
from minidist.data.rendering import Renderer
from minidist.models.heads import vocabulary_size
from minidist.models.hub import load_config
from minidist.rollout.answers import answered
from minidist.rollout.seeds import sample_seed
from minidist.teachers.contexts import extended
from minidist.teachers.payload import bounded, classes_asked, to_scores
from minidist.teachers.server import protocol
from minidist.teachers.server.connection import Connection
from minidist.teachers.server.wire import Answer, Table, Writing
from minidist.types import Prompt, Rollout, Sampling, TeacherScores


class ServerTeacher:
    """Scores and writes over HTTP, in the wire format of `teacher.server.api`; answers come in order.

    An answer that cannot be used is asked for again, as `Connection` has it. Cancelling a call cancels its requests.
    """

    def __init__(self, config: ServerTeacherConfig, renderer: Renderer, *, vocabulary: int | None) -> None:
        width = vocabulary_size(load_config(config, "teacher.model"))
        self._config = config
        self._renderer = renderer
        self._vocabulary = vocabulary
        self._width = width
        self._classes = classes_asked(config, width, vocabulary)
        self._api = protocol.APIS[config.server.api](width)
        self._connection = Connection(
            config.server, partial(protocol.refusal, config, classes=self._classes), classes=self._classes
        )
        self._model = config.server.model

    async def score(self, rollouts: Sequence[Rollout]) -> list[TeacherScores]:
        """Scores of the rollouts' tokens, in order."""
        model = await self._name()
        return await together([self._score(model, rollout.for_teacher) for rollout in rollouts])

    async def extend(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        """The teacher's samples, without log-probabilities where the server's may be those of another distribution."""
        assert sampling.no_repeat_ngram_size is None, "a server blocks no n-grams"
        return await extended(self._write_all, prompts, sampling)

    async def _write_all(self, prompts: Sequence[Prompt], sampling: Sampling) -> list[Rollout]:
        model = await self._name()
        return await together([self._write(model, *job, sampling) for job in sampling.jobs(prompts)])

    async def describe(self) -> dict[str, object]:
        """Server, model, payload and counts: for the run's summary."""
        server = self._config.server
        served = {"class": type(self).__name__, "server": self._connection.address, "api": server.api, "model": self._model}
        return served | {"payload": self._config.payload} | vars(self._connection.counts)

    async def sleep(self) -> None:
        """A server is on devices of its own."""

    async def wake(self) -> None:
        """As `sleep`."""

    async def close(self) -> None:
        await self._connection.close()

    async def _name(self) -> str:
        """The name under which the server serves the teacher."""
        if self._model is None:
            self._model = next(iter(await self._connection.ask(self._api.models())), "")
        return self._model

    async def _score(self, model: str, rollout: Rollout) -> TeacherScores:
        sequence, start = [*rollout.prompt.tokens.tolist(), *rollout.tokens.tolist()], len(rollout.prompt.tokens)
        question = self._api.score(model, sequence, start, self._classes)

        def scores(raw: bytes) -> TeacherScores:
            table: Table = question.read(raw)
            return to_scores(table.logprobs, table.ids, table.values, self._config, self._vocabulary)

        return await self._connection.ask(replace(question, read=scores))

    async def _write(self, model: str, prompt: Prompt, number: int, sampling: Sampling) -> Rollout:
        seed, stops = sample_seed(sampling.seed, prompt.row, number), self._renderer.stops
        writing = Writing(prompt.tokens.tolist(), sampling, seed, stops, self._vocabulary, self._width)
        question = self._api.write(model, writing)
        answer = await self._connection.ask(replace(question, read=lambda raw: _bounded(question.read(raw))))
        known = answer.logprobs if protocol.untruncated(sampling) and not writing.banned else None
        return answered((prompt, number), self._renderer, answer.tokens, known, version=0)


def _bounded(answer: Answer) -> Answer:
    return replace(answer, logprobs=bounded(answer.logprobs))
