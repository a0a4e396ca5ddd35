"""The plan of a stage: facts are read, checks refuse, lines say what the run will be. No model is loaded.

Every refusal is a UserError. What can be refused without a tokenizer is refused before torch is imported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from minidist.config import DistillConfig, EvaluateConfig, ScoreConfig, SftConfig
from minidist.config.data import RenderConfig
from minidist.config.models import ModelConfig
from minidist.config.origin import with_origin
from minidist.config.sentence import of_teacher
from minidist.config.teacher import TeacherConfig
from minidist.data.contexts import ContextReader
from minidist.data.examples import Example, as_example
from minidist.data.questions import Question
from minidist.data.rendering import Renderer
from minidist.data.routes import TeacherColumn
from minidist.preflight import checks, lines, scores
from minidist.preflight.cost import memory_lines, sft_memory_lines
from minidist.preflight.facts import (
    PairFacts,
    RowReader,
    Rows,
    context_reader,
    longest_of_teacher,
    read_model,
    read_student,
    rendering_tokenizer,
)
from minidist.preflight.families import check_learnt
from minidist.preflight.growth import growth_lines
from minidist.preflight.precision import hosted_dtypes, precision_lines
from minidist.preflight.routing import (
    about,
    check_columns,
    check_contexts,
    longest_rows,
    read_pairs,
    routing_lines,
    rows_by_teacher,
    teacher_column,
)
from minidist.preflight.space import space_lines
from minidist.preflight.teachers import TeacherFacts, teacher_lines
from minidist.preflight.vocabulary import common
from minidist.types import PROBE_TOKENS, Prompt, Rollout, Vocabulary

if TYPE_CHECKING:
    from minidist.teachers.cache.store import Origin, ScoreCache


@dataclass(frozen=True)
class Plan:
    """What the roles of every stage are made from, and the lines that describe the run.

    Args:
        renderer: text to tokens.
        max_tokens: longest sequence of an engine or of the learner.
        lines: the plan for people.
        vocabulary: ids over which the softmax of student and teacher is taken; None without a teacher.
        cache: scores that are read in place of asking a teacher, or None.
        teacher_tokens: longest row that the teacher reads in a context of its own; 0: it reads the student's rows.
    """

    renderer: Renderer
    max_tokens: int
    lines: list[str]
    vocabulary: Vocabulary | None = field(kw_only=True)
    cache: "ScoreCache | None" = field(default=None, kw_only=True)
    teacher_tokens: int = field(default=0, kw_only=True)

    @property
    def longest(self) -> int:
        """Longest sequence that a teacher scores, tokens: a rollout, or a row of a stream."""
        return max(self.max_tokens, self.teacher_tokens)

    def rows(self) -> dict[str, list[Example]]:
        """The rows of each source, as the models read them."""
        return {}


@dataclass(frozen=True, kw_only=True)
class SftPlan(Plan):
    """The plan of supervised fine-tuning. `mix`: the rows of each source of data.mix."""

    examples: list[Example]
    validation_examples: list[Example]
    mix: dict[str, list[Example]] = field(default_factory=dict)

    def rows(self) -> dict[str, list[Example]]:
        mixed = {f"mix.{name}": examples for name, examples in self.mix.items()}
        return {"train": self.examples, **mixed, "validation": self.validation_examples}


@dataclass(frozen=True, kw_only=True)
class DistillPlan(Plan):
    """The plan of a distillation. `streams`: rows of the streams that have data. `models`: student and teacher, the first of
    several. `pairs`: the student with each teacher, and `longest_rows`: most tokens of a row that it reads, by the key of its
    section."""

    vocabulary: Vocabulary
    models: PairFacts
    prompts: list[Prompt]
    validation_prompts: list[Prompt]
    streams: dict[str, list[Example]]
    pairs: dict[str, PairFacts]
    longest_rows: dict[str, int]

    @property
    def longest(self) -> int:
        rows = (len(example.tokens) for examples in self.streams.values() for example in examples)
        return max(super().longest, *rows, 0)

    def rows(self) -> dict[str, list[Example]]:
        prompts = {"prompts": self.prompts, "validation": self.validation_prompts}
        if any(prompt.teacher_tokens is not None for prompt in self.prompts):
            prompts["prompts as the teacher reads them"] = [prompt.for_teacher for prompt in self.prompts]
        return {name: [as_example(each) for each in found] for name, found in prompts.items()} | self.streams


@dataclass(frozen=True, kw_only=True)
class ScorePlan(Plan):
    """The plan of scoring. `texts`: rows to score, each once. `origin`: the teacher, as its cache will name it."""

    vocabulary: Vocabulary
    texts: list[Rollout]
    origin: "Origin"

    def rows(self) -> dict[str, list[Example]]:
        found = [as_example(replace(text.for_teacher.prompt, gold=text.tokens)) for text in self.texts]
        return {"texts": found}


@dataclass(frozen=True, kw_only=True)
class EvaluatePlan(Plan):
    """The plan of an evaluation. `vocabulary`: the ids that all models share with the teacher."""

    vocabulary: Vocabulary
    prompts: list[Prompt]
    questions: dict[str, list[Question]] = field(default_factory=dict)

    def rows(self) -> dict[str, list[Example]]:
        asked = {name: [choice for each in found for choice in each.choices] for name, found in self.questions.items()}
        return {"test": [as_example(prompt) for prompt in self.prompts]} | asked


def plan_sft(config: SftConfig) -> SftPlan:
    written, config, data = config, with_origin(config), config.data
    checks.check_files(written, _student_names(config), [data.train, data.validation, *data.mix.values()])
    student = read_student(config.student)
    layout = check_learnt(student, config.learner)
    checks.check_embedding(student)
    checks.check_context(student.context, data.max_tokens, "data.max_tokens")
    reader = RowReader(Renderer(student.tokenizer, data, student.stops), data)
    rows = [reader.examples("train", data.train, max_tokens=data.max_tokens)]
    if data.validation is not None:
        rows.append(reader.examples("validation", data.validation, max_tokens=data.max_tokens))
    mix = {name: reader.examples(f"mix.{name}", each, max_tokens=data.max_tokens) for name, each in data.mix.items()}
    examples, *validation = (each.found for each in rows)
    description = [*lines.student_lines(student.shape, config.student.lora), *(each.line for each in rows)]
    description += [lines.mix_line(config, name, found) for name, found in mix.items()]
    description += [lines.training_line(config, examples), *layout]
    description += sft_memory_lines(config, student.shape, longest=data.max_tokens)
    description += [*student.lines, *space_lines(config, student.shape), *growth_lines(written)]
    description += precision_lines(config.cluster, hosted_dtypes(config))
    return SftPlan(
        reader.renderer,
        data.max_tokens,
        description,
        vocabulary=None,
        examples=examples,
        validation_examples=validation[0] if validation else [],
        mix={name: found.found for name, found in mix.items()},
    )


def plan_distill(config: DistillConfig, prompts: Rows[Prompt] | None = None) -> DistillPlan:
    """`prompts`: those of data.prompts, where another plan has read them."""
    written, config, data = config, with_origin(config), config.data
    sources = [data.prompts, data.validation, *(stream.data for stream in config.streams.values())]
    checks.check_files(written, _student_names(config) | _names(config.named_teachers), sources)
    scored = {name: stream for name, stream in config.streams.items() if stream.objective.needs}
    read_by_teacher = [data.prompts, data.validation, *(stream.data for stream in scored.values())]
    checks.check_context_columns(config.teacher, read_by_teacher)
    check_columns(column := teacher_column(config), read_by_teacher)
    pairs = read_pairs(config, read_student(config.student))
    models, answer_tokens = next(iter(pairs.values())), config.rollout.max_new_tokens
    layout, described = check_learnt(models.student, config.learner), list[str]()
    for key, pair in pairs.items():
        with about(key):
            checks.check_distillation(config.with_teacher_alone(key), pair)
            described += lines.pair_lines(pair, data.template_from, key)
    contexts = [pair.context for pair in pairs.values()] if column is None else [models.student.context]
    tokens = data.max_prompt_tokens + answer_tokens
    checks.check_context(min(contexts), tokens, "data.max_prompt_tokens + rollout.max_new_tokens")
    max_tokens = _with_probe(min(contexts), tokens)
    reader = _reader(data, list(pairs.values()), column or context_reader(config.teacher, data, models), answer_tokens)
    prompts = prompts or reader.prompts("prompts", data.prompts, gold=config.gold)
    checks.check_prompt_count(config, len(prompts.found))
    validation, streams = _validation(config, reader), _streams(config, reader)
    examples = {name: rows.found for name, rows in streams.items()}
    held_out = validation.found if validation else []
    read = [*prompts.found, *held_out, *(row for name in scored for row in examples.get(name, []))]
    rows = rows_by_teacher(config, read)
    longest = _longest(config, pairs, rows, max_tokens)
    facts = DistillPlan(
        reader.renderer,
        max_tokens,
        [],
        vocabulary=models.vocabulary,
        models=models,
        pairs=pairs,
        prompts=prompts.found,
        validation_prompts=held_out,
        streams=examples,
        teacher_tokens=longest_of_teacher(read, answer_tokens),
        longest_rows=longest,
    )
    checked = [line for key, pair in pairs.items() for line in _teacher_lines(config, facts, key, pair, rows[key])]
    cache, cache_lines = _cache(config, models, prompts.found, examples)
    described += [*lines.ending_lines(reader.renderer), prompts.line, *routing_lines(config, rows)]
    described += [*checked, *(each.line for each in (validation, *streams.values()) if each is not None), *cache_lines]
    description = [*lines.student_lines(models.student.shape, config.student.lora), *described]
    return replace(facts, lines=[*description, *_run_lines(config, written, facts, layout, pairs)], cache=cache)


def _longest(
    config: DistillConfig, pairs: Mapping[str, PairFacts], rows: Mapping[str, Sequence[Prompt | Example]], max_tokens: int
) -> dict[str, int]:
    """Most tokens of a row that each teacher reads. Raises ConfigError where its own rows do not fit one of several."""
    found = longest_rows(rows, config.rollout.max_new_tokens)
    if teacher_column(config) is None:
        scored = [stream.max_tokens for stream in config.streams.values() if stream.objective.needs]
        return {key: max(max_tokens, each, *scored) for key, each in found.items()}
    check_contexts(pairs, found)
    return found


def _teacher_lines(
    config: DistillConfig, plan: DistillPlan, key: str, pair: PairFacts, rows: Sequence[Prompt | Example]
) -> list[str]:
    """Lines of the plan about one of the teachers, which is checked."""
    prompt = next((row for row in rows if isinstance(row, Prompt)), plan.prompts[0])
    tokens = max(plan.longest_rows[key], plan.teacher_tokens)
    with about(key):
        found = teacher_lines(
            TeacherFacts(config.with_teacher_alone(key), pair, plan.renderer, prompt, tokens, plan.teacher_tokens)
        )
    return [of_teacher(line, key) for line in found] if config.teachers else found


def _run_lines(
    config: DistillConfig, written: DistillConfig, plan: DistillPlan, layout: list[str], pairs: Mapping[str, PairFacts]
) -> list[str]:
    """Lines on evaluations, steps, memory, space and precision."""
    student, shapes = plan.models.student, {key: pair.teacher.shape for key, pair in pairs.items()}
    found = []
    if config.evaluation.every is not None:
        found += lines.divergence_lines(config.evaluation.temperature, 1.0, "evaluation.temperature")
    longest = max(plan.max_tokens, plan.teacher_tokens)
    teacher_longest = plan.longest_rows if config.teachers else longest
    memory = memory_lines(config, student.shape, shapes, longest=plan.max_tokens, teacher_longest=teacher_longest)
    found += [*lines.distillation_lines(config), *layout, *memory]
    found += [*student.lines, *space_lines(config, student.shape), *growth_lines(written)]
    return found + precision_lines(config.cluster, hosted_dtypes(config))


def plan_score(config: ScoreConfig) -> ScorePlan:
    names = _student_names(config) | _names({"teacher": config.teacher})
    checks.check_files(config, names, config.data.sources.values())
    checks.check_context_columns(config.teacher, config.data.sources.values())
    scores.check_cache_directory(config.cache)
    models = PairFacts(read_student(config.student), read_model(config.teacher, "teacher.model"))
    vocabulary, max_tokens = models.vocabulary, scores.longest_row(config.data)
    checks.check_context(models.teacher.context, max_tokens, "the longest row of data.sources")
    checks.check_teacher_engine(config, models.teacher)
    answers = max((source.max_new_tokens or 0 for source in config.data.sources.values()), default=0)
    reader = _reader(config.data, [models], context_reader(config.teacher, config.data, models), answers)
    texts, text_lines = scores.read_texts(config.data, reader)
    teacher_tokens = max(len(text.for_teacher.prompt.tokens) + len(text.tokens) for text in texts)
    longest = max(max_tokens, teacher_tokens)
    facts = TeacherFacts(config, models, reader.renderer, texts[0].prompt, longest, teacher_tokens)
    of_teacher, origin = teacher_lines(facts), scores.cache_origin(config, models)
    described = lines.pair_lines(models, config.data.template_from)
    description = [*described, *text_lines, *of_teacher, scores.size_line(config, texts, models)]
    description += precision_lines(config.cluster, {"teacher.dtype": config.teacher.dtype})
    return ScorePlan(
        reader.renderer,
        max_tokens,
        description,
        vocabulary=vocabulary,
        texts=texts,
        origin=origin,
        teacher_tokens=teacher_tokens,
    )


def plan_evaluate(config: EvaluateConfig) -> EvaluatePlan:
    data = config.data
    names = {f"models.{name}": path for name, path in config.models.items()}
    checks.check_files(config, names | _names({"teacher": config.teacher}), [data.test, *data.questions.values()])
    checks.check_context_columns(config.teacher, [data.test])
    teacher = read_model(config.teacher, "teacher.model")
    models = {name: read_model(as_model(config, path), f"models.{name}") for name, path in config.models.items()}
    pairs = [PairFacts(model, teacher) for model in models.values()]
    vocabulary = common(pair.vocabulary for pair in pairs)
    tokens = data.max_prompt_tokens + config.rollout.max_new_tokens
    checks.check_teacher_engine(config, teacher)
    layout: list[str] = []
    for pair in pairs:
        layout += check_learnt(pair.student, config.learner)
        checks.check_context(pair.context, tokens, "data.max_prompt_tokens + rollout.max_new_tokens")
        if config.rollout.engine == "vllm":
            checks.check_engine(pair.student, config.cluster.gpus_of(config.cluster.rollout), "rollout.engine=hf")
    max_tokens = _with_probe(pairs[-1].context, tokens)
    reader = _reader(data, pairs, context_reader(config.teacher, data, pairs[0]), config.rollout.max_new_tokens)
    prompts = reader.prompts("test", data.test)
    questions = {
        name: reader.questions(f"questions.{name}", source, max_tokens=max_tokens) for name, source in data.questions.items()
    }
    described = [lines.model_line(name, model.shape) for name, model in models.items()]
    described += [line for pair in pairs for line in lines.difference_lines(pair, data.template_from)]
    described += [*lines.ending_lines(reader.renderer), *dict.fromkeys(layout)]
    described += lines.divergence_lines(config.rollout.temperature, config.rollout.top_p, "rollout.temperature, rollout.top_p")
    described += [prompts.line, *(each.line for each in questions.values())]
    described += precision_lines(config.cluster, {"dtype": config.dtype, "teacher.dtype": config.teacher.dtype})
    found = {name: each.found for name, each in questions.items()}
    plan = EvaluatePlan(reader.renderer, max_tokens, described, vocabulary=vocabulary, prompts=prompts.found, questions=found)
    return replace(plan, teacher_tokens=longest_of_teacher(prompts.found, config.rollout.max_new_tokens))


def as_model(config: EvaluateConfig, path: str) -> ModelConfig:
    """The section of a model that is evaluated."""
    return ModelConfig(model=path, dtype=config.dtype, trust_remote_code=config.teacher.trust_remote_code)


def _reader(
    config: RenderConfig, pairs: Sequence[PairFacts], context: ContextReader | TeacherColumn | None, answer_tokens: int
) -> RowReader:
    """Reads rows whose ids all models have, with the tokenizer of the first student; answers end where any student's may."""
    first, shared = pairs[0], set(common(pair.vocabulary for pair in pairs).ids)
    tokenizer = rendering_tokenizer(config, first.student, first.teacher)
    renderer = Renderer(tokenizer, config, shared.intersection(*[set().union(*(pair.stops for pair in pairs))]))
    for pair in pairs:
        pair.check_ids("the end of an answer", [renderer.end])
    return RowReader(renderer, config, pairs, context, answer_tokens)


def _student_names(config: SftConfig | DistillConfig | ScoreConfig) -> dict[str, str | None]:
    return {"student.model": config.student.model, "student.tokenizer": config.student.tokenizer}


def _names(teachers: Mapping[str, TeacherConfig]) -> dict[str, str | None]:
    """Models and tokenizers of teachers, by their keys."""
    return {f"{key}.{field}": getattr(each, field) for key, each in teachers.items() for field in ("model", "tokenizer")}


def _with_probe(context: int, tokens: int) -> int:
    """Tokens that an engine holds: a prompt with its answer, or the probe of a weight sync."""
    return max(tokens, min(PROBE_TOKENS + 1, context))


def _validation(config: DistillConfig, reader: RowReader) -> Rows[Prompt] | None:
    """Prompts to evaluate on. Adaptive replay follows the loss on their answers, which are then tokens too."""
    source = config.data.validation
    if source is None:
        return None
    rows = min(config.evaluation.prompts, source.rows or config.evaluation.prompts)
    return reader.prompts("validation", source.model_copy(update={"rows": rows}), gold=config.prefix.replay is not None)


def _streams(config: DistillConfig, reader: RowReader) -> dict[str, Rows[Example]]:
    """Rows of the streams that have data."""
    return {
        name: reader.examples(
            f"streams.{name}", stream.data, max_tokens=stream.max_tokens, scored=stream.objective.needs is not None
        )
        for name, stream in config.streams.items()
        if stream.data is not None
    }


def _cache(
    config: DistillConfig, models: PairFacts, prompts: list[Prompt], streams: dict[str, list[Example]]
) -> "tuple[ScoreCache | None, list[str]]":
    """The scores that stand in for a teacher, if any, and a line about them."""
    if config.teacher.live:
        return None, []
    cache = scores.open_cache(config, models, prompts=prompts, streams=streams)
    return cache, [f"teacher's scores: {len(cache):,} rows in {cache.path}, no process"]
