"""teacher.context: a template, a section, or a file with the template."""

from pathlib import Path

import pytest

from minidist.config import dump
from minidist.config.context import ContextConfig
from tests.support.config import assert_refused, load_stage

SHORT = 'teacher.context="{{ student_prompt }} {{ answer }}"'


def test_a_text_is_the_prompt_of_the_section(tmp_path: Path) -> None:
    config = load_stage(tmp_path, "distill", SHORT)
    assert config.teacher.context == ContextConfig(prompt="{{ student_prompt }} {{ answer }}")


def test_a_file_is_read_once_and_recorded_as_its_text(tmp_path: Path) -> None:
    file = tmp_path / "context.jinja"
    file.write_text("{{ student_prompt }}\nHint: {{ answer }}\n")
    for override in (f"teacher.context={file}", f"teacher.context.prompt={file}"):
        config = load_stage(tmp_path, "distill", override)
        assert dump(config)["teacher"]["context"]["prompt"] == "{{ student_prompt }}\nHint: {{ answer }}\n"


def test_without_a_context_the_record_is_null(tmp_path: Path) -> None:
    assert dump(load_stage(tmp_path, "distill"))["teacher"]["context"] is None


REFUSED = [
    (["teacher.context=Think."], ["names no column", "{{ student_prompt }}", "teacher.context.system"]),
    (
        ["teacher.context=/nowhere/c.jinja"],
        ["/nowhere/c.jinja cannot be read: No such file", "write the template itself"],
    ),
    (["teacher.context.promt=x"], ["unknown key teacher.context.promt", "did you mean prompt?"]),
    (
        ["teacher.context={}", "teacher.placement=learner", "teacher.prompt={}"],
        ["teacher.placement=actor", "leave teacher.context"],
    ),
    (
        ["teacher.context={}", "objective.type=supervised", "prefix={student: 0, dataset: 1}"],
        ["nothing asks the teacher", "leave teacher.context out"],
    ),
]


@pytest.mark.parametrize(("overrides", "parts"), REFUSED)
def test_what_a_context_cannot_be_is_refused_in_a_sentence(tmp_path: Path, overrides: list[str], parts: list[str]) -> None:
    assert_refused(tmp_path, "distill", overrides, parts)


@pytest.mark.parametrize("stage", ["score", "evaluate"])
def test_scoring_and_evaluating_take_a_context_too(tmp_path: Path, stage: str) -> None:
    assert load_stage(tmp_path, stage, SHORT).teacher.context is not None


@pytest.mark.parametrize("backend", ["backend=vllm", "backend=server", "backend=cache"])
def test_every_backend_that_reads_rows_takes_a_context(tmp_path: Path, backend: str) -> None:
    needed = {
        "backend=server": ["teacher.server.url=http://a:1"],
        "backend=cache": ["teacher.cache=c", "prefix={student: 0, dataset: 1}"],
    }
    payload = [] if backend == "backend=cache" else ["teacher.payload=top_k"]
    config = load_stage(tmp_path, "distill", SHORT, f"teacher.{backend}", *payload, *needed.get(backend, []))
    assert config.teacher.context is not None
