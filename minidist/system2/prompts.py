"""The prompts of programs: Jinja templates in files, which a folder of the user's replaces file by file."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from minidist.data.templates import Template
from minidist.errors import ConfigError

PACKAGED = Path(__file__).parent / "templates"
"""The prompts that come with the package."""


class Prompts:
    """The prompts of one program.

    Args:
        needed: name of each prompt with the names that it must use, of columns or of earlier replies.
        folder: where files NAME.jinja replace the packaged ones; None: nowhere.

    Raises:
        ConfigError: a file cannot be read, is no valid template, or does not use a name that it must use.
    """

    def __init__(self, needed: Mapping[str, frozenset[str]], folder: Path | None = None) -> None:
        if folder is not None and not folder.is_dir():
            raise ConfigError(f"program.templates: no folder at {folder}; give a folder of files NAME.jinja, or leave it out")
        self._templates = {name: _read(_file(name, folder), names) for name, names in needed.items()}

    def fill(self, name: str, values: Mapping[str, Any]) -> str:
        """The prompt, filled. Raises BadRow."""
        return self._templates[name].fill(values)


def _file(name: str, folder: Path | None) -> Path:
    own = None if folder is None else folder / f"{name}.jinja"
    return own if own is not None and own.is_file() else PACKAGED / f"{name}.jinja"


def _read(file: Path, names: Iterable[str]) -> Template:
    try:
        template = Template(file.read_text(encoding="utf-8").removesuffix("\n"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"program.templates: {file} cannot be read ({type(error).__name__}); give a text file in UTF-8"
        ) from None
    missing = sorted(set(names) - template.columns)
    if missing:
        raise ConfigError(
            f"program.templates: {file} does not use {{{{ {missing[0]} }}}}, without which the prompt asks nothing; it uses "
            f"{', '.join(sorted(template.columns)) or 'no name'}"
        )
    return template
