"""Checks of the rows of a labelled task, before any model is loaded: what would be a wrong figure in a run that looks right."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from minidist.config.task import TaskSection
from minidist.data.labelled import LabelledText
from minidist.errors import DataError
from minidist.types import LabelledRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_UNKNOWN = 0.5  # largest share of a source's tokens that its tokenizer does not know


def label_lines(task: TaskSection, texts: Sequence[LabelledText]) -> list[str]:
    """The line of the plan on classes without a row to train on, if any. Raises DataError where all rows have one label: a
    model learns to predict it without reading."""
    labels = {text.label for text in texts}
    if task.kind in ("tokens", "masked"):
        return []
    names = task.class_names
    if len(labels) == 1:
        one = names[int(min(labels))] if names else f"{min(labels):g}"
        raise DataError(f"all {len(texts)} rows of data.train have the label {one}: nothing can be learned; add other rows")
    missing = [name for number, name in enumerate(names) if number not in labels]
    return [f"data.train has no row of the class {', '.join(missing)}, which will hardly be predicted"] if missing else []


def held_out_lines(train: Sequence[LabelledText], measured: Sequence[LabelledText], where: str) -> list[str]:
    """The line of the plan on rows to measure on that are also trained on, if any. Raises DataError where all are."""
    trained = {(text.text, text.pair, text.answer) for text in train}
    count = sum((text.text, text.pair, text.answer) in trained for text in measured)
    if count == len(measured):
        kept = f"all {count} rows of data.{where} are rows of data.train, too, so that its figures would be of rows trained on"
        raise DataError(f"{kept}; set data.{where} to other rows, or leave it out")
    shared = f"{count:,} of {len(measured):,} rows of data.{where} are rows of data.train, too: its figures are too good"
    return [shared] if count else []


def check_known(rows: Sequence[LabelledRow], tokenizer: "PreTrainedTokenizerBase", where: str) -> None:
    """Raise DataError where a tokenizer knows less than half of the tokens of its rows, special ones apart."""
    if tokenizer.unk_token_id is None:
        return
    unknown = int(str(tokenizer.unk_token_id))
    special = [int(str(index)) for index in tokenizer.all_special_ids if int(str(index)) != unknown]
    tokens = np.concatenate([row.tokens for row in rows])
    tokens = tokens[~np.isin(tokens, special)]
    if len(tokens) and (share := float((tokens == unknown).mean())) > _UNKNOWN:
        found = f"the tokenizer of {where} does not know {share:.0%} of the tokens of the rows"
        raise DataError(f"{found}; set {where.removesuffix('.model')}.tokenizer to one that was made for such text")
