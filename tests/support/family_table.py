"""The table of families: `python -m tests.support.family_table` writes it; with a family and a column, it prints one cell.

The fast columns are tried each time. The slow ones, with vLLM, are tried only as single cells, in processes of their own, and
kept in tests/support/families.json.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from minidist.errors import MinidistError
from tests.support.families import FAMILIES
from tests.support.family_columns import FAST, SLOW

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "configs" / "FAMILIES.md"
RECORD = Path(__file__).with_name("families.json")
"""The slow cells: family to column to cell."""
Cells = Mapping[str, Mapping[str, str]]


def cell(family: str, column: str) -> str:
    """`yes`, or the sentence that refuses; a family that computes something else raises AssertionError."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            (FAST | SLOW)[column](family, Path(folder))
        except MinidistError as error:
            return str(error)
    return "yes"


def cell_in_process(family: str, column: str) -> str:
    """The cell, from a process of its own: vLLM replaces classes of transformers in the process where it runs."""
    command = [sys.executable, "-m", "tests.support.family_table", family, column]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    found = re.search(r"^CELL (.*)$", done.stdout, re.MULTILINE)
    assert found is not None, done.stderr[-2000:]
    return found[1]


def fast_cells() -> Cells:
    return {family: {column: cell(family, column) for column in FAST} for family in FAMILIES}


def slow_cells() -> Cells:
    return json.loads(RECORD.read_text(encoding="utf-8"))


def page(cells: Cells) -> str:
    """The table, and under it each sentence that refuses."""
    columns = [*FAST, *SLOW]
    sentences: dict[str, int] = {}
    lines = [f"| | {' | '.join(columns)} |", "|---|" + "---|" * len(columns)]
    for family in FAMILIES:
        row = [cells[family][column] for column in columns]
        shown = [each if each == "yes" else f"({sentences.setdefault(each, len(sentences) + 1)})" for each in row]
        lines.append(f"| {family} | {' | '.join(shown)} |")
    described = [f"- **{name}:** {check.__doc__}" for name, check in (FAST | SLOW).items()]
    refused = [f"{number}. {sentence}" for sentence, number in sentences.items()]
    return "\n".join([_HEAD, *lines, "", *described, "", "Refused:", "", *refused, "", _FOOT]) + "\n"


def read_page() -> dict[str, dict[str, str]]:
    """The cells of the page."""
    text = PAGE.read_text(encoding="utf-8")
    sentences = dict(re.findall(r"^(\d+)\. (.+)$", text, re.MULTILINE))
    columns, _, *lines = [line.strip("|").split("|") for line in text.splitlines() if line.startswith("|")]
    rows = [[each.strip() for each in line] for line in lines]
    names = [each.strip() for each in columns[1:]]
    return {
        family: dict(zip(names, [sentences.get(each.strip("()"), each) for each in row], strict=True)) for family, *row in rows
    }


_HEAD = """# Families of models

What has been tried on each family, by `model_type`, with a tiny random model of it: hidden size 64, two layers, few experts,
sliding windows shorter than the text, float32. A cell is `yes`, or the number of the sentence that refuses it.
"""
_FOOT = """`gemma3` is the model that also reads images, of which the language model is trained; `gemma3_text` is the language
model alone. `falcon_h1`, `lfm2` and `qwen3_next` mix attention with state spaces, convolutions and linear attention.

All of it ran on a CPU, with plain torch as the learner, transformers 5.19 and vLLM 0.32; nothing ran on a GPU. `make check`
tries all columns but the three with vLLM, which `make soak` tries, and `make test` for a few families. A family that is not in
the table may work: `minidist check` compares its logits with its head's, the learner pads its rows in place of packing them,
and each publication is proved by log-probabilities."""


if __name__ == "__main__":
    if len(sys.argv) == 3:
        print(f"CELL {cell(*sys.argv[1:])}", flush=True)
    else:
        slow = slow_cells()
        PAGE.write_text(page({family: {**found, **slow[family]} for family, found in fast_cells().items()}), encoding="utf-8")
