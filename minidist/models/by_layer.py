"""The decoder layer of a tensor, by its name in a checkpoint."""

import re
from collections.abc import Iterable

_LAYER = re.compile(r"\.(\d+)\.")


def layer_of(name: str) -> str:
    """Number of the decoder layer of a tensor; "" for one outside of the layers.

    >>> layer_of("model.layers.12.mlp.up_proj.weight"), layer_of("lm_head.weight")
    ('12', '')
    """
    found = _LAYER.search(f".{name}.")
    return found[1] if found else ""


def by_layer(names: Iterable[str]) -> dict[str, list[str]]:
    """The names of each decoder layer by the layer's number, those outside of the layers by ""."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(layer_of(name), []).append(name)
    return groups
