"""Every relative link of the documentation leads to a file and, where it names one, to a heading."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    page for folder in ("", "configs/**", "minidist/**", "tests/**") for page in ROOT.glob(f"{folder}/*.md".lstrip("/"))
)
LINK = re.compile(r"\[[^\]\[]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    titles = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title) for title in HEADING.findall(page.read_text(encoding="utf-8")))
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in LINK.findall(page.read_text(encoding="utf-8")):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{link}: no file {path}"
        if anchor:
            assert anchor in anchors(target), f"{link}: no heading #{anchor} in {target.relative_to(ROOT)}"


def test_the_pages_are_found() -> None:
    found = {str(page.relative_to(ROOT)) for page in PAGES}
    assert {"README.md", "configs/REFERENCE.md", "minidist/methods/README.md", "tests/benchmarks/README.md"} <= found
