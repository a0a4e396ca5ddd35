"""`method`: a published method by its name, as defaults of the sections it is made of; one file each in minidist/methods."""

import difflib
from pathlib import Path
from typing import Any

import yaml

_FOLDER = Path(__file__).parents[1] / "methods"


def names() -> list[str]:
    """All methods."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def with_method(given: dict[str, Any]) -> dict[str, Any]:
    """The configuration with its method's sections under what it says itself. ValueError on a name that is unknown."""
    name = given.get("method")
    if name is None:
        return given
    if name not in names():
        close = difflib.get_close_matches(str(name), names(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"method is {name!r}; expected one of {', '.join(names())}{hint}")
    return _under(yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")), given)


def _under(defaults: Any, given: Any) -> Any:
    """`given`, and what only `defaults` says. A section of another `type` shares no fields with the default one."""
    if not (isinstance(defaults, dict) and isinstance(given, dict)):
        return given
    if given.get("type", defaults.get("type")) != defaults.get("type"):
        return given
    merged = {key: _under(value, given[key]) if key in given else value for key, value in defaults.items()}
    return merged | {key: value for key, value in given.items() if key not in defaults}
