"""Runs that differ only by seed, as one curve of the page; and the settings in which the others differ."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from minidist.report.curves import Curve, join
from minidist.report.runs import RunFiles, flat

COLOURS = 8
"""Colours of the page; further groups repeat them with other dashes."""

_DASHES = ("solid", "dash", "dot", "dashdot")
_PLACE = ("run.directory", "run.overwrite", "run.seed")


@dataclass(frozen=True)
class Group:
    """Runs with one configuration, seeds aside. `number`: its place on the page, which gives its colour."""

    label: str
    runs: Sequence[RunFiles]
    number: int

    @property
    def colour(self) -> str:
        """Name of the colour in the page's style."""
        return f"--series-{self.number % COLOURS}"

    @property
    def dash(self) -> str:
        return _DASHES[self.number // COLOURS % len(_DASHES)]

    @property
    def stage(self) -> str:
        return self.runs[0].stage

    def names(self) -> list[str]:
        """Metrics that any of its runs has, in the order in which they were written first."""
        return list(dict.fromkeys(name for run in self.runs for name in run.metrics.columns))

    def curve(self, name: str, points: int) -> Curve | None:
        """A metric over its runs; None where no run has it."""
        found = [run.metrics.columns[name].curve() for run in self.runs if name in run.metrics.columns]
        return join(found, points) if found else None


def group(runs: Sequence[RunFiles]) -> list[Group]:
    """The groups, in the order of their first runs."""
    members: dict[str, list[RunFiles]] = {}
    for run in runs:
        members.setdefault(_key(run), []).append(run)
    stems = [{_stem(run.name) for run in found} for found in members.values()]
    labels: list[str] = []
    for found, own in zip(members.values(), stems, strict=True):
        stem = next(iter(own))
        alone = len(own) == 1 and sum(stem in other for other in stems) == 1
        labels.append(stem if alone and len(found) > 1 else _names(found))
    return [Group(label, found, number) for number, (label, found) in enumerate(zip(labels, members.values(), strict=True))]


def _names(runs: Sequence[RunFiles]) -> str:
    return runs[0].name if len(runs) == 1 else f"{runs[0].name} and {len(runs) - 1} more"


def _stem(name: str) -> str:
    """The name of a run without the number of its seed.

    >>> [_stem(name) for name in ("distill-2", "gkd-seed0", "akl_seed_11", "7")]
    ['distill', 'gkd', 'akl', '7']
    """
    return re.sub(r"(?:[-_.]?seed)?[-_.]?\d+$", "", name) or name


def _key(run: RunFiles) -> str:
    """What the configurations of a group have in common. A run without one is its own group."""
    if not run.config:
        return str(run.path)
    settings = {key: value for key, value in flat(run.config).items() if not _is_seed(key) and key not in _PLACE}
    return json.dumps(settings, sort_keys=True, default=str)


def _is_seed(key: str) -> bool:
    return key.rpartition(".")[2] in ("seed", "seeds")


def differences(groups: Sequence[Group]) -> dict[str, list[str]]:
    """The settings that are not the same in all groups, each with its value in every group."""
    flats = [flat(group.runs[0].config) for group in groups]
    keys = dict.fromkeys(key for settings in flats for key in settings if key not in _PLACE and not _is_seed(key))
    found = {key: [value_of(settings, key) for settings in flats] for key in keys}
    return {key: values for key, values in found.items() if len(set(values)) > 1}


def value_of(settings: Mapping[str, Any], key: str) -> str:
    """A setting as text; an empty one where the configuration has no such field."""
    return json.dumps(settings[key], ensure_ascii=False, default=str) if key in settings else ""


def seeds(found: Group) -> str:
    """The seeds of its runs."""
    return ", ".join(str(run.seed) for run in found.runs if run.seed is not None)
