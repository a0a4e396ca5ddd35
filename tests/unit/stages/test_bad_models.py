"""What others' model directories hold: `minidist check` refuses in one sentence, with code 2, before weights are loaded."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from minidist import cli
from minidist.data.rendering import character_tokenizer
from minidist.errors import ModelError
from minidist.models import files
from minidist.models.files import check_weights
from minidist.preflight import precision

Change = Callable[[Path], Any]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with its tokenizer, and a row."""
    root = tmp_path_factory.mktemp("sound")
    shape = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    LlamaForCausalLM(LlamaConfig(vocab_size=5, max_position_embeddings=64, **shape)).save_pretrained(root / "model")
    character_tokenizer("ab=").save_pretrained(root / "model")
    (root / "rows.jsonl").write_text(json.dumps({"question": "ab=", "answer": "ab"}) + "\n")
    return root


def check(
    root: Path, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *overrides: str
) -> tuple[int, str]:
    """Exit code of `minidist check` of a fine-tuning, and its output: one line of errors, or the plan."""
    student = {"model": str(model)}
    data = {"train": {"path": str(root / "rows.jsonl"), "prompt": "{{ question }}", "answer": "{{ answer }}"}, "max_tokens": 20}
    run = {"directory": str(root / "run")}
    (root / "sft.yaml").write_text(yaml.safe_dump({"stage": "sft", "run": run, "student": student, "data": data}))
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)
    monkeypatch.setattr("sys.argv", ["minidist", "check", str(root / "sft.yaml"), *overrides])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    shown = capsys.readouterr()
    if not caught.value.code:
        return 0, shown.out
    assert len(shown.err.splitlines()) == 1 and shown.err.startswith("minidist: ")
    return int(caught.value.code), shown.err


def fields(file: str, **changes: Any) -> Change:
    return lambda path: (path / file).write_text(json.dumps(json.loads((path / file).read_text()) | changes))


def text(file: str, content: str) -> Change:
    return lambda path: (path / file).write_text(content)


def without(file: str) -> Change:
    return lambda path: (path / file).unlink()


def pickled(path: Path) -> None:
    torch.save({}, path / "pytorch_model.bin")
    (path / "model.safetensors").unlink()


def cut(path: Path) -> None:
    whole = (path / "model.safetensors").read_bytes()
    (path / "model.safetensors").write_bytes(whole[:-50])


def sharded(index: Any) -> Change:
    def change(path: Path) -> None:
        (path / "model.safetensors").unlink()
        (path / "model.safetensors.index.json").write_text(json.dumps(index))

    return change


CONFIG, TOKENIZER, SETTINGS = "config.json", "tokenizer.json", "tokenizer_config.json"
CASES: dict[str, tuple[Change, str]] = {
    "pickled": (pickled, "holds its weights as pytorch_model.bin alone, a kind of file that can run code .* convert it"),
    "no weights": (without("model.safetensors"), "holds no weights; expected model.safetensors, or .* set student.model"),
    "empty weights": (
        text("model.safetensors", ""),
        "model.safetensors is not a whole file of tensors .*; copy the model of student.model",
    ),
    "cut weights": (cut, "model.safetensors is not a whole file of tensors .*; copy the model of student.model again"),
    "index list": (sharded([]), "model.safetensors.index.json is of another shape"),
    "index text": (sharded({"weight_map": "x"}), "index.json is of another shape .*; copy the model again"),
    "shard outside": (
        sharded({"weight_map": {"a": "../b.safetensors"}}),
        "names the file '../b.safetensors', outside the model",
    ),
    "pipe": (lambda path: os.mkfifo(path / "vocab.txt"), "vocab.txt is neither a file nor a directory; remove it"),
    "shard missing": (
        sharded({"weight_map": {"a": "b.safetensors"}}),
        "b.safetensors is missing; copy the model of student.model again",
    ),
    "longer tokenizer": (
        lambda path: character_tokenizer("ab=cde").save_pretrained(path),
        r"has 5 rows of embedding, and its tokenizer has ids up to 7; save the model after resize_token_embeddings",
    ),
    "config list": (text(CONFIG, "[]"), "config.json is of another shape .*; correct this file of student.model"),
    "config null": (text(CONFIG, "null"), "config.json is of another shape"),
    "config deep": (text(CONFIG, "[" * 100_000), "config.json cannot be read"),
    "size text": (
        fields(CONFIG, hidden_size="big"),
        "no usable config.json: .*'hidden_size' expected int",
    ),
    "size null": (fields(CONFIG, vocab_size=None), "no usable config.json: .*'vocab_size' expected int"),
    "size zero": (fields(CONFIG, hidden_size=0), "config.json: hidden_size is 0; expected a whole number from 1 to"),
    "size negative": (fields(CONFIG, intermediate_size=-4), "intermediate_size is -4; expected a whole number from 1 to"),
    "size huge": (fields(CONFIG, intermediate_size=10**30), "intermediate_size is 10+; expected a whole number"),
    "layers huge": (fields(CONFIG, num_hidden_layers=10**9), "num_hidden_layers is 1000000000; expected a whole number"),
    "layers negative": (fields(CONFIG, num_hidden_layers=-1), "num_hidden_layers is -1; expected"),
    "heads zero": (fields(CONFIG, num_attention_heads=0), "no usable config.json: ZeroDivisionError"),
    "kv heads zero": (fields(CONFIG, num_key_value_heads=0), "num_key_value_heads is 0; expected"),
    "context negative": (fields(CONFIG, max_position_embeddings=-5), "max_position_embeddings is -5; expected"),
    "activation": (fields(CONFIG, hidden_act="nope"), "student.model: no model can be built from its config.json: .*nope"),
    "padding": (fields(CONFIG, pad_token_id=99), "no model can be built from its config.json"),
    "rope": (fields(CONFIG, rope_parameters={"rope_type": "odd"}), "no model can be built from its config.json"),
    "text section": (fields(CONFIG, text_config=3), "text_config is 3, not a section"),
    "no tokenizer": (without(TOKENIZER), r"has no usable tokenizer \(set student.tokenizer to a directory that has one\)"),
    "tokenizer empty": (text(TOKENIZER, "{}"), "has no usable tokenizer .*: KeyError: 'added_tokens'"),
    "tokenizer list": (text(TOKENIZER, "[]"), "has no usable tokenizer"),
    "tokenizer without a model": (fields(TOKENIZER, model=None), "has no usable tokenizer"),
    "tokenizer deep": (text(TOKENIZER, "[" * 100_000), "has no usable tokenizer"),
    "settings list": (text(SETTINGS, "[]"), "tokenizer_config.json is of another shape"),
    "settings class": (fields(SETTINGS, tokenizer_class=3), "has no usable tokenizer"),
    "settings end": (fields(SETTINGS, eos_token=["a"]), "has no usable tokenizer"),
    "settings length": (fields(SETTINGS, model_max_length="x"), "has no usable tokenizer"),
    "special tokens": (text("special_tokens_map.json", "[]"), "special_tokens_map.json is of another shape"),
    "template": (fields(SETTINGS, chat_template="{% if %}"), "the chat template refuses .*TemplateSyntaxError"),
    "template raises": (fields(SETTINGS, chat_template="{{ 1 / 0 }}"), "the chat template refuses .*ZeroDivisionError"),
    "template number": (fields(SETTINGS, chat_template=3), "the chat template refuses"),
    "template list": (fields(SETTINGS, chat_template=[1]), "has no usable tokenizer"),
    "generation list": (text("generation_config.json", "[]"), "generation_config.json is of another shape"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_broken_model_is_one_sentence(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    change, sentence = CASES[case]
    shutil.copytree(sound / "model", tmp_path / "model")
    change(tmp_path / "model")
    code, error = check(sound, tmp_path / "model", monkeypatch, capsys)
    assert code == 2 and re.search(sentence, error), error


def test_a_tokenizer_may_be_in_a_directory_of_its_own(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(sound / "model", tmp_path / "model")
    (tmp_path / "tokenizer").mkdir()
    for name in (TOKENIZER, SETTINGS):
        (tmp_path / "model" / name).rename(tmp_path / "tokenizer" / name)
    code, shown = check(sound, tmp_path / "model", monkeypatch, capsys, f"student.tokenizer={tmp_path}/tokenizer")
    assert code == 0 and "ready for minidist sft" in shown


def test_generation_settings_that_are_left_out_are_a_line(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(sound / "model", tmp_path / "model")
    (tmp_path / "model" / "generation_config.json").write_text('{"temperature": 0.6, "do_sample": false}')
    code, shown = check(sound, tmp_path / "model", monkeypatch, capsys)
    assert code == 0 and re.search(r"student.model: generation settings .* are left out: temperature", shown)


@pytest.mark.parametrize(("flags", "warned"), [({"avx2"}, True), ({"avx2", "avx512_bf16"}, False), ({"amx_bf16"}, False)])
def test_bfloat16_on_a_cpu_without_it_is_a_warning(
    sound: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: set[str], warned: bool
) -> None:
    monkeypatch.setattr(precision, "cpu_flags", lambda: flags)
    code, shown = check(sound, sound / "model", monkeypatch, capsys, "student.dtype=bfloat16")
    sentence = "WARNING student.dtype is bfloat16, which this machine's CPU has no arithmetic for: more than ten times as slow"
    assert code == 0 and (sentence in shown) == warned
    _, shown = check(sound, sound / "model", monkeypatch, capsys)
    assert "no arithmetic" not in shown


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        ({"model.safetensors"}, None),
        ({"pytorch_model.bin"}, "pytorch_model.bin alone"),
        ({"README.md"}, "no weights"),
        (None, None),
    ],
)
def test_the_files_of_a_model_on_the_hub_are_asked_for(
    monkeypatch: pytest.MonkeyPatch, names: set[str] | None, sentence: str | None
) -> None:
    monkeypatch.setattr(files, "_on_hub", lambda name: names)
    if sentence is None:
        check_weights("someone/model", "student.model")
        return
    with pytest.raises(ModelError, match=f"student.model: someone/model .*{sentence}"):
        check_weights("someone/model", "student.model")
