"""configs/REFERENCE.md is what the field docstrings say, for every key of every stage."""

from pathlib import Path
from typing import Literal, get_args, get_origin

from pydantic import Field

from minidist.config import CONFIGS
from minidist.config.base import Section
from minidist.config.reference import reference, sections_in

PAGE = Path(__file__).parents[3] / "configs" / "REFERENCE.md"


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
    lines = reference().splitlines()
    for section in SECTIONS:
        for name in documented(section):
            assert any(line.startswith(f"| `{name}` |") for line in lines), f"{section.__name__}.{name}"


def test_every_field_says_what_it_means() -> None:
    silent = {
        f"{section.__name__}.{name}"
        for section in SECTIONS
        for name in documented(section)
        if not section.model_fields[name].description and len(sections_in(section.model_fields[name].annotation)) != 1
    }
    assert not silent, "fields without a docstring"


def test_sections_are_found_inside_unions_and_mappings() -> None:
    class Left(Section):
        size: int = Field(default=1, ge=1)

    class Right(Section):
        size: int = 2

    assert sections_in(dict[str, Left | Right] | None) == (Left, Right)
    assert sections_in(list[int]) == ()
