"""What a wheel holds: every file of the package that the program reads, its types, and the quickstart."""

import tomllib
from pathlib import Path

import minidist

ROOT = Path(minidist.__file__).parents[1]
SETTINGS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PAGES = (".md",)
"""Endings of pages for readers of the repository, which no program reads."""


def data_files(root: Path) -> set[str]:
    """The files of the package that a wheel must hold beside the modules."""
    files = (file for file in (root / "minidist").rglob("*") if file.is_file() and "__pycache__" not in file.parts)
    return {str(file.relative_to(root)) for file in files if file.suffix not in (".py", ".pyc", *PAGES)}


def declared(root: Path) -> set[str]:
    """The files that pyproject.toml declares as the package's data."""
    patterns = SETTINGS["tool"]["setuptools"]["package-data"]["minidist"]
    return {str(file.relative_to(root)) for pattern in patterns for file in (root / "minidist").glob(pattern) if file.is_file()}


def test_every_data_file_is_declared() -> None:
    assert data_files(ROOT) - declared(ROOT) == set()
    assert {"minidist/methods/gkd.yaml", "minidist/system2/templates/judge.jinja", "minidist/py.typed"} <= declared(ROOT)


def test_every_folder_with_modules_is_a_package() -> None:
    """Folders without __init__.py are left out of a wheel."""
    folders = {file.parent for file in (ROOT / "minidist").rglob("*.py")}
    assert [str(folder) for folder in folders if not (folder / "__init__.py").is_file()] == []


def test_the_quickstart_goes_with_the_wheel() -> None:
    patterns = [each for listed in SETTINGS["tool"]["setuptools"]["data-files"].values() for each in listed]
    sent = {file.name for pattern in patterns for file in ROOT.glob(pattern)}
    assert sent == {file.name for file in (ROOT / "configs/quickstart").glob("*.yaml")} and len(sent) == 5


def test_the_version_has_one_home() -> None:
    assert SETTINGS["project"]["dynamic"] == ["version"]
    assert SETTINGS["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "minidist.__version__"}
    homes = [file for file in (ROOT / "minidist").rglob("*.py") if "__version__ =" in file.read_text(encoding="utf-8")]
    assert homes == [ROOT / "minidist/__init__.py"]
