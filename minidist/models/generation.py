"""The generation settings of a checkpoint, as transformers can load and write them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import GenerationConfig

from minidist.errors import ModelError
from minidist.run.files import read_record

FILE = "generation_config.json"
# Settings that decide whether others have a meaning.
_MODES = ("do_sample", "num_beams", "return_dict_in_generate", "use_cache")


def read_generation(path: Path, where: str) -> tuple[GenerationConfig, list[str]] | None:
    """`settled` generation_config.json of a checkpoint; None without one. Raises ModelError where it holds no settings."""
    file = path / FILE
    if not os.path.lexists(file):
        return None
    return settled(read_record(file, dict[str, Any], f"correct or remove this file of {where}", ModelError))


def settled(settings: Mapping[str, Any]) -> tuple[GenerationConfig, list[str]]:
    """The settings as they are where transformers can load and write them; and the names of those that it cannot, left out.

    Published settings contradict themselves, such as a temperature without sampling. transformers then ignores the setting,
    but refuses to write it, and with it the model.
    """
    if (whole := _writable(settings)) is not None:
        return whole, []
    kept: dict[str, Any] = {}
    left_out = []
    for name in sorted(settings, key=lambda name: name not in _MODES):
        if _writable(kept | {name: settings[name]}) is None:
            left_out.append(name)
        else:
            kept[name] = settings[name]
    return GenerationConfig.from_dict(kept), left_out


def _writable(settings: Mapping[str, Any]) -> GenerationConfig | None:
    try:
        config = GenerationConfig.from_dict(dict(settings))
        config.validate(strict=True)
        config.from_dict(config.to_dict()).to_json_string()
    except Exception:  # noqa: BLE001 - a setting may even replace a method
        return None
    return config


def left_out_line(where: str, names: list[str]) -> str:
    """What is said of settings that are left out."""
    found = "generation settings that contradict the others, or that transformers cannot read, are left out"
    return f"{where}: {found}: {', '.join(names)}"
