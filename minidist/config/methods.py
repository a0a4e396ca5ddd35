"""`method`: a published method by its name, as defaults of the sections it sets; one YAML file each in minidist/methods (for
`distill`) and minidist/teaching/methods (for `teach`)."""

from pathlib import Path
from typing import Any

import yaml

from minidist.config.sentence import did_you_mean

DISTILL = Path(__file__).parents[1] / "methods"
"""Methods of `minidist distill`."""
TEACH = Path(__file__).parents[1] / "teaching" / "methods"
"""Methods of `minidist teach`."""


def names(folder: Path = DISTILL) -> list[str]:
    """Names of all methods of a verb."""
    return sorted(file.stem for file in folder.glob("*.yaml"))


def with_method(tree: dict[str, Any], folder: Path = DISTILL) -> dict[str, Any]:
    """The configuration with the sections of its method as defaults. Raises ValueError for an unknown method."""
    name, known = tree.get("method"), names(folder)
    if name is None:
        return tree
    if name not in known:
        raise ValueError(f"method is {name!r}; expected one of {', '.join(known)}{did_you_mean(str(name), known)}")
    return _under(yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8")), tree)


def _under(defaults: Any, tree: Any) -> Any:
    """`tree` with `defaults` for missing keys. A section of another `type` takes no defaults."""
    sections = isinstance(defaults, dict) and isinstance(tree, dict)
    if not sections or tree.get("type", defaults.get("type")) != defaults.get("type"):
        return tree
    return defaults | {key: _under(defaults.get(key), value) for key, value in tree.items()}
