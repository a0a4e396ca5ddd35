"""Configuration: what it refuses, in which words, and that what it accepts survives being written and read."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from minidist.config import CONFIGS, DistillConfig, SftConfig, dump, load
from minidist.errors import ConfigError

CONFIG_FILES = sorted((Path(__file__).parents[3] / "configs").rglob("*.yaml"))

TREES: dict[str, dict[str, Any]] = {
    "sft": {
        "stage": "sft",
        "run": {"directory": "runs/sft"},
        "student": {"architecture": {"model_type": "llama"}, "tokenizer": "characters:sort"},
        "data": {"train": {"path": "task:sort"}, "validation": {"path": "task:sort", "split": "valid"}},
    },
    "distill": {
        "stage": "distill",
        "run": {"directory": "runs/distill"},
        "student": {"model": "runs/sft/final"},
        "teacher": {"model": "runs/teacher/final"},
        "data": {"prompts": {"path": "task:sort"}},
        "objective": {"type": "reverse_kl"},
    },
    "evaluate": {
        "stage": "evaluate",
        "run": {"directory": "runs/evaluate"},
        "models": {"sft": "runs/sft/final"},
        "teacher": {"model": "runs/teacher/final"},
        "data": {"test": {"path": "task:sort", "split": "test"}},
    },
    "score": {
        "stage": "score",
        "run": {"directory": "runs/score"},
        "student": {"model": "runs/sft/final"},
        "teacher": {"model": "runs/teacher/final"},
        "data": {"sources": {"gold": {"path": "task:sort"}}},
        "cache": "runs/cache",
    },
}

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes the smallest configuration of a stage."""

    def write_stage(stage: str) -> Path:
        file = tmp_path / f"{stage}.yaml"
        file.write_text(yaml.safe_dump(TREES[stage]))
        return file

    return write_stage


def refusal(path: Path, *overrides: str) -> str:
    """The sentence with which a configuration is refused; it names the file or the override."""
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert str(path) in sentence or "override" in sentence
    return sentence


@pytest.mark.parametrize("stage", TREES)
def test_smallest_configuration_and_round_trip(write: Write, stage: str) -> None:
    config = load(write(stage))
    assert type(config) is CONFIGS[stage]
    assert CONFIGS[stage].model_validate(dump(config)) == config
    assert dump(CONFIGS[stage].model_validate(dump(config))) == dump(config)


REFUSED = [
    ("sft", ["run.stepz=3"], ["unknown key run.stepz", "did you mean steps?"]),
    ("sft", ["learner.optimizer.learning_rates=1"], ["unknown key learner.optimizer.learning_rates"]),
    ("sft", ["learner.optimizer.warmup_step=1"], ["did you mean warmup_steps?"]),
    ("sft", ["lerner.chunk_tokens=3"], ["unknown key lerner", "did you mean learner?"]),
    ("sft", ["data.validation.promt=x"], ["unknown key data.validation.promt", "did you mean prompt?"]),
    ("sft", ["run.stepz=3", "run.sede=3"], ["run.stepz", "(and 1 more)"]),
    ("sft", ["run.steps=0"], ["run.steps is 0", "greater than or equal to 1"]),
    ("sft", ["run.steps=many"], ["run.steps is 'many'", "valid integer"]),
    ("sft", ["run.directory=null"], ["run.directory is None"]),
    ("sft", ["student.model=x"], ["exactly one of student.model", "student.architecture"]),
    ("sft", ["student.architecture=null"], ["exactly one of student.model", "student.architecture"]),
    ("sft", ["student.tokenizer=null"], ["student.architecture needs student.tokenizer", "characters:TASK"]),
    ("sft", ["student.architecture={hidden_size: 8}"], ["student.architecture needs model_type", "llama"]),
    ("sft", ["data.train.answer=a", "data.train.text=b"], ["answer", "text", "not both"]),
    ("sft", ["data.train.path=a.jsonl"], ["data.train needs answer", "or text"]),
    ("sft", ["data.validation.path=a.jsonl"], ["data.validation needs answer"]),
    ("sft", ["evaluation.patience=3"], ["evaluation.patience needs evaluation.every"]),
    ("sft", ["evaluation.every=3", "data.validation=null"], ["evaluation.every", "need data.validation"]),
    ("sft", ["objective.type=reverse_kl"], ["unknown key objective"]),
    ("distill", ["objective.type=revers_kl"], ["objective.type is 'revers_kl'", "reverse_kl, forward_kl", "mean reverse_kl?"]),
    ("distill", ["objective.temperature=0"], ["objective", "temperature is 0", "greater than 0"]),
    ("distill", ["objective.temprature=2"], ["temprature", "did you mean temperature?"]),
    ("distill", ["objective=null"], ["objective is None"]),
    (
        "distill",
        ["teacher.payload=top_k", "objective.temperature=2"],
        ["objective.temperature 2", "set teacher.payload=hidden"],
    ),
    (
        "distill",
        ["teacher.payload=sampled"],
        ["teacher.payload sampled", "objective.type reverse_kl", "set teacher.payload=top_k"],
    ),
    ("distill", ["teacher.model=null"], ["teacher.model is missing"]),
    ("distill", ["student={architecture: {model_type: gpt2}, tokenizer: t}"], ["run minidist sft first", "student.model"]),
    ("distill", ["evaluation.patience=2"], ["evaluation.patience belongs to sft"]),
    ("distill", ["evaluation.every=2"], ["evaluation.every needs data.validation"]),
    ("distill", ["rollout.temperature=0", "rollout.samples_per_prompt=2"], ["rollout.temperature 0", "samples_per_prompt=1"]),
    ("distill", ["rollout.top_p=0"], ["rollout.top_p is 0"]),
    ("evaluate", ["teacher.payload=top_k"], ["set teacher.payload=hidden"]),
    ("evaluate", ["rollout.temperature=0.7"], ["rollout.temperature=1", "rollout.top_p=1"]),
    ("evaluate", ["rollout.top_p=0.9"], ["rollout.temperature=1", "rollout.top_p=1"]),
    ("evaluate", ["seeds=[1, 2, 1]"], ["seeds are [1, 2, 1]", "give different ones"]),
    ("evaluate", ["seeds=[]"], ["seeds is []", "at least 1"]),
    ("evaluate", ["seeds=[-1]"], ["greater than or equal to 0"]),
    ("evaluate", ["rollout.no_repeat_ngram_size=1"], ["rollout.no_repeat_ngram_size is 1", "greater than or equal to 2"]),
    ("distill", ["rollout.no_repeat_ngram_size=6"], ["rollout.no_repeat_ngram_size belongs to evaluate", "leave it out"]),
    ("evaluate", ["data.test.references=a", "data.test.answer=b"], ["references", "in place of answer", "one of them"]),
    (
        "evaluate",
        ["data.questions={s: {path: a.jsonl, choices: [a, b]}}"],
        ["questions need answer", "its text or its number from 0"],
    ),
    (
        "evaluate",
        ["data.questions={s: {path: a.jsonl, answer: l, choices: [a]}}"],
        ["choices of questions are ['a']", "two or more"],
    ),
    ("distill", ["canaries.stop_on=[truncate]"], ["canaries.stop_on", "'truncated'"]),
    (
        "distill",
        ["canaries.stop_on=[age]", "canaries.alarm_age=null"],
        ["canaries.stop_on names age", "canaries.alarm_age is null", "take the name out"],
    ),
    ("evaluate", ["models={}"], ["models is {}", "at least 1"]),
    ("sft", ["run.seed=-1"], ["run.seed is -1", "greater than or equal to 0"]),
    (
        "sft",
        ["learner.backend=single", "cluster.learner.ranks=2"],
        ["cluster.learner.ranks above 1", "learner.backend=deepspeed"],
    ),
    ("sft", ["learner.kernel=liger"], ["learner.kernel liger", "sft has none", "set learner.kernel=torch"]),
    ("distill", ["learner.kernel=liger"], ["learner.kernel liger", "cluster.gpus is 0", "set learner.kernel=torch"]),
    (
        "distill",
        ["learner.kernel=liger", "cluster.gpus=1", "objective.type=akl", "streams.s={writer: teacher}"],
        ["learner.kernel liger", "objective.type is akl", "set learner.kernel=torch"],
    ),
    ("sft", ["learner.offload_parameters=true"], ["learner.offload_parameters", "learner.zero_stage=3, not 2"]),
    (
        "distill",
        ["learner.offload_optimizer=true", "learner.zero_stage=0"],
        ["learner.offload_optimizer", "learner.zero_stage 1, 2 or 3"],
    ),
    (
        "distill",
        ["learner.zero_stage=0", "student.dtype=bfloat16"],
        ["learner.zero_stage 0", "bfloat16 weights", "set learner.zero_stage=1"],
    ),
    (
        "distill",
        ["rollout.engine=hf", "cluster.rollout.tensor_parallel=2"],
        ["cluster.rollout.tensor_parallel", "set rollout.engine=vllm"],
    ),
    ("distill", ["objective.type=k2", "prefix={student: 0.5, dataset: 0.5}"], ["objective.type k2", "set prefix.student=1"]),
    ("distill", ["objective.type=supervised"], ["objective.type supervised", "its own samples", "set prefix.student=0"]),
    (
        "distill",
        ["objective.type=supervised", "prefix={student: 0.1, teacher: 0.9}"],
        ["objective.type supervised", "set prefix.student=0"],
    ),
    (
        "distill",
        ["prefix={student: 0, dataset: 1}", "data.prompts.path=a.jsonl"],
        ["prefix.dataset needs data.prompts.answer"],
    ),
    ("distill", ["prefix.teacher=0.5"], ["prefix.student + prefix.teacher + prefix.dataset is 1.5", "add up to 1"]),
    ("distill", ["prefix={student: 0.9}"], ["prefix.student + prefix.teacher + prefix.dataset is 0.9", "add up to 1"]),
    ("distill", ["prefix={student: 2, teacher: -1}"], ["prefix.student is 2", "less than or equal to 1"]),
    ("distill", ["prefix.per=token"], ["prefix.per is 'token'", "'row' or 'step'"]),
    ("distill", ["streams.main.data.path=task:sort"], ["streams.main", "main is the name", "give it another name"]),
    ("distill", ["streams.sft.data.path=a.jsonl"], ["data of a stream needs answer", "or text"]),
    ("distill", ["streams.sft={data: {path: task:sort}, weight: -1}"], ["weight is -1", "greater than or equal to 0"]),
    (
        "distill",
        ["streams.old={data: {path: task:sort}, objective: {type: k2}}"],
        ["streams.old.objective.type k2", "the student's own samples", "not on given text"],
    ),
    (
        "distill",
        [
            "objective.type=k2",
            "teacher.payload=sampled",
            "streams.old={data: {path: task:sort}, objective: {type: forward_kl}}",
        ],
        ["teacher.payload sampled", "streams.old.objective.type forward_kl", "set teacher.payload=top_k"],
    ),
    (
        "distill",
        ["teacher.payload=top_k", "streams.old={data: {path: task:sort}, objective: {type: forward_kl, temperature: 2}}"],
        ["streams.old.objective.temperature 2", "set teacher.payload=hidden"],
    ),
    *(
        ("distill", ["objective.type=minillm", *changes], parts)
        for changes, parts in [
            (["rollout.teacher_mix=1.2"], ["rollout.teacher_mix is 1.2", "less than or equal to 1"]),
            (["rollout.teacher_mix=-0.1"], ["rollout.teacher_mix is -0.1", "greater than or equal to 0"]),
            (["rollout.top_p=0.9"], ["rollout.top_p below 1", "set rollout.top_p=1"]),
            (["rollout.temperature=0.7"], ["rollout.temperature 0.7", "objective.temperature 1", "set them equal"]),
            (["prefix={student: 0.5, dataset: 0.5}"], ["objective.type minillm", "set prefix.student=1"]),
            (["objective.inner_epochs=4", "objective.importance=none"], ["objective.inner_epochs 4", "set objective.clip=0.2"]),
            (["objective.minibatches=65"], ["objective.minibatches 65", "the 64 rollouts", "raise rollout.prompts_per_step"]),
            (["objective.single_step=false", "objective.long_term=false"], ["nothing to learn", "set one of them"]),
            (["objective.preset=lmop"], ["objective.preset is 'lmop'", "'paper' or 'lmops'"]),
            (["objective.gama=0.9"], ["unknown key objective.gama", "did you mean gamma?"]),
            (["objective.gamma=0"], ["objective.gamma is 0", "greater than 0"]),
            (["objective.clip=1"], ["objective.clip is 1", "less than 1"]),
            (["teacher.payload=sampled"], ["teacher.payload sampled", "objective.type minillm", "set teacher.payload=top_k"]),
            (
                ["teacher={model: t, backend: server, payload: top_k, server: {url: http://a}}"],
                ["set teacher.backend=hf or vllm"],
            ),
            (["cluster.teacher.shards=2"], ["cluster.teacher.shards", "set teacher.backend=vllm"]),
            (["streams.lm.weight=0.5"], ["no data to train on", "leave the stream out"]),
            (["streams.lm={data: {path: task:sort}, objective: {type: minillm}}"], ["streams.lm.objective.type minillm"]),
        ]
    ),
    ("distill", ["rollout.teacher_mix=0.2", "rollout.temperature=0"], ["rollout.temperature 0", "rollout.teacher_mix=0"]),
    ("distill", ["rollout.teacher_mix=0.2", "objective.type=k2"], ["objective.type k2", "set rollout.teacher_mix=0"]),
    (
        "distill",
        ["rollout.teacher_mix=0.2", "prefix={student: 0, dataset: 1}", "data.prompts.answer=x"],
        ["rollout.teacher_mix mixes into the student's share", "prefix.student"],
    ),
    ("distill", ["objective.type=kd"], ["objective.type kd", "its own samples", "set prefix.student=0"]),
    ("sft", ["evaluation.patience=3", "data.validation=null"], ["evaluation.patience need data.validation"]),
    (
        "distill",
        ["cluster.roles=local", "cluster.rollout.actors=2"],
        ["cluster.roles local has one actor of each role", "set cluster.roles=ray"],
    ),
    ("distill", ["cluster.teacher.gpus=1.5", "cluster.gpus=4"], ["cluster.teacher.gpus is 1.5", "or whole devices"]),
    (
        "distill",
        ["cluster.rollout={tensor_parallel: 2, gpus: 1}", "cluster.gpus=4"],
        ["cluster.rollout.gpus is 1.0", "needs 2 whole devices"],
    ),
    (
        "distill",
        ["cluster.rollout.tensor_parallel=2", "cluster.gpus=3"],
        ["cluster.gpus is 3", "each actor of cluster.rollout needs 2", "set cluster.rollout.gpus=2"],
    ),
    ("sft", ["run.steps"], ["override 'run.steps'", "section.key=value"]),
    ("sft", ["=3"], ["override '=3'", "section.key=value"]),
    ("sft", ["run.steps.x=3", "run.steps.y=3"], ["run.steps"]),
    ("sft", ["stage.x=3"], ["override 'stage.x=3'", "stage is a value, not a section"]),
    ("sft", ["run.steps=[1"], ["override 'run.steps=[1'"]),
    ("sft", ["run.directory=${MINIDIST_NOWHERE}/x"], ["run: directory", "${MINIDIST_NOWHERE}", "export MINIDIST_NOWHERE="]),
    ("sft", ["stage=train"], ["stage is 'train'", "sft, distill, evaluate"]),
    ("sft", ["stage=[sft]"], ["stage is ['sft']", "sft, distill, evaluate"]),
    ("sft", ["stage=null"], ["stage is None"]),
]


@pytest.mark.parametrize(("stage", "overrides", "parts"), REFUSED, ids=[" ".join(case[1]) for case in REFUSED])
def test_refused_in_one_sentence(
    write: Write, monkeypatch: pytest.MonkeyPatch, stage: str, overrides: list[str], parts: list[str]
) -> None:
    monkeypatch.delenv("MINIDIST_NOWHERE", raising=False)
    sentence = refusal(write(stage), *overrides)
    assert [part for part in parts if part not in sentence] == [], sentence


ALLOWED = [
    ["objective.type=k2", "teacher.payload=sampled"],
    ["objective.type=supervised", "prefix={student: 0, dataset: 1}", "data.prompts={path: a.jsonl, answer: '{{ a }}'}"],
    ["objective.type=forward_kl", "prefix={student: 0.5, dataset: 0.5, per: step}"],
    ["prefix={student: 0.3333333, teacher: 0.3333333, dataset: 0.3333334}"],
    ["teacher.payload=sampled", "objective.type=k2", "streams.sft.data.path=task:sort"],
    ["objective.temperature=2", "streams.old={data: {path: a.txt, text: '{{ text }}'}, objective: {type: reverse_kl}}"],
    ["learner={zero_stage: 3, offload_optimizer: true, offload_parameters: true}", "student.dtype=bfloat16"],
    ["learner={zero_stage: 1}", "student.dtype=bfloat16"],
    ["learner={backend: single, zero_stage: 0}", "student.dtype=bfloat16"],
    ["cluster.rollout.tensor_parallel=2", "cluster.gpus=4"],
    ["cluster.rollout={tensor_parallel: 2, gpus: 2}", "cluster.gpus=2"],
    ["rollout.temperature=0"],
    ["learner.kernel=liger", "cluster.gpus=1"],
    [
        "learner.kernel=liger",
        "cluster.gpus=1",
        "objective.type=akl",
        "streams.s={writer: teacher, objective: {type: forward_kl}}",
    ],
]


@pytest.mark.parametrize("overrides", ALLOWED, ids=" ".join)
def test_sections_that_agree_are_not_refused(write: Write, overrides: list[str]) -> None:
    load(write("distill"), overrides)


def test_suggestion_is_not_of_another_section(write: Write) -> None:
    assert "did you mean prompts" not in refusal(write("distill"), "data.validation={path: x, promt: y}")


@pytest.mark.parametrize(
    ("stage", "section"), [("sft", "run"), ("sft", "data"), ("distill", "teacher"), ("evaluate", "models")]
)
def test_missing_section_is_named(tmp_path: Path, stage: str, section: str) -> None:
    file = tmp_path / "part.yaml"
    file.write_text(yaml.safe_dump({key: value for key, value in TREES[stage].items() if key != section}))
    assert refusal(file).endswith(f"{section} is missing")


@pytest.mark.parametrize(
    ("text", "part"), [("a: [1", "not valid YAML"), ("- a", "must hold sections"), ("", "must hold sections")]
)
def test_file_that_is_no_configuration(tmp_path: Path, text: str, part: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    assert part in refusal(file)


def test_no_such_file(tmp_path: Path) -> None:
    assert "no configuration file" in refusal(tmp_path / "none.yaml")


def test_overrides_are_yaml_and_the_last_one_holds(write: Write) -> None:
    config = load(
        write("sft"),
        ["run.steps=7", "run.steps=8", "learner.optimizer.betas=[0.8,0.99]", "evaluation.every=null", "student.tokenizer=a=b"],
    )
    assert isinstance(config, SftConfig)
    assert config.run.steps == 8
    assert config.learner.optimizer.betas == (0.8, 0.99)
    assert config.evaluation.every is None
    assert config.student.tokenizer == "a=b"


def test_override_makes_the_sections_on_its_way(write: Write) -> None:
    config = load(write("distill"), ["data.validation.path=task:sort", "data.validation.split=valid"])
    assert isinstance(config, DistillConfig)
    assert config.data.validation is not None and config.data.validation.split == "valid"


def test_environment_is_filled_in(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINIDIST_PLACE", "here")
    config = load(write("evaluate"), ["run.directory=${MINIDIST_PLACE}/a", "models={one: '${MINIDIST_PLACE}/b'}"])
    assert str(config.run.directory) == "here/a"
    assert config.models == {"one": "here/b"}


def test_configuration_does_not_change_once_read(write: Write) -> None:
    with pytest.raises(ValueError, match="frozen"):
        load(write("sft")).run.steps = 3


@pytest.mark.parametrize("path", CONFIG_FILES, ids=lambda path: "/".join(path.parts[-2:]))
def test_shipped_configuration_is_valid(path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MINIDIST_DATA", str(tmp_path))
    monkeypatch.setenv("MINIDIST_TEXT", str(tmp_path / "text.jsonl"))
    load(path)
