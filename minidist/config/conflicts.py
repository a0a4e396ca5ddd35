"""Rules between sections: each function yields one sentence for every combination of settings that is refused."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from minidist.config.objective import ObjectiveSection
from minidist.config.terms import GroupedSection, SinkhornTermConfig
from minidist.types import MAIN

if TYPE_CHECKING:
    from minidist.config import (
        DistillConfig,
        EvaluateConfig,
        EvaluateProgramsConfig,
        GenerateConfig,
        ScoreConfig,
        ScoreTableConfig,
        SftConfig,
        TeachConfig,
    )
    from minidist.config.models import ModelConfig


def initial(c: "SftConfig | DistillConfig | TeachConfig") -> Iterator[str]:
    """Of a student that is cut from another model."""
    if c.student.init is None or c.student.model is not None:
        return
    teacher = getattr(c, "teacher", None)
    if teacher is None:
        yield "student.init cuts a model, and there is none; set student.model, whose layers it names"
    elif not getattr(teacher, "hosted", True):
        yield "student.init cuts the teacher, whose weights are elsewhere; set student.model, whose layers it names"


def learner(c: "SftConfig | DistillConfig") -> Iterator[str]:
    """Between `learner`, `cluster` and the student's precision."""
    yield from initial(c)
    if c.learner.backend == "single" and c.cluster.learner.ranks > 1:
        yield "cluster.learner.ranks above 1 need learner.backend=deepspeed"
    if c.learner.offload_parameters and c.learner.zero_stage != 3:
        yield f"learner.offload_parameters needs learner.zero_stage=3, not {c.learner.zero_stage}"
    if c.learner.offload_optimizer and c.learner.zero_stage == 0:
        yield "learner.offload_optimizer needs learner.zero_stage 1, 2 or 3"
    if c.learner.kernel == "liger" and not c.cluster.gpus:
        yield "learner.kernel liger runs on a GPU, and cluster.gpus is 0; set learner.kernel=torch"
    if c.student.dtype == "float16":
        yield "student.dtype float16 loses small gradients, and no loss is scaled; set student.dtype=bfloat16 or float32"
    copies = c.learner.backend == "deepspeed" and c.learner.zero_stage > 0
    trained = c.student.lora is None or c.learner.backend == "deepspeed"  # adapters are float32
    if c.student.dtype == "bfloat16" and trained and not copies:
        setting = "learner.backend single" if c.learner.backend == "single" else "learner.zero_stage 0"
        cure = "set learner.backend=deepspeed with learner.zero_stage=1 or more, or student.dtype=float32"
        yield f"{setting} keeps no float32 copy of bfloat16 weights, whose small steps would be rounded away; {cure}"


def teacher_role(c: "DistillConfig | ScoreConfig") -> Iterator[str]:
    """Between `teacher` and `cluster.teacher`."""
    for field, backend in (("tensor_parallel", "vllm"), ("shards", "hf")):
        if getattr(c.cluster.teacher, field) > 1 and c.teacher.splits_by != field:
            yield f"cluster.teacher.{field} splits a teacher of backend {backend}, not of {c.teacher.backend}; set it to 1"
    if not c.teacher.live and c.cluster.teacher.actors > 1:
        yield f"cluster.teacher.actors is {c.cluster.teacher.actors}, and teacher.backend cache starts no actors; leave it out"


def context(c: "DistillConfig") -> Iterator[str]:
    """Of a teacher that reads another prompt than the student."""
    if c.teacher.learns:
        cure = "set teacher.placement=actor, or leave teacher.context out"
        yield f"teacher.context gives the teacher rows of its own, and a teacher that learns reads the student's; {cure}"
    elif not c.asks_actors:
        yield "teacher.context changes what the teacher reads, and nothing asks the teacher; leave teacher.context out"


def objective(c: "DistillConfig", key: str, section: ObjectiveSection) -> Iterator[str]:
    """Between one objective, at a dotted key, and the teacher."""
    listed = c.teacher.payload != "hidden"
    if section.needs is not None and not c.teacher.payload.serves(section.needs):
        poorer = f"teacher.payload {c.teacher.payload} is poorer than {section.demand(key)} needs"
        yield f"{poorer}; set teacher.payload={section.needs}"
    if section.needs is not None and listed and section.temperature != 1:
        yield f"{key}.temperature {section.temperature:g} needs the teacher's whole distribution; set teacher.payload=hidden"
    if listed and (section.listed or 0) > c.teacher.top_k:
        longer = f"{key}.top_k is {section.listed}, and the teacher lists {c.teacher.top_k} classes"
        yield f"{longer}; lower it, or set teacher.top_k={section.listed}"
    if key != "objective" and section.learns_from == "own_samples":
        yield f"{key}.type {section.type} learns on the student's own samples, not on given text"


def own_samples(c: "DistillConfig") -> Iterator[str]:
    """Of an objective that needs the sampling probability of every token."""
    name = f"objective.type {c.objective.type}"
    if c.prefix.student < 1 or c.prefix.replay is not None:
        yield f"{name} learns from samples of the current student; set prefix.student=1, without replay"
    if c.rollout.truncated:
        yield f"{name} needs samples of the full distribution, and rollout.top_p is below 1; set rollout.top_p=1"
    if c.rollout.temperature != c.objective.temperature:
        temperatures = f"rollout.temperature {c.rollout.temperature:g} and objective.temperature {c.objective.temperature:g}"
        yield f"{temperatures} differ, and {name} weights tokens by the sampled distribution; set them equal"
    if c.rollout.samples_per_prompt < c.objective.samples:
        yield f"{name} compares answers to one prompt; set rollout.samples_per_prompt=4"
    if c.objective.parts > c.answers_per_step:
        excess = f"objective.minibatches {c.objective.parts} is more than the {c.answers_per_step} rollouts of a step"
        yield f"{excess}; lower it, or raise rollout.prompts_per_step"


def teacher_mix(c: "DistillConfig") -> Iterator[str]:
    """Of teacher-mixed sampling."""
    if c.rollout.temperature == 0:
        yield "rollout.teacher_mix cannot mix greedy decoding, rollout.temperature 0; raise it, or set rollout.teacher_mix=0"
    if not c.objective.on_mixture:
        yield f"objective.type {c.objective.type} is valid on the student's own samples only; set rollout.teacher_mix=0"
    if not c.prefix.student_writes:
        yield "rollout.teacher_mix mixes into the student's share of the text, and prefix.student is 0; set it above 0"
    if not c.teacher.takes_turns:
        yield "rollout.teacher_mix needs the teacher token by token; set teacher.backend=hf or vllm, or rollout.teacher_mix=0"
    if c.rollout.engine == "vllm" and c.cluster.teacher.shards > 1:
        split = "rollout.teacher_mix takes turns with a teacher in vLLM, and cluster.teacher.shards splits one in transformers"
        yield f"{split}; set teacher.backend=vllm with cluster.teacher.tensor_parallel, or rollout.teacher_mix=0"


def score_cache(c: "DistillConfig") -> Iterator[str]:
    """Of a teacher that is a cache of scores of given text."""
    teacher_writes = any(stream.writer == "teacher" for stream in c.streams.values())
    if c.prefix.dataset < 1 or c.prefix.replay is not None or teacher_writes:
        written = "teacher.backend cache holds scores of given text, and prefix or a stream uses text written during training"
        given = "set prefix.student=0 and prefix.dataset=1 without replay, and no stream of writer teacher"
        yield f"{written}; {given}; or set teacher.backend=hf"
    if c.evaluation.every:
        yield "evaluation.every needs a live teacher, and teacher.backend is cache; leave it out, and run minidist evaluate"


def replay(c: "DistillConfig") -> Iterator[str]:
    """Of adaptive replay."""
    if c.prefix.replay is None:
        return
    if c.prefix.replay.capacity < c.answers_per_step:
        small = f"prefix.replay.capacity {c.prefix.replay.capacity} is less than the {c.answers_per_step} texts of a step"
        yield f"{small}; raise it, or lower rollout.prompts_per_step"
    if c.prefix.replay.growth > 0 and not (c.evaluation.every and c.data.validation and c.data.validation.gold):
        needed = "prefix.replay follows the loss on validation answers: set evaluation.every, and data.validation with answer"
        yield f"{needed}; or prefix.replay.growth=0 with a fixed prefix.student"


def text(c: "DistillConfig") -> Iterator[str]:
    """Between the objective, the teacher and the text of the main stream."""
    if c.objective.learns_from == "given_text" and c.prefix.student_writes:
        yield f"objective.type {c.objective.type} would train the student on its own samples; set prefix.student=0"
    if c.objective.learns_from == "own_samples":
        yield from own_samples(c)
    if c.teacher_mix:
        yield from teacher_mix(c)
    if c.gold and not c.data.prompts.gold:
        yield "prefix.dataset needs data.prompts.answer; so do prefix.replay and a stream of writer dataset"
    if c.rollout.temperature == 0 and c.rollout.samples_per_prompt > 1:
        yield "rollout.temperature 0 writes the same answer each time; set rollout.samples_per_prompt=1"
    if c.rollout.no_repeat_ngram_size is not None:
        yield "rollout.no_repeat_ngram_size belongs to evaluate, since it changes the sampled distribution; leave it out"


def overlap(c: "DistillConfig") -> Iterator[str]:
    """Of what overlaps: text that is written ahead, and answers that are scored as they finish."""
    if c.loop.max_staleness:
        ahead = f"loop.max_staleness {c.loop.max_staleness}"
        if not c.prefix.student_writes:
            yield f"{ahead} lets the student write ahead, and prefix.student is 0; set loop.max_staleness=0"
        if c.objective.credited_by == "ranking":
            whole = "compares whole answers, which no ratio of single tokens corrects"
            yield f"{ahead}: objective.type {c.objective.type} {whole}; set loop.max_staleness=0"
        if c.rollout.truncated:
            full = "weights tokens by their probability under the full distribution, and rollout.top_p is below 1"
            yield f"{ahead} {full}; set rollout.top_p=1, or loop.max_staleness=0"
        if c.rollout.temperature != c.objective.temperature:
            found = f"rollout.temperature {c.rollout.temperature:g} and objective.temperature {c.objective.temperature:g}"
            yield f"{found} differ, and {ahead} weights tokens by the sampled distribution; set them equal"
    if c.loop.stream:
        if not (c.prefix.student_writes and c.main_scored):
            yield "loop.stream scores the student's answers as they finish, and no teacher actor scores any; leave it out"
        if c.teacher_mix:
            turns = "loop.stream scores while the student writes, and with rollout.teacher_mix the teacher writes too"
            yield f"{turns}; leave loop.stream out, or set rollout.teacher_mix=0"


def distill(c: "DistillConfig") -> Iterator[str]:
    """All conflicts of a distillation."""
    if c.rollout.engine == "hf" and c.cluster.rollout.tensor_parallel > 1:
        yield "cluster.rollout.tensor_parallel splits vLLM engines; set rollout.engine=vllm"
    yield from teacher_role(c)
    yield from learner(c)
    if not c.teacher.live:
        yield from score_cache(c)
    if c.teacher.context is not None:
        yield from context(c)
    if c.student.architecture is not None:
        yield "student.architecture describes an untrained model; run minidist sft first, and set student.model to its result"
    if MAIN in c.streams:
        yield f"streams.{MAIN}: {MAIN} is the name of the stream of objective and prefix; give the stream another name"
    for key, section in c.objectives.items():
        yield from objective(c, key, section)
    yield from text(c)
    yield from replay(c)
    yield from overlap(c)
    if c.learner.kernel == "liger" and not any(section.fused for section in c.objectives.values()):
        fused = "learner.kernel liger computes forward_kl, reverse_kl and jsd (also in kd and minillm)"
        yield f"{fused}, and objective.type is {c.objective.type}; set learner.kernel=torch"
    if c.teacher.learns and not c.objective.matches_teacher:
        mismatch = f"objective.type {c.objective.type} is no divergence from the teacher, as a teacher that learns needs"
        yield f"{mismatch}; set objective.type=reverse_kl, or teacher.placement=actor"
    if c.teacher.learns and c.teacher.dtype == "float16":
        yield "teacher.dtype float16 loses small gradients of teacher.prompt; set teacher.dtype=bfloat16 or float32"
    if c.evaluation.patience is not None:
        yield "evaluation.patience belongs to sft; distillation runs for run.steps"
    if c.evaluation.every and c.data.validation is None:
        yield "evaluation.every needs data.validation: held-out prompts"


def sft(c: "SftConfig") -> Iterator[str]:
    """All conflicts of supervised fine-tuning."""
    mixed = {f"mix.{name}": source for name, source in c.data.mix.items()}
    for name, source in {"train": c.data.train, "validation": c.data.validation, **mixed}.items():
        if source is not None and not source.has_labels:
            yield f"data.{name} needs answer (train on answers) or text (train on plain text)"
    if (total := sum(source.share for source in c.data.mix.values())) >= 1:
        yield f"the shares of data.mix add up to {total:g}, which leaves no row of data.train; lower them"
    for name, source in c.data.mix.items():
        if (drawn := c.run.steps * c.batch_rows * source.share) < 1:
            few = f"data.mix.{name}.share is {source.share:g}: {c.run.steps} steps of {c.batch_rows} rows draw {drawn:.2g} rows"
            yield f"{few} of it; raise the share or run.steps, or leave the source out"
    if (c.evaluation.every or c.evaluation.patience) and c.data.validation is None:
        yield "evaluation.every and evaluation.patience need data.validation: rows for the validation loss"
    if c.evaluation.temperature != 1:
        yield "evaluation.temperature belongs to distill; sft evaluates the loss on given answers"
    if c.evaluation.patience and c.evaluation.every is None:
        yield "evaluation.patience needs evaluation.every: the steps between two evaluations"
    if c.learner.kernel != "torch":
        yield f"learner.kernel {c.learner.kernel} computes divergences, and sft has none; set learner.kernel=torch"
    yield from learner(c)


def evaluate(c: "EvaluateConfig") -> Iterator[str]:
    """All conflicts of an evaluation."""
    if c.teacher.payload != "hidden":
        yield "evaluate measures exact divergences: set teacher.payload=hidden"
    if c.teacher.learns:
        yield "evaluate trains nothing: set teacher.placement=actor, and leave teacher.prompt out"
    if not c.teacher.live:
        yield "evaluate needs a live teacher to score new text; set teacher.backend=hf"
    if c.rollout.temperature == 0 and len(c.seeds or []) > 1:
        yield f"rollout.temperature 0 gives the same answers with every seed, and seeds are {c.seeds}; give one"
    if len(set(c.seeds or [])) < len(c.seeds or []):
        yield f"seeds are {c.seeds}: a repeated seed gives the same answers; give different ones"


def evaluate_programs(c: "EvaluateProgramsConfig") -> Iterator[str]:
    """All conflicts of an evaluation of programs, beside those of each generation."""
    for name, system in c.systems.items():
        if not re.fullmatch(r"[\w][\w .-]*", name):
            yield f"systems.{name}: a system's name is part of a path: use letters, digits, blanks, _ - and ."
        if both := sorted(system.program.model_fields_set & {"gold", "form"}):
            yield f"systems.{name}.program.{both[0]}: all systems are graded alike; set grade.{both[0]}, and leave it out here"
    seeds, greedy = c.seeds or [], all((system.rollout or c.rollout).temperature == 0 for system in c.systems.values())
    if len(seeds) > 1 and greedy:
        yield f"rollout.temperature 0 gives the same answers with every seed, and seeds are {seeds}; give one"
    if len(set(seeds)) < len(seeds):
        yield f"seeds are {seeds}: a repeated seed gives the same answers; give different ones"


def score(c: "ScoreConfig") -> Iterator[str]:
    """All conflicts of scoring given text."""
    if not c.teacher.live:
        yield "score needs a live teacher; set teacher.backend=hf, vllm or server, and leave teacher.cache out"
    if c.teacher.learns:
        yield "score trains nothing: set teacher.placement=actor, and leave teacher.prompt out"
    yield from teacher_role(c)
    if c.cache.absolute().is_relative_to(c.run.directory.absolute()):
        yield f"cache {c.cache} lies in run.directory, whose files a new start deletes; set cache to a directory outside"


def lesson(c: "TeachConfig") -> Iterator[str]:
    """Between `lesson`, `teacher`, `loss` and the rows held out."""
    kind, imitates = f"lesson.type {c.lesson.type}", [name for name, term in c.loss.items() if term.needs_teacher]
    if c.lesson.needs_teacher and c.teacher is None:
        yield f"{kind} needs a teacher; set teacher.model, or lesson.type=alone"
    if not c.lesson.needs_teacher and imitates:
        yield f"loss.{imitates[0]} imitates a teacher, and {kind} has none; set lesson.type=frozen, or leave the term out"
    if not c.lesson.needs_teacher and c.teacher is not None:
        yield f"{kind} uses no teacher; set lesson.type=frozen, or leave teacher out"
    if c.lesson.needs_feedback and c.data.feedback is None:
        held = "judges teaching on rows that nobody is trained on"
        yield f"{kind} {held}; set data.feedback={{}}, which holds rows of data.train out"
    if c.lesson.type == "meta" and c.learner.dropout:
        yield f"{kind} differentiates through the student's step, which dropout would draw anew; set learner.dropout=false"
    if c.trace is not None and not c.lesson.measures_influence:
        yield f"trace follows influence, which {kind} does not measure; set lesson.type=lgtm, or leave trace out"
    if c.trace is not None and not c.trace.sample and not c.trace.rows:
        yield "trace.sample is 0 and trace.rows names no row; set one of them, or leave trace out"
    if c.lesson.type == "lgtm" and c.lesson.influence != "explicit" and c.lesson.coefficient and not _imitates(c):
        side = "loss" if c.lesson.influence == "reweight" or c.lesson.through == "loss" else "lesson.loss"
        yield f"lesson.influence {c.lesson.influence} needs a term that imitates in {side}; add one, such as kd"
    if c.lesson.type == "assistants" and sum(each.steps for each in c.lesson.assistants) >= c.run.steps:
        yield f"lesson.assistants leave no step of run.steps {c.run.steps} for the student; raise run.steps"
    if c.lesson.type == "sequence" and len(c.lesson.before) >= c.run.steps:
        yield f"lesson.before has more checkpoints than run.steps {c.run.steps}; raise run.steps"


def _imitates(c: "TeachConfig") -> bool:
    """Whether the loss whose influence LGTM follows compares student and teacher."""
    assert c.lesson.type == "lgtm"
    of_student = c.lesson.influence == "reweight" or c.lesson.through == "loss"
    return any(term.needs_teacher for term in (c.loss if of_student else c.lesson.teacher_terms).values())


def terms(c: "TeachConfig") -> Iterator[str]:
    """Between each loss term, the task, and how a step's rows are divided."""
    losses = {"loss": c.loss, "lesson.loss": c.lesson.teacher_terms}
    for key, named in losses.items():
        # The teacher of a lesson of type meta learns from the held-out loss alone.
        unused = key == "lesson.loss" and (not c.lesson.teacher_learns or c.lesson.type == "meta")
        if not unused and not any(term.weight for term in named.values()):
            yield f"{key} has no term with a weight above 0, so that nothing would be learned; give one a weight"
    for key, term in ((f"{where}.{name}", term) for where, named in losses.items() for name, term in named.items()):
        if c.task.kind == "score" and not term.for_scores:
            yield f"{key} (type {term.type}) compares classes, and the task's labels are numbers; set type mse"
        if c.task.kind == "score" and isinstance(term, SinkhornTermConfig) and term.sample_wise:
            yield f"{key}.sample_wise transports between classes, and the task's labels are numbers; leave it out"
        if c.task.kind in ("tokens", "masked") and not term.for_tokens:
            yield f"{key} (type {term.type}) does not serve tokens; use cross_entropy or divergence"
        if isinstance(term, GroupedSection) and term.grouped:
            part = term.group_rows or c.learner.batch_rows // c.cluster.learner.ranks
            if part < 2:
                yield f"{key} compares the rows of a group, and a rank has one row a step; raise learner.batch_rows"
            whole = c.learner.micro_rows % part == 0 and c.learner.batch_rows % (part * c.cluster.learner.ranks) == 0
            if not whole:
                groups = f"{key} compares groups of {part} rows, which learner.micro_rows {c.learner.micro_rows} or"
                divided = f"learner.batch_rows {c.learner.batch_rows} on {c.cluster.learner.ranks} ranks would cut"
                yield f"{groups} {divided}; set {key}.group_rows to a divisor of both"


def learning_models(c: "TeachConfig") -> Iterator[str]:
    """Of the models that learn: their precision and their adapters."""
    learning: dict[str, ModelConfig] = {"student": c.student}
    if c.teacher is not None and c.lesson.teacher_learns:
        learning["teacher"] = c.teacher
    for name, model in learning.items():
        if model.dtype != "float32":
            yield f"{name}.dtype {model.dtype} would round small steps away; set {name}.dtype=float32"
    for name, model in (("student", c.student), ("teacher", c.teacher)):
        if model is not None and model.lora is not None and model.lora.save == "adapter":
            yield f"{name}.lora.save is adapter, and teach writes whole models; set {name}.lora.save=merged"
    if c.teacher is not None and c.teacher.lora is not None and not c.lesson.teacher_learns:
        yield f"teacher.lora trains a teacher, and in lesson.type {c.lesson.type} it stays as it is; leave teacher.lora out"


def _layers(c: "TeachConfig") -> Iterator[str]:
    """Of a comparison of student and teacher layer by layer."""
    if c.data.validation is None or c.teacher is None or c.lesson.type == "assistants":
        yield "evaluation.layers compares student and teacher; set teacher and data.validation, and no lesson of assistants"
    if c.task.kind not in ("classes", "score"):
        yield f"evaluation.layers reads states of rows with one label, and task.type is {c.task.kind}; leave it out"


def teach(c: "TeachConfig") -> Iterator[str]:
    """All conflicts of a lesson."""
    yield from initial(c)
    yield from lesson(c)
    yield from terms(c)
    yield from learning_models(c)
    for key in ("batch_rows", "feedback_rows"):
        rows, ranks = getattr(c.learner, key), c.cluster.learner.ranks
        if rows % ranks:
            yield f"learner.{key} {rows} is not divided by cluster.learner.ranks {ranks}; set it to a multiple"
    for name in ("train", "validation", "test"):
        if (source := getattr(c.data, name)) is not None and (key := source.used_elsewhere):
            yield f"data.{name}.{key} is not used, since task names the columns of teach; leave it out, and set those of task"
    if c.data.validation is None and (c.evaluation.every or c.evaluation.keep == "best"):
        yield "evaluation.every and evaluation.keep=best need data.validation: rows to measure on"
    if c.evaluation.layers is not None:
        yield from _layers(c)
    if c.evaluation.keep == "best" and c.evaluation.every is None:
        yield "evaluation.keep=best needs evaluation.every: the steps between two evaluations"


def generate(c: "GenerateConfig") -> Iterator[str]:
    """All conflicts of a generation."""
    if (c.model is None) == (c.server is None):
        yield "set exactly one of model (a model that this program runs) and server (one that answers over HTTP)"
    if c.files.tokens and (c.server is not None or c.program is not None):
        by = "a server answers in text alone" if c.server is not None else "a program makes several calls for each row"
        yield f"files.tokens is set, and {by}; set files.tokens=false"
    if (
        c.program is not None
        and c.program.filter.type == "majority"
        and c.rollout.samples_per_prompt > 1
        and c.rollout.temperature == 0
    ):
        yield "rollout.temperature 0 gives the same answer in every sample; set a temperature, or rollout.samples_per_prompt=1"
    if c.rollout.teacher_mix:
        yield "generate has no teacher to mix with; leave rollout.teacher_mix out"


def score_table(c: "ScoreTableConfig") -> Iterator[str]:
    """All conflicts of scoring into a table."""
    if not c.teacher.live or c.teacher.learns:
        yield "a table of scores needs a live, frozen teacher; set teacher.backend=hf, vllm or server"
    if c.teacher.payload != "sampled":
        yield "a table holds the log-probability of each token: set teacher.payload=sampled"
    if c.teacher.context is not None:
        yield "a table is of the rows as they are; leave teacher.context out, and write the context into data.rows.prompt"
    if (c.answers is None) == (c.data.rows.answer is None) and c.data.rows.task is None:
        yield "set exactly one of answers (a column of lists) and data.rows.answer (a template)"
    if c.ids is not None and c.answers is None:
        yield f"ids {c.ids} go with a column of answers; set answers"
    if c.logprobs is not None and c.ids is None:
        yield f"logprobs {c.logprobs} are of token ids: set ids, the column that holds them"
