"""The card of the files of rows: types of the columns, with which the `datasets` package loads all files as one data set."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from minidist.pipelines.shards import Shards
from minidist.run.files import rename, writing
from minidist.run.tracking import log

if TYPE_CHECKING:
    import pyarrow

CARD = "README.md"


def write_card(shards: Shards) -> None:
    """Write rows/README.md with the types of the columns over all files.

    Without it the package takes the types of the first file for those of all, and a column that is empty there, such as the
    answers of rows without a majority, fits no other file. Where files hold a number and a text in one column, no type fits:
    the reason is logged, and no card written.
    """
    import pyarrow
    from datasets import DatasetInfo, Features
    from datasets.info import DatasetInfosDict

    try:
        schema = pyarrow.unify_schemas(list(_schemas(shards)), promote_options="permissive").remove_metadata()
    except pyarrow.ArrowException as error:
        reason = " ".join(str(error).split())[:200]
        log.info("%s", f"{shards.folder} has columns of several types, and `datasets` may not load it as one set: {reason}")
        return
    file = shards.folder / CARD
    info = DatasetInfo(features=Features.from_arrow_schema(schema), config_name="default")
    with writing(file):
        making = shards.folder.parent / "card.partial"
        making.mkdir(exist_ok=True)
        DatasetInfosDict({"default": info}).write_to_directory(str(making))
        rename(making / CARD, file)
        making.rmdir()


def _schemas(shards: Shards) -> "Iterator[pyarrow.Schema]":
    """The types in each file that has a row; one file is read at a time."""
    from pyarrow import json, parquet

    for number in shards.numbers():
        path: Path = shards.path(number)
        if path.suffix == ".parquet":
            found = parquet.read_schema(path)
        elif path.stat().st_size:
            found = json.read_json(path, json.ReadOptions(block_size=max(path.stat().st_size, 1 << 20))).schema
        else:
            continue
        if len(found):
            yield found
