"""What a shell offers, by the protocol with which it asks: verbs, files, keys and values, at once."""

import os
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from pydantic import BaseModel

from minidist.config import CONFIGS
from minidist.stages import STAGES
from minidist.stages.completion import files, overrides
from tests.unit.test_imports import HEAVY

COMMAND = "import sys; sys.argv[0] = 'minidist'; from minidist.cli import main; main()"


def asked(*words: str, shell: str = "bash", importtime: bool = False) -> "subprocess.CompletedProcess[str]":
    """The answer to a shell whose cursor is in the last word."""
    environment = os.environ | {"_MINIDIST_COMPLETE": f"complete_{shell}", "COMP_WORDS": " ".join(("minidist", *words))}
    environment |= {"COMP_CWORD": str(len(words)), "_TYPER_COMPLETE_ARGS": " ".join(("minidist", *words))}
    options = ["-X", "importtime"] if importtime else []
    return subprocess.run([sys.executable, *options, "-c", COMMAND], env=environment, capture_output=True, text=True)


def offered(*words: str) -> list[str]:
    return asked(*words).stdout.split()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/mine.yaml").write_text("stage: distill\n")
    (tmp_path / "configs/notes.txt").touch()
    return tmp_path


def test_verbs_files_keys_and_values_are_offered(folder: Path) -> None:
    assert offered("dis") == ["distill"]
    assert offered("distill", "con") == ["configs/mine.yaml"]
    assert offered("distill", "configs/mine.yaml", "learner.optimizer.w") == [
        "learner.optimizer.weight_decay=",
        "learner.optimizer.warmup_steps=",
    ]
    assert offered("distill", "configs/mine.yaml", "objective.type", "=", "skew") == ["skew_reverse_kl", "skew_forward_kl"]
    assert '"rollout.engine=hf"' in asked("distill", "configs/mine.yaml", "rollout.eng", shell="zsh").stdout


def test_an_answer_is_fast_and_light(folder: Path) -> None:
    words = ("distill", "configs/mine.yaml", "objective.ty")
    done = asked(*words, importtime=True)
    loaded = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines()}
    assert "minidist.stages.completion" in loaded and "minidist.config" not in loaded
    assert not {name.split(".")[0] for name in loaded} & {*HEAVY, "yaml"}
    assert statistics.median(processor_seconds(*words) for _ in range(3)) < 0.6


def processor_seconds(*words: str) -> float:
    """Work of the processor for an answer: other work on the machine does not count."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    asked(*words)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_one_candidate_alone_does_not_end_the_word() -> None:
    assert [key for key, _ in overrides("distill", None, [], "learner.optimizer.lr")] == [
        "learner.optimizer.lr=",
        "learner.optimizer.lr=1e-05",
    ]
    assert len(overrides("distill", None, [], "learn")) > 3
    assert [key for key, _ in overrides("distill", None, [], "run.tens")] == [
        "run.tensorboard=",
        "run.tensorboard=true",
        "run.tensorboard=false",
    ]


def test_the_stage_of_the_file_decides(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    file.write_text("# a comment\nstage: teach  # the stage\n")
    assert "lesson." in dict(overrides("check", file, [], "le"))
    file.write_text("stage: sft\n")
    assert "lesson." not in dict(overrides("check", file, [], "le"))
    assert dict(overrides("plan", None, [], "rollout.max_new_tokens="))  # of distill
    file.write_bytes(b"\xff\xfe")
    assert dict(overrides("teach", file, [], "lesson.ty"))


def test_named_sections_are_entered_by_any_name() -> None:
    found = dict(overrides("distill", None, [], "streams.plain.da"))
    assert "streams.plain.data.path=" in found
    assert overrides("distill", None, [], "streams.plain.nothing") == overrides("distill", None, [], "nothing.at.all") == []


def test_directories_are_entered(folder: Path) -> None:
    assert files("conf") == files("configs/") == [("configs/mine.yaml", "")]
    (folder / "other").mkdir()
    assert files("") == [("configs/", ""), ("other/", "")]
    assert files("nowhere/a") == []


def keys(config: type[BaseModel], prefix: str = "") -> set[str]:
    """The dotted keys of the sections that have one class."""
    found = set()
    for name, field in config.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            found |= keys(kind, f"{prefix}{name}.")
        elif get_origin(kind) is Literal or kind in (int, float, str, bool):
            found.add(prefix + name)
    return found - {"stage"}


@pytest.mark.parametrize("stage", CONFIGS)
def test_every_key_of_the_classes_is_offered_and_their_literals_too(stage: str, tmp_path: Path) -> None:
    """What is read from the sources is what pydantic knows of the classes."""
    file = tmp_path / "a.yaml"
    file.write_text(f"stage: {stage}\n")
    verb = STAGES[stage].verb
    for key in keys(CONFIGS[stage]):
        found = [name for name, _ in overrides(verb, file, [], key)]
        assert f"{key}=" in found, key
        values: Any = field_of(CONFIGS[stage], key).annotation
        if get_origin(values) is Literal:
            assert {f"{key}={value}" for value in get_args(values)} <= {
                name for name, _ in overrides(verb, file, [], f"{key}=")
            }


def field_of(config: type[BaseModel], key: str) -> Any:
    *path, name = key.split(".")
    for part in path:
        config = config.model_fields[part].annotation  # type: ignore[assignment]
    return config.model_fields[name]
