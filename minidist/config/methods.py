"""`method`: a published method by its name, as defaults of the sections it sets; one YAML file each in minidist/methods."""

from pathlib import Path
from typing import Any

import yaml

from minidist.config.sentence import did_you_mean

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
        raise ValueError(f"method is {name!r}; expected one of {', '.join(names())}{did_you_mean(str(name), names())}")
    return _under(yaml.safe_load((_FOLDER / f"{name}.yaml").read_text(encoding="utf-8")), tree)


def _under(defaults: Any, tree: Any) -> Any:
    """`tree` with `defaults` for missing keys. A section of another `type` takes no defaults."""
    sections = isinstance(defaults, dict) and isinstance(tree, dict)
    if not sections or tree.get("type", defaults.get("type")) != defaults.get("type"):
        return tree
    return defaults | {key: _under(defaults.get(key), value) for key, value in tree.items()}
