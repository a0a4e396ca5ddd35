"""The plan of a table of scores."""

from dataclasses import dataclass
from itertools import islice

from minidist.config.score_table import ScoreTableConfig
from minidist.data.exchanges import ExchangeReader
from minidist.data.rendering import Renderer
from minidist.data.templates import BadRow
from minidist.errors import DataError
from minidist.pipelines.rows import TRIED, checked_rows, items
from minidist.preflight import checks, lines
from minidist.preflight.facts import read_model
from minidist.preflight.judge import JudgePlan, check_judge, plan_judge
from minidist.preflight.precision import precision_lines
from minidist.system2.rows import gold_form
from minidist.types import Vocabulary


@dataclass(frozen=True)
class ScoreTablePlan:
    """What a job is made from, and the lines that describe it; see `GeneratePlan`."""

    rows: int
    renderer: Renderer
    vocabulary: Vocabulary
    max_tokens: int
    lines: list[str]
    judge: JudgePlan | None = None
    cache: None = None

    @property
    def longest(self) -> int:
        """Longest sequence that a teacher scores."""
        return self.max_tokens


def plan_score_table(config: ScoreTableConfig) -> ScoreTablePlan:
    source, teacher = config.data.rows, config.teacher
    names = {"teacher.model": teacher.model, "teacher.tokenizer": teacher.tokenizer}
    if config.judge is not None and config.judge.model is not None:
        names |= {"judge.model.model": config.judge.model.model, "judge.model.tokenizer": config.judge.model.tokenizer}
    checks.check_files(config, names, [source])
    rows, columns = checked_rows(config)
    graded = None if config.grade is None else config.grade.gold
    named = {"answers": config.answers, "ids": config.ids, "logprobs": config.logprobs, "grade.gold": graded}
    for where, name in named.items():
        if name is not None and name not in columns:
            raise DataError(f"{source.path} has no column {name!r}, which {where} names; its columns are {', '.join(columns)}")
    if config.judge is not None:
        check_judge(config.judge, columns, source.path)
    model = read_model(teacher, "teacher.model")
    tokens = min(config.max_tokens, model.context)
    checks.check_teacher_engine(config, model)
    renderer = Renderer(model.tokenizer, config.data, model.stops)
    _try_rows(config, renderer)
    absent = [index for index in range(model.rows) if index not in model.meanings]
    shards = -(-rows // config.files.shard_rows)
    where = f"{config.run.directory}/rows, {shards:,} files of {config.files.shard_rows:,} rows ({config.files.format})"
    described = [lines.model_line("teacher", model.shape), f"rows: {rows:,} of {source.path}, up to {tokens} tokens each"]
    described += [f"output: {where}, {config.files.rows_in_flight} rows at one time"]
    described += precision_lines(config.cluster, {"teacher.dtype": teacher.dtype})
    judge, of_judge = plan_judge(config)
    return ScoreTablePlan(rows, renderer, Vocabulary(model.rows, absent), tokens, [*described, *of_judge], judge)


def _try_rows(config: ScoreTableConfig, renderer: Renderer) -> None:
    """The prompts of the first rows can be made, and their gold answers be compared with others."""
    reader = ExchangeReader(config.data.rows, renderer.guard)
    for item in islice(items(config), TRIED):
        try:
            reader.read(item.columns)
            if config.grade is not None:
                gold_form(item.columns.get(config.grade.gold), config.grade.form)
        except BadRow as error:
            raise DataError(f"row {item.number} of {config.data.rows.path} cannot be used: {error}; correct it") from None
