"""The plan of a generation: the rows are read once, so that what cannot be answered is refused before anything starts."""

from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from minidist.config.generate import GenerateConfig
from minidist.data.exchanges import ExchangeReader
from minidist.data.rendering import Renderer
from minidist.data.sources import read_rows
from minidist.data.templates import BadRow
from minidist.errors import DataError
from minidist.pipelines.steps import Item
from minidist.pipelines.writers import number_of
from minidist.preflight import checks, lines
from minidist.preflight.facts import read_model
from minidist.preflight.precision import precision_lines
from minidist.system2.rows import RowProgram
from minidist.types import Vocabulary

_TRIED = 20
"""Rows whose prompts are made before a job starts."""


@dataclass(frozen=True)
class GeneratePlan:
    """What a job is made from, and the lines that describe it.

    Args:
        rows: number of rows of the source.
        program: the program, or None.
        renderer: text to tokens; None where a server answers.
        vocabulary: ids that the model may write; None where a server answers.
        max_tokens: longest prompt with its answer.
        lines: the plan for people.
    """

    rows: int
    program: RowProgram | None
    renderer: Renderer | None
    vocabulary: Vocabulary | None
    max_tokens: int
    lines: list[str]
    cache: None = None
    longest: int = 0

    def reader(self, config: GenerateConfig) -> ExchangeReader:
        """Makes the prompts of rows."""
        return ExchangeReader(config.data.rows, str if self.renderer is None else self.renderer.guard)


def plan_generate(config: GenerateConfig) -> GeneratePlan:
    source, rollout = config.data.rows, config.rollout
    program = None if config.program is None else RowProgram(config.program, rollout.samples_per_prompt)
    names = {} if config.model is None else {"model": config.model.model, "model.tokenizer": config.model.tokenizer}
    checks.check_files(config, names, [source])
    rows = _checked_rows(config, program)
    renderer, vocabulary, described = None, None, []
    tokens = config.data.max_prompt_tokens + rollout.max_new_tokens
    if config.model is not None:
        model = read_model(config.model, "model")
        checks.check_context(model.context, tokens, "data.max_prompt_tokens + rollout.max_new_tokens")
        if rollout.engine == "vllm":
            checks.check_engine(model, config.cluster.gpus, "rollout.engine=hf")
        renderer, vocabulary = Renderer(model.tokenizer, config.data, model.stops), Vocabulary(model.rows, _absent(model))
        described = [lines.model_line("model", model.shape), *lines.ending_lines(renderer)]
        described += precision_lines(config.cluster, {"model.dtype": config.model.dtype})
    plan = GeneratePlan(rows, program, renderer, vocabulary, tokens, [*described, *_lines(config, rows)], longest=tokens)
    _try_rows(config, plan)
    return plan


def items(config: GenerateConfig) -> Iterator[Item]:
    """The rows of the source with their keys, up to data.rows.rows of them."""
    for number, row in enumerate(islice(read_rows(config.data.rows), config.data.rows.rows)):
        yield Item(number, _key(config, number, row), row)


def _key(config: GenerateConfig, number: int, row: Any) -> str:
    if config.key is None:
        return str(number)
    key = row.get(config.key)
    if not isinstance(key, str | int) or isinstance(key, bool) or key == "":
        raise DataError(
            f"row {number} of {config.data.rows.path} has the key {key!r}; {config.key} must be a text or a number in each row"
        )
    return str(key)


def _checked_rows(config: GenerateConfig, program: RowProgram | None) -> int:
    """The number of rows, whose keys are all different. Raises DataError or ConfigError."""
    numbers, columns = array("Q"), dict[str, None]()
    for item in items(config):
        if config.key is not None:
            numbers.append(number_of(item.key))
        if item.number < _TRIED:
            columns |= dict.fromkeys(item.columns)
        count = item.number + 1
    if program is not None:
        program.check([*dict.fromkeys(["prompt", *columns])], config.data.rows.path)
    if config.key is not None:
        _refuse_repeated(config, np.frombuffer(numbers, dtype=np.uint64))
    return count


def _refuse_repeated(config: GenerateConfig, numbers: "np.ndarray[Any, Any]") -> None:
    """Keys are compared by a number of 62 bits each, so that a billion rows need 8 GiB; those alike are looked at again."""
    values, counts = np.unique(numbers, return_counts=True)
    repeated = set(values[counts > 1].tolist())
    seen: dict[str, int] = {}
    for item in items(config) if repeated else ():
        if number_of(item.key) not in repeated:
            continue
        if item.key in seen:
            found = (
                f"rows {seen[item.key]} and {item.number} of {config.data.rows.path} have the same {config.key}, {item.key!r}"
            )
            raise DataError(f"{found}; keys name rows in the output: remove one of the two, or set key to another column")
        seen[item.key] = item.number


def _absent(model: Any) -> list[int]:
    """Padded ids, which no text has."""
    return [index for index in range(model.rows) if index not in model.meanings]


def _try_rows(config: GenerateConfig, plan: GeneratePlan) -> None:
    """The prompts of the first rows can be made."""
    reader = plan.reader(config)
    for item in islice(items(config), _TRIED):
        try:
            reader.read(item.columns)
        except BadRow as error:
            raise DataError(f"row {item.number} of {config.data.rows.path} cannot be used: {error}; correct it") from None


def _lines(config: GenerateConfig, rows: int) -> list[str]:
    rollout, output, program = config.rollout, config.output, config.program
    shards = -(-rows // output.shard_rows)
    by = "samples" if program is None else f"samples of {program.type}, filter {program.filter.type}"
    drawn = f"up to {rollout.max_new_tokens} tokens a call, temperature {rollout.temperature:g}"
    where = f"{config.run.directory}/rows, {shards:,} files of {output.shard_rows:,} rows ({output.format})"
    return [
        f"rows: {rows:,} of {config.data.rows.path}, {rollout.samples_per_prompt} {by}; {drawn}",
        f"output: {where}, {output.rows_in_flight} rows at one time",
    ]
