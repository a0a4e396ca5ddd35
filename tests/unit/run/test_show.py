"""Answers of a run, as they are shown."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from minidist.config.data import RenderConfig
from minidist.data.rendering import Renderer, character_tokenizer
from minidist.errors import DataError
from minidist.run.show import DIFFERENCE, SURPRISE, read_samples, show
from tests.support.tiny import answer_of

ROW: dict[str, Any] = {
    "prompt": "ask",
    "answer": "ab\nc\x1b[31m",
    "finish": "stop",
    "tokens": [1, 2, 3, 4],
    "logprobs": [-0.5, -4.0, -0.25, -0.25],
    "teacher_logprobs": [-3.0, -0.5, -0.25, -0.5],
    "pieces": ["a", "b", "\n", "c\x1b[31m"],
    "version": 3,
}


def written(directory: Path, *rows: dict[str, Any], step: int = 20) -> Path:
    (directory / "rollouts").mkdir(exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (directory / "rollouts" / f"step_{step:06d}.jsonl").write_text(lines)
    return directory


def shown(directory: Path, *, colours: bool = False, rows: int = 8, html: Path | None = None) -> str:
    console = Console(force_terminal=colours, color_system="truecolor" if colours else None, width=200, no_color=not colours)
    with console.capture() as captured:
        show(directory, step=None, rows=rows, html=html, console=console)
    return captured.get()


def byte_renderer() -> Renderer:
    """One token a byte, and one of a blank and the first byte of €: letters beyond ASCII are spread over several."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: index for index, letter in enumerate([*alphabet, "Ġâ", "<eos>"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("Ġ", "â")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    return Renderer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>"), RenderConfig())


def word_renderer() -> Renderer:
    """Words with the blank before them, as sentencepiece has them: decoding strips the first blank."""
    words = {word: index for index, word in enumerate(["<eos>", "\u2581one", "\u2581two", "\u2581", "s"])}
    tokenizer = Tokenizer(models.BPE(words, [], unk_token="<eos>"))
    tokenizer.decoder = decoders.Metaspace()  # type: ignore[assignment]
    return Renderer(PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>"), RenderConfig())


def test_pieces_join_to_the_text() -> None:
    renderer = Renderer(character_tokenizer("12 ="), RenderConfig())
    assert renderer.pieces(answer_of(renderer, "1 2=")) == ["1", " ", "2", "=", "<eos>"]
    assert renderer.pieces(renderer.prompt("")) == []


def test_a_letter_of_several_tokens_is_in_the_last_of_them() -> None:
    renderer = byte_renderer()
    assert renderer.pieces(renderer.prompt("a é€b")) == ["a", " ", "\ufffd", "é", "\ufffd", "\ufffd", "€", "b"]
    assert renderer.pieces(renderer.prompt(" €b")) == [" \ufffd", "\ufffd", "€", "b"]
    assert renderer.pieces(renderer.prompt("€")[:2]) == ["\ufffd", "\ufffd"]


def test_bytes_that_are_not_text_lose_nothing() -> None:
    renderer = byte_renderer()
    lone = renderer.prompt("€")[1:2]
    tokens = np.concatenate([lone, renderer.prompt("ab"), lone, lone, renderer.prompt("c")])
    assert "".join(renderer.pieces(tokens)) == "\ufffdab\ufffd\ufffdc" == renderer.decode(tokens)


def test_blanks_that_decoding_strips_are_in_their_pieces() -> None:
    renderer = word_renderer()
    tokens = np.array([1, 2, 4, 3, 1, 0])
    assert renderer.pieces(tokens) == ["one", " two", "s", " ", " one", "<eos>"]
    assert renderer.decode(tokens[:-1]) == "one twos  one"


def test_tokens_that_the_teacher_chose_are_counted(tmp_path: Path) -> None:
    row = ROW | {"logprobs": [-1.0, None, -2.0, None], "coins": [0, 1, 0, 1], "teacher_logprobs": None}
    text = shown(written(tmp_path, row))
    assert "4 tokens (2 chosen by the teacher), finish stop, mean log q -1.500 nats" in text


def test_values_in_a_pipe_are_numbers_after_their_tokens(tmp_path: Path) -> None:
    text = shown(written(tmp_path, ROW))
    assert "\x1b" not in text
    assert "\na[+2.5]b[-3.5]\nc\ufffd[31m\n" in text
    assert "mean log q -1.250, mean log p -1.062, mean difference -0.188 nats" in text
    assert "largest gaps: 'b' at 1 (-3.50), 'a' at 0 (+2.50), 'c\\x1b[31m' at 3 (+0.25)" in text
    assert "4 tokens, finish stop" in text


def test_values_on_a_terminal_are_colours(tmp_path: Path) -> None:
    """Orange where the student finds the token likelier, blue where the teacher does, grey where they agree."""
    text = shown(written(tmp_path, ROW), colours=True)
    assert "48;2;70;155;225mb" in text
    assert "48;2;225;225;225m↵" in text
    red, green, blue = bytes.fromhex(DIFFERENCE.colour(2.5)[1:])
    assert red > green and red > blue and f"48;2;{red};{green};{blue}ma" in text
    assert "\x1b[31m" not in text, "an answer moved the terminal"
    assert "[-3.5]" not in text


def test_colours_saturate_at_the_ends_of_the_scale() -> None:
    assert DIFFERENCE.colour(3) == DIFFERENCE.colour(30) == DIFFERENCE.colour(float("inf"))
    assert DIFFERENCE.colour(0) == SURPRISE.colour(0) == DIFFERENCE.colour(float("nan"))
    assert DIFFERENCE.colour(1) != DIFFERENCE.colour(-1)


def test_without_a_teacher_the_students_surprise_is_shown(tmp_path: Path) -> None:
    text = shown(written(tmp_path, ROW | {"teacher_logprobs": None}))
    assert "no log-probabilities of the teacher were recorded" in text
    assert "ab[+4.0]\n" in text and "largest gaps" not in text


def test_answers_from_a_data_set_and_of_older_runs_have_no_values(tmp_path: Path) -> None:
    older = {key: value for key, value in ROW.items() if key not in ("pieces", "teacher_logprobs")}
    text = shown(written(tmp_path, ROW | {"logprobs": None}, older))
    assert "no log-probabilities were recorded" in text and "no texts of tokens were recorded" in text


def test_the_latest_step_is_shown_up_to_the_row_limit(tmp_path: Path) -> None:
    written(tmp_path, ROW | {"prompt": "old"}, step=9)
    text = shown(written(tmp_path, ROW, ROW | {"prompt": "second"}, step=100), rows=1)
    assert "step_000100.jsonl: 1 of 2 answers" in text and "old" not in text and "second" not in text


def test_the_page_shows_the_same_and_escapes_answers(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    shown(written(tmp_path, ROW | {"answer": "<script>", "prompt": "<script>"}), html=page)
    html = page.read_text()
    assert "background-color: #469be1" in html and "<script>" not in html and "largest gaps" in html


def test_missing_and_damaged_files_are_refused_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no run directory at"):
        read_samples(tmp_path / "none")
    with pytest.raises(DataError, match=r"holds no rollouts/step_\*.jsonl"):
        read_samples(tmp_path)
    with pytest.raises(DataError, match="has no rollouts of step 7; it has 1, 20"):
        read_samples(written(written(tmp_path, ROW, step=1), ROW), 7)
    with pytest.raises(DataError, match=r"no directory .*none for the page x.html"):
        show(tmp_path, step=None, rows=1, html=tmp_path / "none" / "x.html")
    with pytest.raises(DataError, match=r"line 2 has columns of different lengths"):
        read_samples(written(tmp_path, ROW, ROW | {"logprobs": [0.0]}))
    (tmp_path / "rollouts" / "step_000020.jsonl").write_text('{"prompt": "a", "ans')
    with pytest.raises(DataError, match=r"line 1 is not a recorded rollout"):
        read_samples(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "[1]",
        "null",
        "[" * 100_000,
        json.dumps(ROW | {"tokens": 3}),
        json.dumps(ROW | {"answer": None}),
        json.dumps(ROW | {"logprobs": ["a"]}),
        json.dumps(ROW | {"coins": {"a": 1}}),
        json.dumps(ROW | {"finish": ["stop"]}),
    ],
)
def test_a_line_of_another_shape_is_refused(tmp_path: Path, line: str) -> None:
    directory = written(tmp_path, ROW)
    next((directory / "rollouts").glob("*.jsonl")).write_text(line + "\n")
    with pytest.raises(DataError, match=r"step_\d+.jsonl: line 1 is not a recorded rollout.*; name another step"):
        read_samples(directory)


def test_bytes_are_refused_and_directories_are_no_rollouts(tmp_path: Path) -> None:
    directory = written(tmp_path, ROW)
    (directory / "rollouts" / "step_000999.jsonl").mkdir()
    file, _ = read_samples(directory)
    assert not file.name.startswith("step_000999")
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match=r"cannot be read .*; name another step"):
        read_samples(directory)


def test_the_end_of_an_answer_cannot_move_the_cursor(tmp_path: Path) -> None:
    console = Console(file=io.StringIO(), width=200)
    show(written(tmp_path, ROW | {"finish": "\x1b[2J"}), step=None, rows=1, html=None, console=console)
    assert "\x1b" not in console.file.getvalue()  # type: ignore[attr-defined]
