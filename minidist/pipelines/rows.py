"""The rows of a pipeline with their keys, which are all different."""

from array import array
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from minidist.config.pipelines import PipelineSection
from minidist.data.sources import read_rows
from minidist.errors import DataError
from minidist.pipelines.steps import Item
from minidist.pipelines.writers import number_of

TRIED = 20
"""Rows that are looked at before a job starts."""


def items(config: PipelineSection) -> Iterator[Item]:
    """The rows of the source with their keys, up to data.rows.rows of them after data.rows.skip."""
    source = config.data.rows
    last = None if source.rows is None else source.skip + source.rows
    for number, row in enumerate(islice(read_rows(source), source.skip, last)):
        yield Item(number, _key(config, number, row), row)


def _key(config: PipelineSection, number: int, row: Any) -> str:
    if config.key is None:
        return str(number)
    key = row.get(config.key)
    if not isinstance(key, str | int) or isinstance(key, bool) or key == "":
        raise DataError(
            f"row {number} of {config.data.rows.path} has the key {key!r}; {config.key} must be a text or a number in each row"
        )
    return str(key)


def checked_rows(config: PipelineSection) -> tuple[int, list[str]]:
    """The number of rows, and the columns of the first. Raises DataError where two rows have one key."""
    numbers, columns, count = array("Q"), dict[str, None](), 0
    for item in items(config):
        if config.key is not None:
            numbers.append(number_of(item.key))
        if item.number < TRIED:
            columns |= dict.fromkeys(item.columns)
        count = item.number + 1
    if config.key is not None:
        _refuse_repeated(config, np.frombuffer(numbers, dtype=np.uint64))
    return count, list(columns)


def _refuse_repeated(config: PipelineSection, numbers: "np.ndarray[Any, Any]") -> None:
    """Keys are compared by a number of 62 bits each, so that a billion rows need 8 GiB; those alike are looked at again."""
    values, counts = np.unique(numbers, return_counts=True)
    repeated = set(values[counts > 1].tolist())
    seen: dict[str, int] = {}
    for item in items(config) if repeated else ():
        if number_of(item.key) not in repeated:
            continue
        if item.key in seen:
            found = (
                f"rows {seen[item.key]} and {item.number} of {config.data.rows.path} have the same {config.key}, {item.key!r}"
            )
            raise DataError(f"{found}; keys name rows in the output: remove one of the two, or set key to another column")
        seen[item.key] = item.number
