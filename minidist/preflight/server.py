"""Checks of a teacher's server before a run: it responds, serves the model, has the context, and the same tokenizer."""

import asyncio
from functools import partial

import httpx

from minidist.concurrency import Worker
from minidist.config.teacher import ServerTeacherConfig
from minidist.data.rendering import Renderer
from minidist.errors import ConfigError, ModelError, RoleError
from minidist.teachers.payload import classes_asked, to_scores
from minidist.teachers.server.connection import Connection, Refused
from minidist.teachers.server.protocol import APIS, refusal
from minidist.teachers.server.wire import ServerApi, Writing, tokenize
from minidist.text import shown
from minidist.types import Prompt, Sampling

_TEXT = "It's 12.5% <b>naïve</b>:\n\tdef f(x): return x\n\n東京 🙂"  # where tokenizers differ
_ATTEMPTS, _PAUSE_S, _TIMEOUT_S = 2, 1.0, 20.0


def check_server(
    config: ServerTeacherConfig, renderer: Renderer, *, prompt: Prompt, tokens: int, width: int, vocabulary: int
) -> list[str]:
    """Lines of the plan about the server. Raises ConfigError or ModelError where the server cannot be the teacher.

    Args:
        config: teacher with its server.
        renderer: the student's tokenizer.
        prompt: one of the run's prompts.
        tokens: length of the run's longest sequence.
        width: rows of the teacher's softmax, padded ones included.
        vocabulary: tokens that student and teacher share.
    """
    server = config.server
    limits = {"attempts": min(server.attempts, _ATTEMPTS), "timeout_s": min(server.timeout_s, _TIMEOUT_S)}
    brief = config.model_copy(update={"server": server.model_copy(update=limits | {"pause_s": min(server.pause_s, _PAUSE_S)})})
    check = _ServerCheck(brief, APIS[server.api](width), classes_asked(config, width, vocabulary))
    worker = Worker("server-check")  # plans are also made inside an event loop
    try:
        return worker.run_now(lambda: asyncio.run(check.run(renderer, prompt, tokens)))
    except RoleError as error:
        if isinstance(error.__cause__, httpx.TransportError):
            cause = shown(f"{type(error.__cause__).__name__}: {error.__cause__}")
            found = f"no server answers at {check.where} ({cause})"
            raise ConfigError(f"teacher.server.url: {found}; start it first, or correct the url") from None
        raise ConfigError(str(error)) from None
    finally:
        worker.close()


def check_writing(config: ServerTeacherConfig, *, width: int, vocabulary: int) -> None:
    """Raise ConfigError where a server of this kind cannot be asked for text of the shared ids alone."""
    try:
        APIS[config.server.api](width).write("", Writing([0], Sampling(max_new_tokens=1), 0, (0,), vocabulary, width))
    except RoleError as error:
        raise ConfigError(f"teacher: {error}") from None


class _ServerCheck:
    """The questions of a check, over one connection."""

    def __init__(self, config: ServerTeacherConfig, api: ServerApi, classes: int) -> None:
        self._config = config
        self._api = api
        self._classes = classes
        self.where = ""

    async def run(self, renderer: Renderer, prompt: Prompt, tokens: int) -> list[str]:
        """Lines of the plan."""
        self._connection = Connection(
            self._config.server, partial(refusal, self._config, classes=self._classes), classes=self._classes, logs=False
        )
        self.where = self._connection.address
        try:
            name, context = await self._model()
            self._check_context(context, tokens)
            compared = await self._compare_tokens(name, renderer, prompt.text + _TEXT)
            await self._check_scores(name, prompt)
        finally:
            await self._connection.close()
        return [f"teacher served as {shown(name)} at {self.where}", *compared]

    async def _model(self) -> tuple[str, int | None]:
        """Name and context of the teacher on the server."""
        where, name = self.where, self._config.server.model
        try:
            for question in self._api.checks():
                await self._connection.ask(question)
            models = await self._connection.ask(self._api.models())
        except Refused as error:
            if error.status in (401, 403):
                raise
            kind = f"{where} is no {self._api.name} server (teacher.server.api={self._config.server.api})"
            raise ConfigError(f"teacher.server.url: {kind}; {error.path} gives {error.found}") from None
        served = shown(", ".join(models)) or "no model"
        if name is None and len(models) != 1:
            raise ConfigError(f"the server at {where} serves {served}; set teacher.server.model to one of them")
        if name is not None and name not in models:
            raise ConfigError(f"teacher.server.model is {name!r}, and {where} serves {served}")
        chosen = next(iter(models)) if name is None else name
        return chosen, models[chosen]

    def _check_context(self, context: int | None, tokens: int) -> None:
        """To score a sequence, servers need a context of one token more."""
        if context is not None and context < tokens + 1:
            found = f"the server at {self.where} takes {context} tokens, a prompt with its answer needs {tokens} and one more"
            lower = "lower data.max_prompt_tokens + rollout.max_new_tokens"
            lower += "" if self._config.context is None else ", and teacher.context.max_prompt_tokens"
            raise ConfigError(f"{found}; start it with {self._api.context_flag} {tokens + 1}, or {lower}")

    async def _compare_tokens(self, model: str, renderer: Renderer, text: str) -> list[str]:
        """Raise ModelError unless the server and the student's tokenizer make the same tokens of a text."""
        try:
            server_ids = await self._connection.ask(tokenize(model, text))
        except RoleError as error:
            return [f"the server tokenizes no text, so its tokenizer was not compared ({error})"]
        student_ids = list(renderer.tokenizer(text, add_special_tokens=False)["input_ids"])
        if server_ids != student_ids:
            shorter = min(len(student_ids), len(server_ids))
            at = next((index for index in range(shorter) if student_ids[index] != server_ids[index]), shorter)
            made = f"{len(student_ids)} and {len(server_ids)} tokens, and at index {at} {student_ids[at : at + 1]}"
            found = f"of {text[:30]!r}... they make {made} and {server_ids[at : at + 1]}"
            need = "the server must hold a model with the student's tokenizer"
            raise ModelError(f"student and server have different tokenizers: {found}; {need}")
        return []

    async def _check_scores(self, model: str, prompt: Prompt) -> None:
        """Score two tokens as the run will: a server that cannot, or allows too few classes, is refused."""
        pair = [int(token) for token in (*prompt.tokens[:1], *prompt.tokens[-1:])]
        table = await self._connection.ask(self._api.score(model, pair, 1, self._classes))
        to_scores(table.logprobs, table.ids, table.values, self._config, None)
