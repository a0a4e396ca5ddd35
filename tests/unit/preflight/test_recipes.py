"""The recipes for GPUs, checked against the models' shapes on a machine that has neither."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer, GPT2Config, GPT2TokenizerFast, OPTConfig, PretrainedConfig, Qwen2Config

from minidist.cluster import machine
from minidist.config import DistillConfig, EvaluateConfig, SftConfig, load
from minidist.preflight.plan import plan_distill, plan_evaluate, plan_sft
from tests.support.weights import write_weights

RECIPES = Path(__file__).parents[3] / "configs" / "recipes" / "minillm"
MODELS: dict[str, tuple[PretrainedConfig, PretrainedConfig]] = {
    "gpt2-xl-to-base": (GPT2Config(), GPT2Config(n_embd=1600, n_layer=48, n_head=25)),
    "opt-13b-to-1.3b": (
        OPTConfig(hidden_size=2048, num_hidden_layers=24, num_attention_heads=32, ffn_dim=8192, word_embed_proj_dim=2048),
        OPTConfig(hidden_size=5120, num_hidden_layers=40, num_attention_heads=40, ffn_dim=20480, word_embed_proj_dim=5120),
    ),
    "qwen2.5-7b-to-1.5b": (
        Qwen2Config(
            hidden_size=1536,
            num_hidden_layers=28,
            num_attention_heads=12,
            num_key_value_heads=2,
            intermediate_size=8960,
            vocab_size=151936,
            tie_word_embeddings=True,
        ),
        Qwen2Config(
            hidden_size=3584,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            intermediate_size=18944,
            vocab_size=152064,
        ),
    ),
}
SIZES = {
    "gpt2-xl-to-base": ("124.44", "1,557.61"),
    "opt-13b-to-1.3b": ("1,315.7", "12,85"),
    "qwen2.5-7b-to-1.5b": ("1,543.7", "7,615.6"),
}


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Dolly's rows, plain text and a machine without GPUs."""
    monkeypatch.setattr(machine, "gpus", list)
    monkeypatch.setenv("MINIDIST_DATA", str(tmp_path))
    monkeypatch.setenv("MINIDIST_TEXT", str(tmp_path / "text.jsonl"))
    (tmp_path / "dolly").mkdir()
    rows = [{"instruction": f"say {n}", "input": "" if n % 2 else "loud", "output": f"{n}"} for n in range(300)]
    for name in ("train.jsonl", "valid.jsonl"):
        (tmp_path / "dolly" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": f"word {n} " * 20}) + "\n" for n in range(99)))
    return tmp_path


def save(path: Path, config: PretrainedConfig) -> str:
    """A model's shape with a tokenizer, without weights."""
    config.save_pretrained(path)
    write_weights(path)
    words = [*sorted({chr(n) for n in range(33, 127)}), "\u0120", "\u010a", "<|endoftext|>"]
    (path / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (path / "merges.txt").write_text("#version: 0.2\n")
    GPT2TokenizerFast(str(path / "vocab.json"), str(path / "merges.txt"), eos_token="<|endoftext|>").save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("name", MODELS)
def test_recipe_is_checked_without_weights(given: Path, name: str) -> None:
    student, teacher = (save(given / role, config) for role, config in zip(("student", "teacher"), MODELS[name], strict=True))
    data = [f"data.{part}.path={given}/dolly/{file}.jsonl" for part, file in (("prompts", "train"), ("validation", "valid"))]
    config = load(RECIPES / f"{name}.yaml", [f"student.model={student}", f"teacher.model={teacher}", *data])
    assert isinstance(config, DistillConfig)
    assert config.teacher_mix == 0.2 and config.run.steps * config.objective.updates == 5008
    settings: Any = config.objective
    wanted = {"clip": 0.2, "gamma": 0.95, "reward_scale": 0.5, "reward_clip": 100.0, "whitening": "padded", "inner_epochs": 4}
    assert {key: getattr(settings, key) for key in wanted} == wanted
    lines = "\n".join(plan_distill(config).lines)
    assert all(size in lines for size in SIZES[name]), lines
    assert "learner" in lines and "79" in lines


def test_fine_tuning_of_the_recipes(given: Path) -> None:
    model = save(given / "model", MODELS["gpt2-xl-to-base"][0])
    data = [f"data.{part}.path={given}/dolly/{file}.jsonl" for part, file in (("train", "train"), ("validation", "valid"))]
    config = load(RECIPES / "sft.yaml", [f"student.model={model}", *data])
    assert isinstance(config, SftConfig)
    assert "124.44" in "\n".join(plan_sft(config).lines)
    assert AutoTokenizer.from_pretrained(model).eos_token == "<|endoftext|>"


def test_evaluation_of_the_recipes(given: Path) -> None:
    model = save(given / "model", MODELS["gpt2-xl-to-base"][0])
    (given / "test.jsonl").write_text((given / "dolly" / "valid.jsonl").read_text())
    for name, row in (("sst2", {"sentence": "fine", "label": 1}), ("boolq", {"question": "so", "passage": "p", "label": 0})):
        (given / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    changes = [f"data.questions.{name}.path={given}/{name}.jsonl" for name in ("sst2", "boolq")]
    changes += [
        f"data.test.path={given}/test.jsonl",
        f"models={{teacher: {model}, minillm: {model}}}",
        f"teacher.model={model}",
    ]
    config = load(RECIPES / "evaluate.yaml", changes)
    assert isinstance(config, EvaluateConfig) and config.seeds == [10, 20, 30, 40, 50]
    assert "questions.boolq: 1 rows" in "\n".join(plan_evaluate(config).lines)


def test_the_recipe_of_several_teachers(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One specialist gives hidden states, the other its likeliest tokens; each has a GPU of its own."""
    student, shape = MODELS["qwen2.5-7b-to-1.5b"]
    paths = {name: save(given / name, config) for name, config in (("student", student), ("maths", shape), ("code", shape))}
    rows = [{"prompt": f"say {n}", "domain": ("maths", "code", "code")[n % 3]} for n in range(300)]
    (given / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setenv("MINIDIST_PROMPTS", str(given / "prompts.jsonl"))
    changes = [f"student.model={paths['student']}", *(f"teachers.{name}.model={paths[name]}" for name in ("maths", "code"))]
    recipe = RECIPES.parent / "several-teachers.yaml"
    config = load(recipe, changes)
    assert isinstance(config, DistillConfig)
    assert [config.cluster.gpus_of(role) for role in (config.cluster.rollout, config.cluster.teacher)] == [1, 1]
    lines = plan_distill(config).lines
    assert "rows by teacher (routing.column domain): 100 maths, 200 code" in lines
    table = [line for line in lines if line.split()[0] in ("memory,", "learner", "rollout", "teachers.maths", "teachers.code")]
    header = recipe.read_text()
    for line in table[1:]:
        assert all(figure in header for figure in line.split()), line
    assert not any(line.startswith("WARNING") for line in lines)
