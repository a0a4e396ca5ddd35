"""configs/REFERENCE.md is what the field docstrings say, for every key of every stage."""

from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest

from minidist.config import CONFIGS
from minidist.config.base import Section
from minidist.config.reference import reference

PAGE = Path(__file__).parents[3] / "configs" / "REFERENCE.md"


def sections_in(annotation: Any) -> tuple[type[Section], ...]:
    """The sections inside a type, through unions, lists and mappings."""
    if isinstance(annotation, type) and issubclass(annotation, Section):
        return (annotation,)
    return tuple(dict.fromkeys(section for part in get_args(annotation) for section in sections_in(part)))


def table(title: str) -> str:
    """The part of the page under a heading."""
    return f"\n{reference()}".partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def all_sections(section: type[Section]) -> set[type[Section]]:
    """A section and every section below it."""
    found = {section}
    for field in section.model_fields.values():
        for child in sections_in(field.annotation):
            found |= all_sections(child)
    return found


def documented(section: type[Section]) -> list[str]:
    """The keys of a section, except those with a single value, which only name the section."""
    fixed = {name for name, field in section.model_fields.items() if get_origin(field.annotation) is Literal}
    return [
        name for name in section.model_fields if name not in fixed or len(get_args(section.model_fields[name].annotation)) > 1
    ]


SECTIONS = set().union(*(all_sections(config) for config in CONFIGS.values()))


def test_the_committed_page_is_the_generated_one() -> None:
    assert PAGE.read_text(encoding="utf-8") == reference(), (
        "configs/REFERENCE.md is out of date; run: python -m minidist.config.reference > configs/REFERENCE.md"
    )


def test_every_key_of_every_section_is_on_the_page() -> None:
    tables = [part.partition("\n")[2] for part in reference().split("\n## ")[1:]]
    keys = [[line.split("`")[1] for line in table.splitlines() if line.startswith("| `")] for table in tables]
    assert sorted(keys) == sorted(list(section.model_fields) for section in SECTIONS)


def test_every_field_says_what_it_means() -> None:
    silent = {
        f"{section.__name__}.{name}"
        for section in SECTIONS
        for name in documented(section)
        if not section.model_fields[name].description and len(sections_in(section.model_fields[name].annotation)) != 1
    }
    assert not silent, "fields without a docstring"


ROWS = [
    ("`rollout`", "| `top_p` | number > 0 and ≤ 1 | `1.0` | Nucleus sampling"),
    ("`stage`: distill", "| `student` | [`student`](#student) | **required** | The trained model: from a checkpoint"),
    ("`stage`: distill", "| `rollout` | [`rollout`](#rollout) | its defaults | How the student writes"),
    ("`stage`: distill", "| `streams` | NAME: [`streams.NAME`](#streamsname) | `{}` | Further text"),
    ("`streams.NAME`", "[supervised](#objective-supervised) | `supervised` | Loss of the stream."),
    ("`streams.NAME`", "| `data` | [`data.train`](#datatrain) or null | `null` | Rows with answer"),
    ("`objective`: minillm", "| `preset` | `paper`, `lmops` | `paper` | Defaults of the other fields"),
    ("`learner`: Learner", "| `zero_stage` | `0`, `1`, `2`, `3` | `2` | What DeepSpeed partitions"),
    ("`learner.optimizer`", "| `betas` | [number ≥ 0 and < 1, number ≥ 0 and < 1] | `[0.9, 0.95]` | Decay rates"),
    ("`teacher.server`", "| `url` | text matching `^https?://` | **required** | Address"),
    ("`teacher`: CacheTeacher", "| `cache` | path | **required** | Directory"),
    ("`teacher`: HFTeacher", "| `payload` | `sampled`, `top_k`, `hidden` | `hidden` | What the teacher returns"),
    ("`data.questions.NAME`", "| `choices` | list of text or text | **required** | The choices"),
    ("`teachers.NAME`: mixture", "| `weights` | list of number > 0, length ≥ 1 | `[0.5, 0.3, 0.2]` | Weight of each mode"),
]


@pytest.mark.parametrize(("title", "row"), ROWS, ids=[row.split("|")[1] for _, row in ROWS])
def test_a_row_says_type_range_default_and_meaning(title: str, row: str) -> None:
    assert row in table(title)


def test_members_of_a_union_have_links() -> None:
    (row,) = (line for line in table("`stage`: distill").splitlines() if line.startswith("| `teacher` |"))
    members = ("HFTeacher", "VLLMTeacher", "ServerTeacher", "CacheTeacher", "PromptedTeacher")
    assert " or ".join(f"[{name}](#teacher-{name.lower()})" for name in members) in row


def test_a_section_says_where_else_it_stands_and_what_may_change_on_resume() -> None:
    assert "Also at `streams.NAME.objective`, " in table("`objective`: jsd") and "`divergences.NAME`." in table(
        "`objective`: jsd"
    )
    (row,) = (line for line in table("`run`: Run").splitlines() if line.startswith("| `directory` |"))
    assert row.endswith("It may change when a run resumes. |")
