"""The prompts of programs: Jinja templates in files, which a folder of the user's replaces file by file."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from minidist.config.trees import read_text
from minidist.data.templates import Template
from minidist.errors import ConfigError

PACKAGED = Path(__file__).parent / "templates"
"""The prompts that come with the package."""


class Prompts:
    """The prompts of one program.

    Args:
        needed: name of each prompt with the names that it must use, of columns or of earlier replies.
        folder: where files NAME.jinja replace the packaged ones; None: nowhere.
        files: files that replace single prompts, by their names.
        where: the setting that names folder or files.

    Raises:
        ConfigError: a file cannot be read, is no valid template, or does not use a name that it must use.
    """

    def __init__(
        self,
        needed: Mapping[str, frozenset[str]],
        folder: Path | None = None,
        *,
        files: Mapping[str, Path] | None = None,
        where: str = "program.templates",
    ) -> None:
        if folder is not None and not folder.is_dir():
            raise ConfigError(f"{where}: no folder at {folder}; give a folder of files NAME.jinja, or leave it out")
        found = {name: _file(name, folder) for name in needed} | dict(files or {})
        self._templates = {name: _read(found[name], names, where) for name, names in needed.items()}

    @property
    def columns(self) -> dict[str, frozenset[str]]:
        """The names that each prompt uses."""
        return {name: frozenset(template.columns) for name, template in self._templates.items()}

    def fill(self, name: str, values: Mapping[str, Any]) -> str:
        """The prompt, filled. Raises BadRow."""
        return self._templates[name].fill(values)


def _file(name: str, folder: Path | None) -> Path:
    own = None if folder is None else folder / f"{name}.jinja"
    return own if own is not None and own.is_file() else PACKAGED / f"{name}.jinja"


def _read(file: Path, names: Iterable[str], where: str) -> Template:
    try:
        template = Template(read_text(file, "give a text file in UTF-8").removesuffix("\n"), str(file))
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    missing = sorted(set(names) - template.columns)
    if missing:
        raise ConfigError(
            f"{where}: {file} does not use {{{{ {missing[0]} }}}}, without which the prompt asks nothing; it uses "
            f"{', '.join(sorted(template.columns)) or 'no name'}"
        )
    return template
