"""Every published method cites its source where it is declared, and a run's configuration gives the sources of what it uses."""

import re
from pathlib import Path
from typing import Any

import pytest

from minidist.config import CONFIGS, methods
from minidist.config.citations import Citation, citations, cited, of_method
from tests.support.config import TREES

UNPUBLISHED = {"sft", "ce"}
PAGE = Path(methods.DISTILL / "README.md").read_text(encoding="utf-8")


def sources(stage: str, **changes: Any) -> list[str]:
    return [each.name for each in citations(CONFIGS[stage].model_validate(TREES[stage] | changes))]


@pytest.mark.parametrize("folder", [methods.DISTILL, methods.TEACH], ids=["distill", "teach"])
def test_every_published_method_has_a_source(folder: Path) -> None:
    assert {name for name in methods.names(folder) if not of_method(name, folder)} == UNPUBLISHED & set(methods.names(folder))


@pytest.mark.parametrize("name", [name for name in methods.names() if f"`{name}`](" in PAGE])
def test_a_method_cites_what_its_page_cites(name: str) -> None:
    row = next(line for line in PAGE.splitlines() if f"[`{name}`]" in line)
    assert set(re.findall(r"arXiv:[\d.]+\d", row)) <= {each.name for each in of_method(name)}


def test_authors_and_addresses_are_read_from_a_text() -> None:
    text = "Two ways (First & Second,\n    arXiv:1706.00384; Third et al., arXiv:2009.12683), and (Lab, https://a.org/b/c-d)."
    first = [Citation("First & Second", "https://arxiv.org/abs/1706.00384")]
    assert cited(text) == [
        *first,
        Citation("Third et al.", "https://arxiv.org/abs/2009.12683"),
        Citation("Lab", "https://a.org/b/c-d"),
    ]
    assert cited("as its code does (arXiv:2402.17110)") == [Citation("", "https://arxiv.org/abs/2402.17110")]


def test_a_run_cites_its_method_and_its_losses_once_each() -> None:
    assert sources("distill", objective={"type": "reverse_kl"}) == ["arXiv:2306.08543"]
    assert sources("distill", method="gkd", objective={}) == ["arXiv:2306.13649"]
    lora = {"model": "m", "lora": {}}
    assert sources("distill", objective={"type": "forward_kl"}, student=lora) == ["arXiv:2106.09685"]
    assert "arXiv:2305.09651" in sources("teach", method="lgtm", teacher={"model": "t"}, **feedback())
    assert sources("sft") == []


def feedback() -> dict[str, Any]:
    return {"data": {"train": {"path": "train.jsonl"}, "feedback": {}}}
