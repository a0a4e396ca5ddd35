"""The plan of a generation: the rows are read once, so that what cannot be answered is refused before anything starts."""

from dataclasses import dataclass
from itertools import islice
from typing import Any

from minidist.config.data import SourceConfig
from minidist.config.evaluate_programs import EvaluateProgramsConfig
from minidist.config.generate import GenerateConfig
from minidist.data.exchanges import ExchangeReader
from minidist.data.rendering import Renderer
from minidist.data.templates import BadRow, Template
from minidist.errors import DataError
from minidist.pipelines.rows import TRIED, checked_rows, items
from minidist.preflight import checks, lines
from minidist.preflight.facts import read_model
from minidist.preflight.precision import precision_lines
from minidist.system2.rows import RowProgram
from minidist.types import Vocabulary


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
    rows, columns = checked_rows(config)
    if program is not None:
        program.check([*dict.fromkeys(["prompt", *columns])], source.path, _columns_of_prompt(source))
    renderer, vocabulary, described = None, None, []
    tokens = config.data.max_prompt_tokens + rollout.max_new_tokens
    if config.model is not None:
        model = read_model(config.model, "model")
        checks.check_context(model.context, tokens, "data.max_prompt_tokens + rollout.max_new_tokens")
        if rollout.engine == "vllm":
            checks.check_engine(model, config.cluster.gpus_of(config.cluster.rollout), "rollout.engine=hf")
        renderer, vocabulary = Renderer(model.tokenizer, config.data, model.stops), Vocabulary(model.rows, _absent(model))
        described = [lines.model_line("model", model.shape), *lines.ending_lines(renderer)]
        described += precision_lines(config.cluster, {"model.dtype": config.model.dtype})
    plan = GeneratePlan(rows, program, renderer, vocabulary, tokens, [*described, *_lines(config, rows)], longest=tokens)
    _try_rows(config, plan)
    return plan


@dataclass(frozen=True)
class ProgramsPlan:
    """The lines that describe an evaluation of programs."""

    lines: list[str]


def plan_programs(config: EvaluateProgramsConfig) -> ProgramsPlan:
    """The plan of each system; all of them answer the same rows."""
    found: list[str] = []
    for name in config.systems:
        system = config.system(name, config.all_seeds[0])
        found += [f"{name}: {line}" for line in plan_generate(system).lines if not line.startswith("output: ")]
    seeds = ", ".join(map(str, config.all_seeds))
    return ProgramsPlan([*found, f"output: {config.run.directory}/NAME-seedN and result.json; seeds {seeds}"])


def _absent(model: Any) -> list[int]:
    """Padded ids, which no text has."""
    return [index for index in range(model.rows) if index not in model.meanings]


def _columns_of_prompt(source: SourceConfig) -> frozenset[str]:
    """The columns of which the prompt of a row is made."""
    return frozenset({source.messages} if source.messages is not None else Template(source.prompt, "prompt").columns)


def _try_rows(config: GenerateConfig, plan: GeneratePlan) -> None:
    """The prompts of the first rows can be made, and their gold answers be compared with others."""
    reader = plan.reader(config)
    for item in islice(items(config), TRIED):
        try:
            reader.read(item.columns)
            if plan.program is not None:
                plan.program.gold_form(item.columns)
        except BadRow as error:
            raise DataError(f"row {item.number} of {config.data.rows.path} cannot be used: {error}; correct it") from None


def _lines(config: GenerateConfig, rows: int) -> list[str]:
    rollout, files, program = config.rollout, config.files, config.program
    shards = -(-rows // files.shard_rows)
    by = "samples" if program is None else f"samples of {program.type}, filter {program.filter.type}"
    drawn = f"up to {rollout.max_new_tokens} tokens a call, temperature {rollout.temperature:g}"
    where = f"{config.run.directory}/rows, {shards:,} files of {files.shard_rows:,} rows ({files.format})"
    return [
        f"rows: {rows:,} of {config.data.rows.path}, {rollout.samples_per_prompt} {by}; {drawn}",
        f"output: {where}, {files.rows_in_flight} rows at one time",
    ]
