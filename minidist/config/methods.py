"""`method`: a published method by its name, as defaults of the sections it sets; one YAML file each in minidist/methods."""

import difflib
from pathlib import Path
from typing import Any

import yaml

_FOLDER = Path(__file__).parents[1] / "methods"


def names() -> list[str]:
    """Names of all methods."""
    return sorted(file.stem for file in _FOLDER.glob("*.yaml"))


def with_method(tree: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the sections of its method as defaults. Raises ValueError for an unknown method."""
    name = tree.get("method")
    if name is None:
        return tree
    if name not in names():
        close = difflib.get_close_matches(str(name), names(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ValueError(f"method is {name!r}; expected one of {', '.join(names())}{hint}")
    return _under(yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")), tree)


def _under(defaults: Any, tree: Any) -> Any:
    """`tree` with `defaults` for missing keys. A section of another `type` takes no defaults."""
    sections = isinstance(defaults, dict) and isinstance(tree, dict)
    if not sections or tree.get("type", defaults.get("type")) != defaults.get("type"):
        return tree
    return defaults | {key: _under(defaults.get(key), value) for key, value in tree.items()}
