"""What a run will be, from its configuration, tokenizers, shapes and rows: every refusal comes before a model is loaded."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from minidist.cluster.cluster import check_machine
from minidist.config import Config, DistillConfig, EvaluateConfig, ScoreConfig, SftConfig
from minidist.config.data import RenderConfig, SourceConfig
from minidist.config.models import ModelConfig
from minidist.config.teacher import CacheTeacherConfig, ServerTeacherConfig, TeacherConfig, VLLMTeacherConfig
from minidist.data.questions import Question, read_questions
from minidist.data.rendering import Renderer
from minidist.data.sources import Example, read_examples, read_prompts
from minidist.errors import ConfigError
from minidist.preflight.checks import (
    check_classes,
    check_context,
    check_head_size,
    check_heads_on_cpu,
    check_kernel,
    check_split,
    tokens_held,
)
from minidist.preflight.cost import memory_lines
from minidist.preflight.sizes import size_line, student_lines
from minidist.run.directory import RunDirectory
from minidist.types import Prompt, Rollout

if TYPE_CHECKING:
    from transformers import PretrainedConfig

    from minidist.teachers.cache.store import Origin, ScoreCache


@dataclass
class Plan:
    """Everything a stage needs that can be known without loading a model, checked."""

    renderer: Renderer
    lines: list[str] = field(default_factory=list)
    vocabulary: int | None = None
    prompts: list[Prompt] = field(default_factory=list)
    validation_prompts: list[Prompt] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    validation_examples: list[Example] = field(default_factory=list)
    streams: dict[str, list[Example]] = field(default_factory=dict)
    questions: dict[str, list[Question]] = field(default_factory=dict)
    max_tokens: int = 0
    texts: list[Rollout] = field(default_factory=list)
    origin: "Origin | None" = None
    cache: "ScoreCache | None" = None


def make_plan(config: Config, prompts: tuple[list[Prompt], int] | None = None) -> Plan:
    """Check a configuration against the disk and the machine; every refusal is a UserError.

    `prompts`: of a distillation whose data was read before, with the number of rows left out.
    """
    RunDirectory(config).check()
    check_machine(config.cluster)
    if isinstance(config, SftConfig):
        return _plan_sft(config)
    if isinstance(config, ScoreConfig):
        return _plan_score(config)
    return _plan_distill(config, prompts) if isinstance(config, DistillConfig) else _plan_evaluate(config)


def _plan_sft(config: SftConfig) -> Plan:
    from minidist.models.hub import architecture, context_length, load_config, student_tokenizer

    tokenizer = student_tokenizer(config.student)
    trained = config.student.model is not None
    model = load_config(config.student, "student.model") if trained else architecture(config.student, tokenizer)
    plan = Plan(Renderer(tokenizer, config.data))
    plan.max_tokens = config.data.max_tokens
    check_context(context_length(model), plan.max_tokens, "data.max_tokens")
    limits = {"max_prompt_tokens": config.data.max_prompt_tokens, "max_tokens": plan.max_tokens}
    plan.examples, skipped = read_examples(config.data.train, plan.renderer, **limits)
    plan.lines += [*student_lines(config.student, model), _rows("train", config.data.train, len(plan.examples), skipped)]
    if config.data.validation is not None:
        plan.validation_examples, skipped = read_examples(config.data.validation, plan.renderer, **limits)
        plan.lines.append(_rows("validation", config.data.validation, len(plan.validation_examples), skipped))
    labels = sum(len(example.tokens) - example.start for example in plan.examples)
    plan.lines.append(
        f"{labels:,} labels; {config.run.steps} steps of {config.batch_rows} rows; learner {config.learner.backend}"
    )
    plan.lines += memory_lines(config, model, longest=plan.max_tokens)
    return plan


def _plan_distill(config: DistillConfig, prompts: tuple[list[Prompt], int] | None = None) -> Plan:
    from minidist.methods.promptkd import prompt_lines
    from minidist.models.hub import context_length, load_config, student_tokenizer
    from minidist.preflight.scores import open_cache

    tokenizer = student_tokenizer(config.student)
    student, teacher = load_config(config.student, "student.model"), load_config(config.teacher, "teacher.model")
    plan = Plan(Renderer(tokenizer, config.data))
    plan.vocabulary = _shared(tokenizer, student, teacher, config.teacher)
    check_classes(config, plan.vocabulary)
    check_kernel(config)
    check_head_size(student, "student.model", config.rollout, config.cluster.gpus)
    check_split(student, "student.model", config.cluster.rollout.tensor_parallel, "cluster.rollout.tensor_parallel")
    plan.max_tokens = tokens_held((student, teacher), config.data.max_prompt_tokens + config.rollout.max_new_tokens)
    plan.prompts, skipped = prompts or read_prompts(
        config.data.prompts,
        plan.renderer,
        max_prompt_tokens=config.data.max_prompt_tokens,
        gold=config.gold,
    )
    plan.lines += [
        *student_lines(config.student, student),
        size_line("teacher", teacher),
        f"vocabulary {plan.vocabulary:,} in common",
    ]
    plan.lines.append(_rows("prompts", config.data.prompts, len(plan.prompts), skipped))
    plan.lines += _plan_teacher(config, plan, teacher)
    plan.lines += prompt_lines(config, plan.renderer, teacher)
    if config.rollout.prompts_per_step > len(plan.prompts):
        raise ConfigError(
            f"rollout.prompts_per_step is {config.rollout.prompts_per_step}, and {config.data.prompts.path} has "
            f"{len(plan.prompts)} prompts; lower it, or raise rollout.samples_per_prompt"
        )
    if config.data.validation is not None:
        held_out = _at_most(config.data.validation, config.evaluation.prompts)
        replayed = config.prefix.replay is not None  # follows the loss on their answers
        plan.validation_prompts, skipped = _read_prompts(held_out, plan.renderer, config.data, gold=replayed)
        plan.lines.append(_rows("validation", held_out, len(plan.validation_prompts), skipped))
    _plan_streams(config, plan, context_length(student))
    if isinstance(config.teacher, CacheTeacherConfig):
        plan.cache = open_cache(config, plan.renderer, vocabulary=plan.vocabulary, prompts=plan.prompts, streams=plan.streams)
        plan.lines.append(f"teacher's scores: {len(plan.cache):,} rows in {config.teacher.cache}, no process")
    texts = config.rollout.prompts_per_step * config.rollout.samples_per_prompt
    writers = [f"{share:.0%} {name}" for name, share in config.prefix if isinstance(share, float) and share]
    if config.teacher_mix:
        ways = {"vllm": "in turns, the teacher in vLLM too", "hf": "in step"}
        writers.append(f"each token of the student's from {config.teacher_mix:g} teacher, {ways[config.rollout.engine]}")
    plan.lines.append(
        f"{config.objective.type} on {texts} texts of up to {config.rollout.max_new_tokens} tokens a step "
        f"({', '.join(writers)}), {config.run.steps} steps"
    )
    cluster, scorer = config.cluster, config.teacher
    writes = f"{cluster.rollout.actors} x {config.rollout.engine} writes, " if config.asks_engines else ""
    scores = f"{cluster.teacher.actors} x {scorer.backend} scores ({scorer.payload}), " if config.main_scored else ""
    plan.lines.append(f"{writes}{scores}{cluster.learner.ranks} x {config.learner.backend} learns; roles in {cluster.roles}")
    plan.lines += memory_lines(config, student, teacher, longest=plan.max_tokens)
    return plan


def _plan_streams(config: DistillConfig, plan: Plan, context: int) -> None:
    """Examples of the streams beside the main one."""
    for name, stream in config.streams.items():
        if stream.data is None:
            continue
        check_context(context, stream.max_tokens, f"streams.{name}.max_tokens")
        plan.streams[name], skipped = read_examples(
            stream.data, plan.renderer, max_prompt_tokens=config.data.max_prompt_tokens, max_tokens=stream.max_tokens
        )
        plan.lines.append(_rows(f"streams.{name}", stream.data, len(plan.streams[name]), skipped))


def _plan_teacher(config: DistillConfig | ScoreConfig, plan: Plan, model: "PretrainedConfig") -> list[str]:
    """Lines on a teacher that transformers does not run, checked."""
    from minidist.models.heads import vocabulary_size

    vocabulary = plan.vocabulary or 0
    if config.teacher.cuts_padding:
        if isinstance(config, DistillConfig) and config.teacher_mix > 0 and config.rollout.engine == "vllm":
            check_heads_on_cpu(model, "teacher.model", config.cluster.gpus, "rollout.engine=hf, or rollout.teacher_mix=0")
        return []
    lines: list[str] = []
    if isinstance(config.teacher, VLLMTeacherConfig):
        check_heads_on_cpu(model, "teacher.model", config.cluster.gpus, "teacher.backend=hf")
        check_split(model, "teacher.model", config.cluster.teacher.tensor_parallel, "cluster.teacher.tensor_parallel")
    if isinstance(config.teacher, ServerTeacherConfig):
        from minidist.preflight.server import check_server

        width, streams = vocabulary_size(model), config.streams.values() if isinstance(config, DistillConfig) else ()
        tokens = max([plan.max_tokens, *(stream.max_tokens for stream in streams if stream.objective.needs)])
        asked = plan.prompts[0] if plan.prompts else plan.texts[0].prompt
        lines = check_server(config.teacher, plan.renderer, prompt=asked, tokens=tokens, width=width, vocabulary=vocabulary)
    if (padded := vocabulary_size(model) - vocabulary) > 0:
        lines.append(
            f"teacher's log-probabilities hold the share of {padded:,} padded ids, which vLLM cannot slice off "
            "(teacher.backend=hf can)"
        )
    return lines


def _plan_score(config: ScoreConfig) -> Plan:
    from minidist.models.hub import architecture, context_length, load_config, student_tokenizer
    from minidist.preflight.scores import longest, place_cache, read_texts

    tokenizer, teacher = student_tokenizer(config.student), load_config(config.teacher, "teacher.model")
    trained = config.student.model is not None
    student = load_config(config.student, "student.model") if trained else architecture(config.student, tokenizer)
    plan = Plan(Renderer(tokenizer, config.data))
    plan.vocabulary = _shared(tokenizer, student, teacher, config.teacher)
    plan.max_tokens = longest(config.data)
    check_context(context_length(teacher), plan.max_tokens, "the longest row of data.sources")
    plan.texts, lines = read_texts(config.data, plan.renderer)
    plan.lines += [size_line("teacher", teacher), f"vocabulary {plan.vocabulary:,} in common", *lines]
    plan.lines += _plan_teacher(config, plan, teacher)
    plan.origin, line = place_cache(config, tokenizer, plan.vocabulary, teacher, plan.texts)
    plan.lines.append(line)
    return plan


def _plan_evaluate(config: EvaluateConfig) -> Plan:
    from minidist.models.hub import load_config, load_tokenizer

    teacher = load_config(config.teacher, "teacher.model")
    plan: Plan | None = None
    for name, path in config.models.items():
        where = f"models.{name}"
        tokenizer = load_tokenizer(path, where, trust_remote_code=config.teacher.trust_remote_code)
        model = load_config(as_model(config, path), where)
        plan = plan or Plan(Renderer(tokenizer, config.data))
        vocabulary = _shared(tokenizer, model, teacher, config.teacher)
        plan.vocabulary = min(plan.vocabulary or vocabulary, vocabulary)
        plan.max_tokens = tokens_held((model, teacher), config.data.max_prompt_tokens + config.rollout.max_new_tokens)
        check_head_size(model, where, config.rollout, config.cluster.gpus)
        plan.lines.append(size_line(name, model))
    assert plan is not None
    plan.prompts, skipped = _read_prompts(config.data.test, plan.renderer, config.data)
    plan.lines.append(_rows("test", config.data.test, len(plan.prompts), skipped))
    limits = {"max_prompt_tokens": config.data.max_prompt_tokens, "max_tokens": plan.max_tokens}
    for name, source in config.data.questions.items():
        plan.questions[name], skipped = read_questions(source, plan.renderer, **limits)
        plan.lines.append(_rows(f"questions.{name}", source, len(plan.questions[name]), skipped))
    return plan


def as_model(config: EvaluateConfig, path: str) -> ModelConfig:
    return ModelConfig(model=path, dtype=config.dtype, trust_remote_code=config.teacher.trust_remote_code)


def _shared(tokenizer: Any, student: Any, teacher: Any, config: TeacherConfig) -> int:
    from minidist.models.heads import vocabulary_size
    from minidist.models.hub import load_tokenizer
    from minidist.run.canaries import shared_vocabulary

    theirs = load_tokenizer(config.model or "", "teacher.model", trust_remote_code=config.trust_remote_code)
    return shared_vocabulary(tokenizer, theirs, vocabulary_size(student), vocabulary_size(teacher))


def _at_most(source: SourceConfig, rows: int) -> SourceConfig:
    return source.model_copy(update={"rows": min(rows, source.rows or rows)})


def _read_prompts(
    source: SourceConfig, renderer: Renderer, config: RenderConfig, *, gold: bool = False
) -> tuple[list[Prompt], int]:
    return read_prompts(source, renderer, max_prompt_tokens=config.max_prompt_tokens, gold=gold)


def _rows(name: str, source: SourceConfig, used: int, skipped: int) -> str:
    return f"{name}: {used:,} rows of {source.path}" + (f", {skipped:,} left out" if skipped else "")
