"""What is done with one row: plain samples, or a program with its filter."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from minidist.data.exchanges import ExchangeReader
from minidist.pipelines.shards import Result
from minidist.pipelines.writers import Sample, TextWriter, ask_of
from minidist.protocols import Ask
from minidist.system2.rows import RowProgram


@dataclass(frozen=True)
class Item:
    """A row of the source: its number, its key, and its columns."""

    number: int
    key: str
    columns: Mapping[str, Any]


class Step(Protocol):
    """The work on one row."""

    async def run(self, item: Item) -> Result:
        """The columns of the result. Raises BadRow for a row that cannot be used."""
        ...

    async def close(self) -> None:
        """Free what the step holds."""


@dataclass(frozen=True)
class Plain:
    """Samples of each row, with their lengths and the reason why each ended.

    Args:
        writer: answers.
        reader: makes the prompt of a row.
        samples: answers of each row.
        tokens: also the ids and the log-probabilities of all tokens.
    """

    writer: TextWriter
    reader: ExchangeReader
    samples: int
    tokens: bool

    async def run(self, item: Item) -> Result:
        exchange = self.reader.read(item.columns)
        samples = await self.writer.write(exchange.asking, item.key, self.samples, exchange.tools)
        written = {
            "answers": [each.text for each in samples],
            "finish": [each.finish.value for each in samples],
            "tokens": sum(each.tokens for each in samples),
            "logprob_sums": [_summed(each) for each in samples],
        }
        if self.tokens:
            written["token_ids"] = [[] if each.ids is None else each.ids.tolist() for each in samples]
            written["logprobs"] = [[] if each.logprobs is None else each.logprobs.tolist() for each in samples]
        return {**item.columns, **written}

    async def close(self) -> None:
        await self.writer.close()


def _summed(sample: Sample) -> float | None:
    """Log-probability of an answer, nats, under the sampled distribution; None where a server did not say."""
    return None if sample.logprobs is None else float(sample.logprobs.astype("float64").sum())


@dataclass(frozen=True)
class Programmed:
    """A program on each row. The prompt of the source's template takes the place of the column `prompt`."""

    writer: TextWriter
    reader: ExchangeReader
    program: RowProgram

    async def run(self, item: Item) -> Result:
        row = {**item.columns, "prompt": self._prompt(item.columns)}
        asks = partial(self._ask, item.key)
        found = await self.program.run(item.columns, asks, item.key, self._prompt)
        gold = {} if self.program.gold is None else {"gold": row[self.program.gold]}
        return {**row, **gold, **found}

    async def close(self) -> None:
        await self.writer.close()

    def _prompt(self, columns: Mapping[str, Any]) -> str:
        return self.reader.read(columns).text

    def _ask(self, key: str, sample: int) -> Ask:
        return ask_of(self.writer, f"{key}/{sample}")
