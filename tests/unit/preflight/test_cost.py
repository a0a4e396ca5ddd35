"""The memory of a run, role by role, against sums by hand, and the settings to change where a role does not fit."""

import json
import re
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import LlamaConfig, PreTrainedTokenizerFast

from minidist import cli
from minidist.cluster import machine
from minidist.config import Config, DistillConfig, SftConfig, load
from minidist.config.cluster import ClusterConfig
from minidist.models.shape import read_shape
from minidist.preflight import cost
from minidist.preflight.memory import GIB, Need
from minidist.rollout import hf
from minidist.rollout.mixed import lockstep
from tests.support.shapes import LARGE, MIDDLE, SMALL
from tests.support.weights import write_weights

ROOT = Path(__file__).parents[3]
RECIPE = ROOT / "configs" / "recipes" / "llama-70b-to-8b.yaml"
PAIR = read_shape(MIDDLE), read_shape(LARGE)
LITTLE = read_shape(LlamaConfig(**SMALL))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directories with the real shapes and no weights, and a row of data."""
    root = tmp_path_factory.mktemp("pair")
    words = {"<eos>": 0, "ab": 1} | {f"w{index}": index for index in range(2, 128256)}  # a token for every row
    backend = Tokenizer(WordLevel(words, unk_token="ab"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>", unk_token="ab")
    for name, config in (("student", MIDDLE), ("teacher", LARGE)):
        config.save_pretrained(root / name)
        write_weights(root / name)
        tokenizer.save_pretrained(root / name)
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
    gpu = cost.gpu_bytes(config.cluster)
    found = cost.role_needs(config, *PAIR, longest=2048, gpu=gpu)
    return {need.role: need for need in found}


def test_the_recipes_memory_equals_sums_by_hand(recipe: Any) -> None:
    """8.03 B and 70.55 B parameters of 2 bytes; the sums in gigabytes, from the shapes in the models' cards."""
    found = needs(recipe())
    learner, rollout, teacher = (found[name] for name in ("learner", "rollout", "teacher"))
    assert (learner.devices, rollout.devices, teacher.devices) == (4, 4, 8)
    by_hand = {
        "weights": 8.03 * 2,
        "gradients": 8.03 * 4 / 4 + 8.03 * 4 / 4,  # added in float32, and as the optimizer step reads them
        "optimizer": 8.03 * 12 / 4,
        # 32 layer inputs, and one layer: norms 2·4096·8, attention (2·32 + 2·8)·128·2, feed-forward 4·14336·2 bytes
        "activations": 8192 * (32 * 4096 * 2 + 65536 + 20480 + 114688) / 1e9,
        "logits": 1024 * 128256 * 4 * 4 / 1e9,
        "buffers": 1.0 + 0.54,
    }
    assert {part: size / 1e9 for part, size in learner.parts.items()} == pytest.approx(by_hand, rel=0.02)
    assert learner.total / 1e9 == pytest.approx(63.6, rel=0.02)
    assert rollout.parts["weights"] / 1e9 == pytest.approx(8.03, rel=0.01)
    assert teacher.parts["weights"] / 1e9 == pytest.approx(17.64, rel=0.01)
    for engine in (rollout, teacher):
        assert engine.total == pytest.approx(0.85 * 79 * GIB, rel=1e-6)
    assert rollout.parts["cache"] / GIB == pytest.approx(0.85 * 79 - 7.48 - 0.5 - 0.8, rel=0.02)


def test_a_teacher_over_two_nodes_gives_hidden_states_without_a_head(recipe: Any) -> None:
    """Half of its 80 layers on each node, and the embedding on one of them; each rank of the learner holds the head."""
    split = "cluster.teacher={tensor_parallel: 8, pipeline_parallel: 2, across_nodes: true}"
    found = needs(recipe("teacher.payload=hidden", "cluster.gpus=24", split))
    assert found["teacher"].devices == 16 and found["teacher"].parts["logits"] == 0
    assert found["teacher"].parts["weights"] / 1e9 == pytest.approx(((70.55 - 1.05) / 2 + 1.05) * 2 / 8, rel=0.01)
    more = found["learner"].parts["buffers"] - needs(recipe())["learner"].parts["buffers"]
    assert more == 128256 * 8192 * 2


def test_recipe_is_checked_offline_without_weights(
    pair: Path, recipe: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("minidist.preflight.space.disk", lambda path: machine.Space(2000, 1000))  # of the recipe's cluster
    monkeypatch.setattr("sys.argv", ["minidist", "check", str(RECIPE), *overrides(pair)])
    memory, seconds = psutil.Process().memory_info().rss, time.process_time()
    with pytest.raises(SystemExit) as caught:
        cli.main()
    out, errors = capsys.readouterr()
    assert caught.value.code == 0, errors
    assert time.process_time() - seconds < 30
    assert psutil.Process().memory_info().rss - memory < GIB // 2
    header = [line.lstrip("# ") for line in RECIPE.read_text().splitlines() if line.startswith("#   ")]
    for line in header[1:]:
        assert " ".join(line.split()) in [" ".join(shown.split()) for shown in out.splitlines()], "the header is old"
    assert "up to 129.0 MiB of scores" in out and "15.0 GiB of weights" in out
    assert "WARNING" not in out


MISFITS = {
    "the learner does not fit.* set learner.zero_stage=3": ["learner.zero_stage=2", "cluster.learner.ranks=2"],
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
        "cluster.learner.ranks=1",
        "learner.zero_stage=3",
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
    "roles share GPUs .* set cluster.gpus to 14": [
        "cluster.gpus=8",
        "cluster.rollout.tensor_parallel=1",
        "teacher.backend=hf",
        "cluster.teacher.tensor_parallel=1",
        "cluster.teacher.shards=8",
    ],
    "set cluster.gpu_gib to the memory": ["cluster.gpu_gib=null"],
    "more than cluster.object_store_gib = 0.5.* set cluster.object_store_gib=16": ["cluster.address=null"],
}


@pytest.mark.parametrize("expected", MISFITS)
def test_a_role_that_does_not_fit_names_the_setting_to_change(recipe: Any, expected: str) -> None:
    lines = cost.memory_lines(recipe(*MISFITS[expected]), *PAIR, longest=2048)
    assert [line for line in lines if re.search(expected, line)], lines


@pytest.mark.parametrize(("residency", "fullest"), [(False, 7 + 5 + 5), (True, 5 + 5)])
def test_roles_that_hold_their_devices_in_turn_need_room_for_one(residency: bool, fullest: int) -> None:
    """On one device, two engines of 5 beside a learner of 7, or in turn with it."""
    needs = [Need("learner", 1, {"weights": 7}), Need("rollout", 2, {"weights": 5})]
    assert cost._shared(ClusterConfig(gpus=1, residency=residency), needs) == fullest
    assert cost._shared(ClusterConfig(gpus=3, residency=residency), needs) == 0


def test_the_machines_smallest_gpu_counts_before_cluster_gpu_gib(recipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = recipe().cluster
    assert cost.gpu_bytes(cluster) == 79 * GIB
    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu("a", 141.0, 140.0), machine.Gpu("b", 24.0, 1.0)])
    assert cost.gpu_bytes(cluster) == 24 * GIB
    assert cost.gpu_bytes(cluster.model_copy(update={"gpus": 0})) is None


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


def test_on_cpus_the_roles_share_the_memory_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, model = small(tmp_path), LITTLE
    assert isinstance(config, DistillConfig)
    monkeypatch.setattr(machine, "host_memory", lambda: machine.Space(8.0, 7.0))
    lines = cost.memory_lines(config, model, model, longest=640)
    assert lines[0].startswith("memory, GiB a process") and " of" not in lines[0]
    assert lines[-1].startswith("all roles and the object store: ")
    monkeypatch.setattr(machine, "host_memory", lambda: machine.Space(1.0, 0.5))
    assert cost.memory_lines(config, model, model, longest=640)[-1].startswith("WARNING all roles and the object store: ")


def test_a_step_moves_the_payload_of_every_answer(tmp_path: Path) -> None:
    config, shape = small(tmp_path, rollout={"prompts_per_step": 4, "max_new_tokens": 10}), LITTLE
    assert isinstance(config, DistillConfig)
    assert cost.step_bytes(config, shape, shape) == (4 * 10 * 64 * 4, 4 * shape.parameters)
    sampled = small(tmp_path, teacher={"model": "t", "payload": "sampled"}, objective={"type": "k2"})
    assert isinstance(sampled, DistillConfig)
    assert cost.step_bytes(sampled, shape, shape)[0] == 64 * 128 * 4


def test_a_run_that_mixes_holds_the_teacher_twice(tmp_path: Path) -> None:
    """In transformers to score and in vLLM to write; in step, its copy is the student's engine's."""
    mixing = small(tmp_path, rollout={"teacher_mix": 0.2}), small(tmp_path, rollout={"teacher_mix": 0.2, "engine": "hf"})
    alone = needs(small(tmp_path))["teacher"]  # type: ignore[arg-type]
    turns, steps = (needs(config) for config in mixing)  # type: ignore[arg-type]
    assert turns["teacher"].parts["weights"] == 2 * alone.parts["weights"]
    assert turns["teacher"].parts["cache"] == int(0.25 * GIB)
    assert turns["teacher"].parts["buffers"] == alone.parts["buffers"]
    assert steps["teacher"] == alone
    assert steps["rollout"].parts["weights"] == turns["rollout"].parts["weights"] + alone.parts["weights"]


def test_engines_in_transformers_decode_as_many_rows_as_are_estimated(tmp_path: Path) -> None:
    one, two = (needs(small(tmp_path, rollout={"engine": "hf", "teacher_mix": mix}))["rollout"] for mix in (0, 0.2))  # type: ignore[arg-type]
    size = 4
    rows = {hf.ROWS: [MIDDLE], lockstep.ROWS: [MIDDLE, LARGE]}
    for need, (count, models) in zip((one, two), rows.items(), strict=True):
        layers = 0
        for model in models:
            width = 2 * (model.num_attention_heads + model.num_key_value_heads) * 128
            layers += model.hidden_size * (4 + 5 * size) + (width + 3 * model.intermediate_size) * size
        assert need.parts["activations"] == count * 2048 * layers


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
        said = " ".join(cost.memory_lines(config, LITTLE, LITTLE, longest=640))
        assert "to the learner" in said and ("engine" in said) == ("rollout" in roles)


def test_a_cache_below_one_sequence_is_a_warning(tmp_path: Path) -> None:
    config = small(tmp_path, rollout={"kv_cache_gib": 0.001})
    assert isinstance(config, DistillConfig)
    lines = cost.memory_lines(config, PAIR[0], PAIR[0], longest=2048)
    assert any("the rollout's cache does not hold one sequence; set rollout.kv_cache_gib to 0.50" in line for line in lines)


def test_supervised_runs_have_a_learner_only(tmp_path: Path) -> None:
    tree = {"stage": "sft", "teacher": None, "objective": None, "data": {"train": {"path": "task:sort"}}}
    merged = {"run": {"directory": str(tmp_path)}, "student": {"model": "s"}} | {
        key: value for key, value in tree.items() if value
    }
    config = SftConfig.model_validate(merged)
    lines = cost.sft_memory_lines(config, LITTLE, longest=512)
    assert [line.split()[0] for line in lines] == ["memory,", "learner", "all"]
