"""Memory from shapes: against published figures, against what autograd really keeps, and against sums done by hand."""

import json
import re
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PretrainedConfig, Qwen3Config

from minidist import cli
from minidist.cluster import machine
from minidist.config import Config, DistillConfig, SftConfig, load
from minidist.config.learner import LearnerConfig
from minidist.config.models import LoraConfig
from minidist.data.rendering import character_tokenizer
from minidist.preflight import cost as budget
from minidist.preflight.memory import GIB, Need, Shape, activations, kv_bytes_per_token, learner_need, read_shape

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "configs" / "recipes" / "llama-70b-to-8b.yaml"
BIG: dict[str, Any] = {"vocab_size": 128256, "num_key_value_heads": 8, "max_position_embeddings": 131072}
LARGE = LlamaConfig(hidden_size=8192, num_hidden_layers=80, num_attention_heads=64, intermediate_size=28672, **BIG)
MIDDLE = LlamaConfig(hidden_size=4096, num_hidden_layers=32, num_attention_heads=32, intermediate_size=14336, **BIG)
SMALL: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"num_key_value_heads": 2, "vocab_size": 32, "bos_token_id": 0, "eos_token_id": 0}


def test_shapes() -> None:
    middle, large = read_shape(MIDDLE), read_shape(LARGE)
    assert (middle.parameters, large.parameters) == (8_030_261_248, 70_553_706_496)
    assert (large.layers, large.hidden, large.heads, large.kv_heads, large.head_size) == (80, 8192, 64, 8, 128)
    assert (large.intermediate, large.vocabulary, large.gated) == (28672, 128256, True)
    gpt2 = read_shape(GPT2Config())
    assert (gpt2.parameters, gpt2.kv_heads, gpt2.intermediate, gpt2.gated) == (124_439_808, 12, 3072, False)


def test_adapters_alone_are_trained() -> None:
    """Rank times inputs and outputs: q and o are 64 by 64, k and v 64 by 32, gate, up and down 64 by 96, in two layers."""
    config = LlamaConfig(**SMALL)
    every = read_shape(config, LoraConfig(rank=4))
    assert every.trainable == 4 * 2 * (2 * 128 + 2 * 96 + 3 * 160)
    assert read_shape(config, LoraConfig(rank=2, targets=["q_proj", "v_proj"])).trainable == 2 * 2 * (128 + 96)
    plain = learner_need(read_shape(config), LearnerConfig(), dtype="float32", ranks=1, tokens=64, gpu=False)
    adapted = learner_need(every, LearnerConfig(), dtype="float32", ranks=1, tokens=64, gpu=False)
    assert adapted.parts["weights"] > plain.parts["weights"]
    assert adapted.parts["optimizer"] == 12 * every.trainable < plain.parts["optimizer"]


@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_zero_as_published(stage: int, gigabytes: float) -> None:
    """Figure 1 of Rajbhandari et al.: 7.5 B parameters, 64 ranks, 16 bits, Adam. The float32 copy of a step is not in it."""
    shape = Shape(7_500_000_000, 7_500_000_000, 1, 1, 1, 1, 1, 1, 1)
    config = LearnerConfig(zero_stage=stage)  # type: ignore[arg-type]
    need = learner_need(shape, config, dtype="bfloat16", ranks=64, tokens=1, gpu=True)
    stepped = min(4 * shape.trainable // 64, 4 * GIB) if stage else 0
    states = sum(need.parts[part] for part in ("weights", "gradients", "optimizer")) - stepped
    assert states / 1e9 == pytest.approx(gigabytes, rel=0.02)


def test_plain_torch_keeps_no_master_copy() -> None:
    shape, tokens = Shape(1000, 1000, 1, 1, 1, 1, 1, 1, 1), 1
    for dtype, size in (("float32", 4), ("bfloat16", 2)):
        need = learner_need(shape, LearnerConfig(backend="single"), dtype=dtype, ranks=1, tokens=tokens, gpu=True)
        assert (need.parts["gradients"], need.parts["optimizer"]) == (1000 * size, 2000 * size)
    config = LearnerConfig.model_validate({"backend": "single", "optimizer": {"type": "sgd"}})
    assert learner_need(shape, config, dtype="float32", ranks=1, tokens=1, gpu=True).parts["optimizer"] == 0


def test_offload_moves_to_the_host() -> None:
    shape = Shape(10**9, 10**9, 1, 1, 1, 1, 1, 1, 1)
    config = LearnerConfig(zero_stage=3, offload_optimizer=True, offload_parameters=True)
    need = learner_need(shape, config, dtype="bfloat16", ranks=4, tokens=1, gpu=True)
    assert (need.parts["weights"], need.parts["optimizer"]) == (0, 0)
    assert need.host == (12 + 4 + 2) * 10**9 // 4


MODELS: list[tuple[PretrainedConfig, torch.dtype, float]] = [
    (LlamaConfig(**SMALL), torch.float32, 0.04),
    (LlamaConfig(**SMALL), torch.bfloat16, 0.04),
    (LlamaConfig(**SMALL | {"num_key_value_heads": 4, "intermediate_size": 200}), torch.float32, 0.04),
    (Qwen3Config(**SMALL, head_dim=16), torch.float32, 0.04),
    (GPT2Config(n_embd=64, n_layer=2, n_head=4, vocab_size=32, bos_token_id=0, eos_token_id=0), torch.float32, 0.15),
]


@pytest.mark.parametrize(("config", "dtype", "within"), MODELS)
def test_activations_are_what_autograd_keeps(config: PretrainedConfig, dtype: torch.dtype, within: float) -> None:
    """Every storage that the forward pass saves for the backward pass, parameters left out, counted once."""
    rows, length = 4, 256
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, Any] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model.base_model(input_ids=torch.zeros(rows, length, dtype=torch.long), use_cache=False)
    assert output is not None
    # The last norm's tensors come once, whatever the number of layers; nothing keeps its output yet.
    once = rows * length * 64 * (4 + dtype.itemsize)
    estimate = activations(read_shape(config), rows * length, dtype.itemsize, checkpointing=False)
    assert estimate + once == pytest.approx(sum(storage.nbytes() for storage in saved.values()), rel=within)


def test_checkpointing_keeps_inputs_and_one_layer() -> None:
    shape = read_shape(LlamaConfig(**SMALL))
    one = activations(shape, 10, 4, checkpointing=False) // 2
    assert activations(shape, 10, 4, checkpointing=True) == 10 * 2 * 64 * 4 + one


def test_cache_bytes() -> None:
    shape = read_shape(MIDDLE)
    assert [kv_bytes_per_token(shape, "bfloat16", split) for split in (1, 2, 8, 16)] == [131072, 65536, 16384, 16384]
    assert kv_bytes_per_token(shape, "float32") == 262144


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories with the real shapes and no weights, and a row of data."""
    root = tmp_path_factory.mktemp("pair")
    for name, config in (("student", MIDDLE), ("teacher", LARGE)):
        config.save_pretrained(root / name)
        character_tokenizer("ab=").save_pretrained(root / name)
    (root / "rows.jsonl").write_text("".join(json.dumps({"instruction": "ab", "input": ""}) + "\n" for _ in range(256)))
    return root


def overrides(root: Path) -> list[str]:
    paths = {"student.model": "student", "student.tokenizer": "student", "teacher.model": "teacher"}
    paths |= {"data.prompts.path": "rows.jsonl", "run.directory": "run"}
    return [f"{key}={root / name}" for key, name in paths.items()]


@pytest.fixture
def recipe(pair: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The recipe with replaced values, on a machine without GPUs."""
    monkeypatch.setenv("MINIDIST_DATA", "/nowhere")
    monkeypatch.setattr(machine, "gpus", list)

    def made(*more: str) -> DistillConfig:
        config = load(RECIPE, [*overrides(pair), *more])
        assert isinstance(config, DistillConfig)
        return config

    return made


def needs(config: DistillConfig) -> dict[str, Need]:
    gpu = budget.gpu_bytes(config.cluster)
    found = budget.role_needs(config, read_shape(MIDDLE), read_shape(LARGE), longest=2048, gpu=gpu)
    return {need.role: need for need in found}


def test_recipe_by_hand(recipe: Any) -> None:
    """8.03 B and 70.55 B parameters of 2 bytes; the sums in gigabytes, from the shapes in the models' cards."""
    found = needs(recipe())
    learner, rollout, teacher = (found[name] for name in ("learner", "rollout", "teacher"))
    assert (learner.devices, rollout.devices, teacher.devices) == (4, 4, 8)
    by_hand = {
        "weights": 8.03 * 2 / 4,
        "gradients": 8.03 * 2 / 4 + 4.0,  # float32 copies of at most 1e9 elements at a time
        "optimizer": 8.03 * 12 / 4,
        # 32 layer inputs, and one layer: norms 2·4096·8, attention (2·32 + 2·8)·128·2, feed-forward 4·14336·2 bytes
        "activations": 8192 * (32 * 4096 * 2 + 65536 + 20480 + 114688) / 1e9,
        "logits": 1024 * 128256 * 4 * 4 / 1e9,
        "buffers": 1.0 + 2.0 + 0.54,
    }
    assert {part: size / 1e9 for part, size in learner.parts.items()} == pytest.approx(by_hand, rel=0.02)
    assert learner.total / 1e9 == pytest.approx(45.6, rel=0.02)
    assert rollout.parts["weights"] / 1e9 == pytest.approx(8.03, rel=0.01)
    assert teacher.parts["weights"] / 1e9 == pytest.approx(17.64, rel=0.01)
    for engine in (rollout, teacher):
        assert engine.total == pytest.approx(0.85 * 79 * GIB, rel=1e-6)
    assert rollout.parts["cache"] / GIB == pytest.approx(0.85 * 79 - 7.48 - 0.5 - 0.8, rel=0.02)


def test_recipe_is_checked_offline_without_weights(
    pair: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["minidist", "check", str(RECIPE), *overrides(pair)])
    memory, seconds = psutil.Process().memory_info().rss, time.process_time()
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out = capsys.readouterr().out
    assert caught.value.code == 0
    assert time.process_time() - seconds < 30
    assert psutil.Process().memory_info().rss - memory < GIB // 2
    header = [line.lstrip("# ") for line in RECIPE.read_text().splitlines() if line.startswith("#   ")]
    for line in header[1:]:
        assert " ".join(line.split()) in [" ".join(shown.split()) for shown in out.splitlines()], "the header is old"
    assert "up to 129.0 MiB of scores" in out and "15.0 GiB of weights" in out
    assert "WARNING" not in out


MISFITS = {
    "the learner does not fit.* set learner.zero_stage=3": ["learner.zero_stage=1", "cluster.learner.ranks=2"],
    "the learner does not fit.* set learner.activation_checkpointing=true": [
        "learner.activation_checkpointing=false",
        "learner.micro_batch_tokens=32768",
    ],
    "the learner does not fit.* lower learner.micro_batch_tokens below 200000": ["learner.micro_batch_tokens=200000"],
    "the learner does not fit.* lower learner.chunk_tokens below 30000": [
        "learner.chunk_tokens=30000",
        "learner.micro_batch_tokens=30000",
    ],
    "the learner does not fit.* raise cluster.learner.ranks above 1, or set learner.offload_optimizer": [
        "cluster.learner.ranks=1"
    ],
    "the teacher does not fit.* cluster.teacher.tensor_parallel": ["cluster.teacher.tensor_parallel=2"],
    "the rollout does not fit.* raise rollout.gpu_memory_utilization": ["rollout.gpu_memory_utilization=0.1"],
    "the teacher does not fit.* raise cluster.teacher.shards, or set teacher.dtype": [
        "teacher.backend=hf",
        "cluster.teacher.tensor_parallel=1",
    ],
    "the teacher does not fit.* lower teacher.batch_tokens": [
        "teacher.backend=hf",
        "cluster.teacher.tensor_parallel=1",
        "cluster.teacher.shards=8",
        "teacher.batch_tokens=100000",
    ],
    "roles share GPUs .* set cluster.gpus to 16": [
        "cluster.gpus=8",
        "cluster.rollout.gpus=2",
        "cluster.teacher.gpus=8",
    ],
    "set cluster.gpu_gib to the memory": ["cluster.gpu_gib=null"],
    "more than cluster.object_store_gib = 0.5.* set cluster.object_store_gib=16": ["cluster.address=null"],
}


@pytest.mark.parametrize("expected", MISFITS)
def test_what_does_not_fit_says_what_to_change(recipe: Any, expected: str) -> None:
    lines = budget.memory_lines(recipe(*MISFITS[expected]), MIDDLE, LARGE, longest=2048)
    assert [line for line in lines if re.search(expected, line)], lines


def test_a_real_gpu_goes_before_the_configured_one(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = recipe().cluster
    assert budget.gpu_bytes(cluster) == 79 * GIB
    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu("a", 141.0, 140.0), machine.Gpu("b", 24.0, 1.0)])
    assert budget.gpu_bytes(cluster) == 24 * GIB
    assert budget.gpu_bytes(cluster.model_copy(update={"gpus": 0})) is None


def small(tmp_path: Path, **sections: Any) -> Config:
    tree: dict[str, Any] = {
        "stage": "distill",
        "run": {"directory": str(tmp_path / "run")},
        "student": {"model": "student"},
        "teacher": {"model": "teacher"},
        "data": {"prompts": {"path": "task:sort"}},
        "objective": {"type": "reverse_kl"},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(tree | sections))
    return load(tmp_path / "run.yaml")


def test_on_cpus_the_roles_share_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, model = small(tmp_path), LlamaConfig(**SMALL)
    assert isinstance(config, DistillConfig)
    monkeypatch.setattr(machine, "host_memory", lambda: machine.Space(8.0, 7.0))
    lines = budget.memory_lines(config, model, model, longest=640)
    assert lines[0].startswith("memory, GiB a process") and " of" not in lines[0]
    assert lines[-1].startswith("all roles and the object store: ")
    monkeypatch.setattr(machine, "host_memory", lambda: machine.Space(1.0, 0.5))
    assert budget.memory_lines(config, model, model, longest=640)[-1].startswith("WARNING all roles and the object store: ")


def test_hidden_scores_are_counted(tmp_path: Path) -> None:
    config, shape = small(tmp_path, rollout={"prompts_per_step": 4, "max_new_tokens": 10}), read_shape(LlamaConfig(**SMALL))
    assert isinstance(config, DistillConfig)
    assert budget.step_bytes(config, shape, shape) == (4 * 10 * 64 * 4, 4 * shape.parameters)
    sampled = small(tmp_path, teacher={"model": "t", "payload": "sampled"}, objective={"type": "k2"})
    assert isinstance(sampled, DistillConfig)
    assert budget.step_bytes(sampled, shape, shape)[0] == 64 * 128 * 4


def test_mixing_holds_the_teacher_twice(tmp_path: Path) -> None:
    """In transformers to score and in vLLM to write; in step, its copy is the student's engine's."""
    mixing = small(tmp_path, rollout={"teacher_mix": 0.2}), small(tmp_path, rollout={"teacher_mix": 0.2, "engine": "hf"})
    alone = needs(small(tmp_path))["teacher"]  # type: ignore[arg-type]
    turns, steps = (needs(config) for config in mixing)  # type: ignore[arg-type]
    assert turns["teacher"].parts["weights"] == 2 * alone.parts["weights"]
    assert turns["teacher"].parts["cache"] == int(0.25 * GIB)
    assert turns["teacher"].parts["buffers"] == alone.parts["buffers"]
    assert steps["teacher"] == alone
    assert steps["rollout"].parts["weights"] == turns["rollout"].parts["weights"] + alone.parts["weights"]


def test_a_run_on_given_text_has_no_engines(tmp_path: Path) -> None:
    """And one that learns from its labels alone has no teacher's actors either."""
    given: dict[str, Any] = {"prefix": {"student": 0, "dataset": 1}, "data": {"prompts": {"path": "task:sort"}}}
    watched = {"evaluation": {"every": 5}, "data": given["data"] | {"validation": {"path": "task:sort"}}}
    for sections, roles in (
        ({}, ["learner", "teacher"]),
        ({"objective": {"type": "supervised"}}, ["learner"]),
        (watched, ["learner", "rollout", "teacher"]),
    ):
        config = small(tmp_path, **given | sections)
        assert isinstance(config, DistillConfig)
        assert list(needs(config)) == roles
        said = " ".join(budget.memory_lines(config, LlamaConfig(**SMALL), LlamaConfig(**SMALL), longest=640))
        assert "to the learner" in said and ("engine" in said) == ("rollout" in roles)


def test_cache_below_one_sequence(tmp_path: Path) -> None:
    config = small(tmp_path, rollout={"kv_cache_gib": 0.001})
    assert isinstance(config, DistillConfig)
    lines = budget.memory_lines(config, MIDDLE, MIDDLE, longest=2048)
    assert any("the rollout's cache does not hold one sequence; set rollout.kv_cache_gib to 0.50" in line for line in lines)


def test_supervised_runs_have_a_learner_only(tmp_path: Path) -> None:
    tree = {"stage": "sft", "teacher": None, "objective": None, "data": {"train": {"path": "task:sort"}}}
    merged = {"run": {"directory": str(tmp_path)}, "student": {"model": "s"}} | {
        key: value for key, value in tree.items() if value
    }
    config = SftConfig.model_validate(merged)
    lines = budget.memory_lines(config, LlamaConfig(**SMALL), longest=512)
    assert [line.split()[0] for line in lines] == ["memory,", "learner", "all"]
