"""`minidist check --show`: rows as the models read them, with their labels."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from minidist import cli
from minidist.config import load
from minidist.preflight.plan import plan_sft
from minidist.preflight.rows import show_rows
from tests.support.chat import chat_tokenizer

TURNS = [
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "a\x1b[2Jb"},
    {"role": "assistant", "content": "four"},
]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    chat_tokenizer().save_pretrained(tmp_path / "tokenizer")
    rows = [{"m": TURNS}, {"m": TURNS[:2]}, {"m": [TURNS[0], {"role": "assistant", "content": "x<|im_end|>y"}]}]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    architecture = {"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    tree: dict[str, Any] = {
        "stage": "sft",
        "run": {"directory": str(tmp_path / "run"), "steps": 1},
        "student": {"tokenizer": str(tmp_path / "tokenizer"), "architecture": architecture},
        "data": {"train": {"path": str(tmp_path / "rows.jsonl"), "messages": "m"}},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree))
    return tmp_path / "run.yaml"


def shown(config: Path, count: int, **options: Any) -> str:
    plan: Any = plan_sft(load(config))  # type: ignore[arg-type]
    console = Console(file=io.StringIO(), width=200, soft_wrap=True, **options.pop("console", {}))
    show_rows(plan, count, console=console, **options)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_labels_are_marked_in_each_row(config: Path) -> None:
    text = shown(config, 2)
    assert "[train 1] 58 tokens, 9 labels" in text and "[train 3]" not in text
    assert "<|im_start|>user↵\none<|im_end|>↵\n<|im_start|>assistant↵\n⟦two<|im_end|>⟧↵\n<|im_start|>user" in text
    assert "⟦four<|im_end|>⟧↵\n" in text and text.count("⟦") == 3 + 1  # three turns, and the legend
    assert "\x1b" not in text and "a\ufffd[2Jb" in text


def test_ids_are_shown_on_demand_and_colours_on_a_terminal(config: Path) -> None:
    end = chat_tokenizer().convert_tokens_to_ids("<|im_end|>")
    assert f"<|im_end|>[{end}]⟧" in shown(config, 1, ids=True)
    coloured = shown(config, 1, console={"force_terminal": True, "color_system": "truecolor"})
    assert "\x1b[38;2;0;0;0;48;2;143;209;158mt" in coloured and "⟦two" not in coloured


def test_the_plan_counts_special_tokens_that_rows_write_out(config: Path) -> None:
    assert any(
        "train: 3 rows" in line and "1 texts hold special tokens written out" in line for line in plan_sft(load(config)).lines
    )


def test_the_command_shows_rows_and_then_says_that_it_is_ready(
    config: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["minidist", "check", str(config), "--show", "1"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capsys.readouterr().out
    assert ended.value.code in (None, 0) and "[train 1]" in printed and printed.rstrip().endswith("ready for minidist sft")
