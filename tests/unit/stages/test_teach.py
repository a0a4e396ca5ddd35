"""`minidist teach` as a whole, on tiny models: lessons learn, resume bit for bit, and write what transformers loads."""

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import pipeline

from minidist.cluster import machine
from minidist.config import load
from minidist.errors import ConfigError, DataError, ModelError
from minidist.preflight.lessons import plan_teach
from minidist.preflight.rows import show_labelled
from minidist.stages import run_stage
from tests.support.classifiers import SHAPES
from tests.support.teach import metrics, teach, tree, write

LESSONS: dict[str, dict[str, Any]] = {
    "kd": {},
    "pkd": {},
    "dml": {},
    "pesf_kd": {},
    "meta": {"data": {"feedback": {}}},
    "lgtm": {"data": {"feedback": {}}, "trace": {"every": 2, "sample": 4, "rows": [4]}},
    "sinkd_debiased": {},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a teacher that has learned the sentences, with checkpoints of its way."""
    folder = tmp_path_factory.mktemp("teach")
    run = {"steps": 40, "checkpoint_every": 20, "checkpoints_kept": 2}
    settings = tree(folder, evaluation={"every": 20, "keep": "best"})
    settings["run"] |= run
    summary = teach(folder, settings, "teacher")
    assert summary["result"]["test"]["student/accuracy"] > 0.9, "the teacher has learned"
    return folder


def lesson(folder: Path, method: str, **changes: Any) -> dict[str, Any]:
    """A lesson of a student that is cut from the teacher."""
    settings = tree(
        folder, method=method, teacher={"model": str(folder / "teacher/final")}, student={"init": {"layers": [0, 2]}}
    )
    extra = LESSONS.get(method, {})
    settings["data"] = settings["data"] | extra.get("data", {})
    return settings | {key: value for key, value in extra.items() if key != "data"} | changes


def final(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """All weights of final/, those of its teacher too."""
    files = sorted((folder / name / "final").rglob("*.safetensors"))
    return {f"{file.parent.name}|{key}": value for file in files for key, value in load_file(file).items()}


def same_weights(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(value, right[key]) for key, value in left.items())


@pytest.mark.parametrize("method", LESSONS)
def test_an_interrupted_lesson_resumes_bit_for_bit(folder: Path, method: str) -> None:
    settings = lesson(folder, method)
    teach(folder, settings, f"whole-{method}")
    first = settings | {"run": settings["run"] | {"steps": 3}}
    teach(folder, first, f"parts-{method}")
    teach(folder, settings, f"parts-{method}")
    assert same_weights(final(folder, f"whole-{method}"), final(folder, f"parts-{method}"))
    whole, parts = metrics(folder, f"whole-{method}"), metrics(folder, f"parts-{method}")
    steps = [line for line in parts if "student/loss" in line]
    assert steps == [line for line in whole if "student/loss" in line] and len(steps) == 6
    assert ("teacher" in {key.split("|")[0] for key in final(folder, f"whole-{method}")}) == (
        method not in ("kd", "pkd", "sinkd_debiased")
    )


def test_a_lesson_of_many_steps_learns_and_its_model_is_a_pipeline(folder: Path) -> None:
    settings = lesson(folder, "kd", evaluation={"every": 10, "layers": 24})
    settings["run"] |= {"steps": 30}
    summary = teach(folder, settings, "learned")
    assert [each["step"] for each in summary["evaluations"]] == [0, 10, 20, 30]
    assert summary["result"]["test"]["student/accuracy"] > 0.9 > summary["majority"]["accuracy"]
    classify: Any = pipeline("text-classification", model=str(folder / "learned/final"))
    assert [each["label"] for each in classify(["the film was great", "a dull plot"])] == ["positive", "negative"]
    assert (folder / "learned/curves.png").stat().st_size > 5000
    layers = json.loads((folder / "learned/layers.json").read_text())
    assert np.shape(layers["cka"]) == (3, 4) and np.shape(layers["attention"]) == (2, 3) and layers["rows"] == 24
    assert layers["cka"][0][0] == pytest.approx(1, abs=0.05) and (folder / "learned/layers.png").is_file()
    config = json.loads((folder / "learned/final/config.json").read_text())
    assert config["num_hidden_layers"] == 2 and config["label2id"] == {"negative": 0, "positive": 1}


def test_the_best_weights_are_final_and_their_test_figures_reported(folder: Path) -> None:
    settings = lesson(folder, "ce", evaluation={"every": 1, "keep": "best"}, teacher=None)
    settings["student"] = tree(folder)["student"]
    settings["learner"] = settings["learner"] | {"optimizer": {"lr": 0.05}}  # jumps about
    settings["run"] |= {"steps": 12}
    summary = teach(folder, settings, "best")
    values = {each["step"]: each["student/accuracy"] for each in summary["evaluations"]}
    step = summary["best"]["step"]
    assert summary["best"]["accuracy"] == max(values.values()) == values[step] and step == min(
        at for at, value in values.items() if value == values[step] and at > 0
    )
    again = tree(folder, task=settings["task"], student={"model": str(folder / "best/final")}, evaluation={"every": 1})
    again["run"] |= {"steps": 1}
    again["learner"] = again["learner"] | {"optimizer": {"lr": 1e-12}}
    assert teach(folder, again, "reloaded")["result"]["test"] == pytest.approx(summary["result"]["test"], abs=1e-6)
    assert not (folder / "best/best").exists()


def test_sequences_of_teachers(folder: Path) -> None:
    before = [str(folder / "teacher/checkpoints/step_000020")]
    teach(folder, lesson(folder, "rco", lesson={"type": "sequence", "before": before}), "rco")
    assert [line["lesson/phase"] for line in metrics(folder, "rco") if "lesson/phase" in line] == [0, 0, 0, 1, 1, 1]
    shape = {"model_type": "bert"} | SHAPES["bert"] | {"num_hidden_layers": 2}
    assistant = {"architecture": shape, "tokenizer": str(folder / "tokenizer"), "steps": 4}
    settings = lesson(folder, "takd", lesson={"assistants": [assistant]})
    teach(folder, settings, "takd")
    lines = [line for line in metrics(folder, "takd") if "lesson/phase" in line]
    assert ["assistant_0/loss" in line for line in lines] == [True] * 4 + [False] * 2
    assert ["student/loss" in line for line in lines] == [False] * 4 + [True] * 2
    teach(folder, settings | {"run": settings["run"] | {"steps": 5}}, "takd-parts")
    teach(folder, settings, "takd-parts")
    assert same_weights(final(folder, "takd"), final(folder, "takd-parts"))


def test_an_assistant_without_a_model_is_cut_from_the_teacher(folder: Path) -> None:
    cut, named = {"init": {"layers": [0, 1, 2]}, "steps": 2}, {"model": str(folder / "teacher/final")}
    teach(folder, lesson(folder, "takd", lesson={"assistants": [cut]}), "takd-cut")
    teach(folder, lesson(folder, "takd", lesson={"assistants": [named | cut]}), "takd-named")
    assert same_weights(final(folder, "takd-cut"), final(folder, "takd-named"))
    first = next(line["assistant_0/loss"] for line in metrics(folder, "takd-cut") if "assistant_0/loss" in line)
    assert first < 0.3, "it starts as the teacher, which has learned"


def test_influence_is_data_and_a_picture(folder: Path) -> None:
    teach(folder, lesson(folder, "lgtm"), "traced")
    lines = [json.loads(line) for line in (folder / "traced/influence.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines[::5]] == [0, 2, 4] and len(lines) == 15
    assert sum(not line["sampled"] for line in lines) == 3 and all(abs(line["influence"]) < 100 for line in lines)
    followed = {line["row"] for line in lines if not line["sampled"]}
    assert followed == {4} and (folder / "traced/influence.png").stat().st_size > 5000


def test_the_plan_tells_what_a_process_needs_and_what_to_change_where_a_gpu_is_too_small(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "gpus", list)
    settings = lesson(folder, "lgtm")
    lines = plan_teach(load(write(folder, settings, "needs"))).lines  # type: ignore[arg-type]
    table = next(number for number, line in enumerate(lines) if line.startswith("memory, GiB a process"))
    assert "optimizer" in lines[table] and lines[table + 1].startswith("learner")
    assert any(line.startswith("all roles and the object store: ") for line in lines)
    gpu = settings | {"cluster": {"roles": "ray", "address": "auto", "gpus": 1, "gpu_gib": 0.25}}
    found = plan_teach(load(write(folder, gpu, "needs-gpu"))).lines  # type: ignore[arg-type]
    warning = next(line for line in found if line.startswith("WARNING the learner does not fit"))
    assert "it needs 0.50 GiB of each GPU and may take 0.25; lower learner.micro_rows below" in warning


def test_feedback_rows_come_from_the_training_data_alone_and_are_not_trained_on(folder: Path) -> None:
    plan = plan_teach(load(write(folder, lesson(folder, "lgtm"), "leak")))  # type: ignore[arg-type]

    def texts(rows: Any) -> set[tuple[int, ...]]:
        return {tuple(row.tokens.tolist()) for row in rows}

    numbers = {row.index for row in plan.exercises.train.student} | {row.index for row in plan.exercises.feedback}
    assert numbers == set(range(160)) and len(plan.exercises.feedback) >= 16
    held = texts(plan.exercises.feedback)
    assert not held & texts(plan.exercises.train.student)
    drawn = [asyncio.run(plan.exercises.next(step)) for step in range(30)]
    assert not held & {tuple(row.tokens.tolist()) for each in drawn for row in each.student}
    assert held == texts(row for each in drawn for row in each.feedback)
    assert plan.validation is not None and plan.test is not None
    assert not {id(row) for row in plan.exercises.feedback} & {
        id(row) for part in (plan.validation, plan.test) for row in part.student
    }


@pytest.mark.parametrize("kind", ["tokens", "masked", "score", "choices"])
def test_other_kinds_of_task(folder: Path, kind: str) -> None:
    decoder = kind in ("tokens", "choices")
    settings = tree(folder / kind)
    model = {"model_type": "gpt2" if decoder else "bert"} | SHAPES["gpt2" if decoder else "bert"]
    settings["student"] = {"architecture": model, "tokenizer": str(folder / kind / "tokenizer")}
    tasks: dict[str, dict[str, Any]] = {
        "tokens": {"type": "tokens", "prompt": "{{ text }}", "answer": " {{ 'yes' if label == '1' or label == 1 else 'no' }}"},
        "masked": {"type": "masked", "text": "{{ text }} {{ text }}"},
        "score": {"type": "score"},
        "choices": {
            "type": "choices",
            "prompt": "{{ text }} it is",
            "choices": [" bad", " good"],
            "names": ["negative", "positive"],
        },
    }
    settings |= {"task": tasks[kind], "evaluation": {"every": 25}}
    settings["run"] |= {"steps": 50, "checkpoint_every": None}
    before, _, after = teach(folder / kind, settings)["evaluations"]
    assert after["student/loss"] < (0.9 if kind != "masked" else 0.97) * before["student/loss"]
    # A teacher that learns, on the same kind.
    term = {"type": "mse"} if kind == "score" else {}
    online = {
        "loss": {"cross_entropy": {}, "kd": term},
        "lesson": {"type": "online", "loss": {"cross_entropy": {}, "kd": term}},
    }
    again = settings | online | {"teacher": {"model": str(folder / kind / "run/final")}, "student": {"init": {"layers": [0]}}}
    again["run"] = again["run"] | {"steps": 2}
    teach(folder / kind, again, "online")
    assert (folder / kind / "online/final/teacher/model.safetensors").is_file()


SHAPE = {"model_type": "bert"} | SHAPES["bert"] | {"hidden_size": 16}
NARROW: dict[str, Any] = {"architecture": SHAPE, "steps": 2, "tokenizer": "TOKENIZER"}
REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    (
        {"method": "lgtm", "data": {"feedback": None}, "trace": None},
        ConfigError,
        "judges teaching on rows that nobody is trained on; set data.feedback",
    ),
    ({"teacher": None, "student": {"model": "x"}}, ConfigError, "lesson.type frozen needs a teacher; set teacher.model"),
    ({"teacher": None}, ConfigError, "student.init cuts a model, and there is none; set student.model"),
    ({"method": "ce"}, ConfigError, "lesson.type alone uses no teacher"),
    (
        {"method": "ce", "loss": {"kd": {}}, "teacher": None, "student": {"model": "x"}},
        ConfigError,
        "loss.kd imitates a teacher",
    ),
    ({"task": {"type": "score"}}, ConfigError, "loss.kd (type divergence) compares classes, and the task's labels are numbers"),
    (
        {
            "method": None,
            "lesson": {"type": "frozen"},
            "task": {"type": "score"},
            "loss": {"sinkhorn": {"sample_wise": True}},
        },
        ConfigError,
        "loss.sinkhorn.sample_wise transports between classes, and the task's labels are numbers",
    ),
    ({"task": {"type": "tokens"}, "method": "dist"}, ConfigError, "does not serve tokens"),
    ({"student": {"init": {"layers": [0, 5]}}}, ModelError, "names layer 5, and the model has 3 layers, numbers 0 to 2"),
    ({"task": {"names": ["no", "yes"]}}, ModelError, "has the classes negative, positive, and the task no, yes"),
    ({"task": {"names": ["a", "b", "c"]}}, ModelError, "has the classes negative, positive, and the task a, b, c"),
    ({"loss": {"kd": {"weight": 0}, "cross_entropy": {"weight": 0}}}, ConfigError, "loss has no term with a weight above 0"),
    (
        {"method": None, "lesson": {"type": "online", "loss": {}}},
        ConfigError,
        "lesson.loss has no term with a weight above 0, so that nothing would be learned",
    ),
    (
        {"method": "lgtm", "trace": {"sample": 0, "rows": []}},
        ConfigError,
        "trace.sample is 0 and trace.rows names no row; set one of them",
    ),
    ({"task": "sst2"}, ConfigError, "task is 'sst2'; expected a section"),
    (
        {"data": {"train": {"path": "x", "text": "{{ sentence }}"}}},
        ConfigError,
        "data.train.text is not used, since task names the columns of teach; leave it out, and set those of task",
    ),
    (
        {"method": "pesf_kd", "teacher": {"lora": {"targets": ["q"]}}},
        ModelError,
        "teacher.lora.targets: q names no linear layer",
    ),
    (
        {"method": "lgtm", "data": {"feedback": {"share": 0.95}}},
        DataError,
        "data.feedback.share 0.95 leaves 8 of 160 rows to train on, fewer than learner.batch_rows 16",
    ),
    (
        {"method": "lgtm", "data": {"feedback": {"share": 0.02}}},
        DataError,
        "data.feedback.share 0.02 leaves 3 of 160 rows for feedback, fewer than learner.feedback_rows 8; change the share",
    ),
    (
        {"evaluation": {"layers": 9}, "data": {"validation": {"path": "VALID", "rows": 7}}},
        DataError,
        "evaluation.layers fits probes on data.validation, which has 7 rows; expected 8 or more",
    ),
    (
        {
            "method": "takd",
            "loss": {"pkd": {}},
            "lesson": {"assistants": [NARROW]},
        },
        ConfigError,
        "loss.pkd compares hidden states, and lesson.assistants.0.model has width 16, teacher.model 32",
    ),
    ({"method": "pkd", "loss": {"pkd": {"layers": []}}}, ConfigError, "loss.pkd.layers"),
    (
        {"method": "dist", "learner": {"batch_rows": 1}},
        ConfigError,
        "loss.dist compares the rows of a group, and a rank",
    ),
    ({"method": "lgtm", "lesson": {"radius": 1e-30}}, ConfigError, "lesson.radius is 1e-30; input should be greater than or"),
    ({"trace": {}}, ConfigError, "which lesson.type frozen does not measure; set lesson.type=lgtm"),
    ({"method": "lgtm", "trace": {"rows": [999]}}, ConfigError, "trace.rows names row 999, which is not in data.train"),
    ({"learner": {"batch_rows": 999}}, DataError, "data.train has 160 rows, fewer than the learner.batch_rows 999"),
    ({"method": "dist", "learner": {"batch_rows": 16, "micro_rows": 5}}, ConfigError, "loss.dist compares groups of 16 rows"),
    ({"student": {"init": {"layers": [0]}, "dtype": "bfloat16"}}, ConfigError, "would round small steps away"),
    ({"evaluation": {"keep": "best"}}, ConfigError, "evaluation.keep=best needs evaluation.every"),
    (
        {"evaluation": {"layers": 9}, "task": {"type": "masked"}},
        ConfigError,
        "evaluation.layers reads states of rows with one label",
    ),
    ({"method": "meta", "learner": {"dropout": True}}, ConfigError, "which dropout would draw anew; set learner.dropout=false"),
    (
        {"method": "dml", "lesson": {"loss": {"pkd": {"layers": [[9, 1]]}}}},
        ConfigError,
        "lesson.loss.pkd: layers of pkd: (9, 1)",
    ),
    ({"method": "kdd"}, ConfigError, "method is 'kdd'; expected one of"),
    ({"teacher": {"model": "TEACHER", "lora": {}}}, ConfigError, "teacher.lora trains a teacher"),
    ({"data": {"max_tokens": 9999}}, ConfigError, "data.max_tokens 9999 is more than student.model reads"),
    ({"method": "takd", "lesson": {"assistants": [{"model": "x", "steps": 6}]}}, ConfigError, "no step of run.steps 6"),
    ({"method": "rco", "lesson": {"before": ["missing/model/path"]}}, ModelError, "lesson.before.0: no model directory"),
    (
        {"learner": {"batch_rows": 15}, "cluster": {"roles": "ray", "learner": {"ranks": 2}}},
        ConfigError,
        "is not divided by cluster.learner.ranks 2",
    ),
]


@pytest.mark.parametrize(("changes", "kind", "part"), REFUSED, ids=[part[:40] for *_, part in REFUSED])
def test_bad_input_is_a_sentence_before_anything_starts(
    folder: Path, changes: dict[str, Any], kind: type[Exception], part: str
) -> None:
    settings = lesson(folder, changes.get("method", "kd"))
    teacher = str(folder / "teacher/final")
    for key, value in changes.items():
        merged = isinstance(value, dict) and isinstance(settings.get(key), dict) and key != "student" and "type" not in value
        settings[key] = settings[key] | value if merged else value
    if changes.get("lesson") == {"assistants": [NARROW]}:
        settings["lesson"] = {"assistants": [NARROW | {"tokenizer": str(folder / "tokenizer")}]}
    if isinstance(settings["data"].get("validation"), dict) and settings["data"]["validation"]["path"] == "VALID":
        settings["data"]["validation"]["path"] = str(folder / "valid.jsonl")
    if isinstance(settings.get("teacher"), dict):
        settings["teacher"] = settings["teacher"] | {"model": teacher}
    with pytest.raises(kind) as error:
        asyncio.run(run_stage(load(write(folder, settings, "refused"))))
    assert part in str(error.value), error.value
    assert not (folder / "refused").exists()


def broken(folder: Path, kind: str) -> str:
    """The teacher without its head, or with a tokenizer that has the same words at other ids."""
    path = folder / kind
    shutil.copytree(folder / "teacher/final", path, dirs_exist_ok=True)
    file = path / ("config.json" if kind == "headless" else "tokenizer.json")
    settings = json.loads(file.read_text())
    if kind == "headless":
        settings["architectures"] = ["BertModel"]
    else:
        words = settings["model"]["vocab"]
        words["good"], words["bad"] = words["bad"], words["good"]
    file.write_text(json.dumps(settings))
    return str(path)


@pytest.mark.parametrize(
    ("method", "kind", "section", "part"),
    [
        ("kd", "headless", "teacher", "teacher.model has no head for a task of type classes, and is not trained"),
        ("rco", "headless", "before", "lesson.before.0 has no head for a task of type classes, and is not trained"),
        ("rco", "stranger", "before", "lesson.before.0 has another tokenizer than teacher.model, whose rows it reads"),
        ("takd", "stranger", "assistants", "lesson.assistants.0.model has another tokenizer than student.model"),
    ],
)
def test_models_that_would_read_or_answer_at_random_are_refused(
    folder: Path, method: str, kind: str, section: str, part: str
) -> None:
    path = broken(folder, kind)
    changes = {
        "teacher": {"teacher": {"model": path}, "student": {"model": str(folder / "teacher/final")}},
        "before": {"lesson": {"type": "sequence", "before": [path]}},
        "assistants": {"lesson": {"type": "assistants", "assistants": [{"model": path, "steps": 2}]}},
    }
    with pytest.raises(ModelError) as error:
        plan_teach(load(write(folder, lesson(folder, method, **changes[section]), "refused")))  # type: ignore[arg-type]
    assert part in str(error.value)


def test_a_teacher_without_a_head_may_learn_one(folder: Path) -> None:
    settings = lesson(folder, "online", teacher={"model": broken(folder, "headless")}, student={"init": {"layers": [0]}})
    assert plan_teach(load(write(folder, settings, "learns"))).lines  # type: ignore[arg-type]


def test_rows_are_shown_as_the_student_reads_them(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = plan_teach(load(write(folder, lesson(folder, "kd"), "shown")))  # type: ignore[arg-type]
    assert any("student: layers 0, 2 of" in line for line in plan.lines) and any("disk" in line for line in plan.lines)
    show_labelled(plan, 2, ids=True)
    shown = capsys.readouterr().out
    assert "[train 1]" in shown and "[validation 2]" in shown and "[CLS][2]" in shown
    assert "label: positive" in shown or "label: negative" in shown
