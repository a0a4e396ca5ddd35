"""Verdicts of a model on the answers of a row."""

import asyncio
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minidist.pipelines.shards import Result
from minidist.pipelines.writers import TextWriter, ask_of
from minidist.system2.prompts import Prompts

_NUMBER = re.compile(r"-?\d+(\.\d+)?")
_NEEDED = {"judge": frozenset({"response"})}


def judge_prompts(template: Path | None) -> Prompts:
    """The prompt of a judge; `template` replaces the packaged one. Raises ConfigError where it does not use the response."""
    return Prompts(_NEEDED, files={} if template is None else {"judge": template}, where="judge.template")


def read_verdict(pattern: str, reply: str) -> str | None:
    """The first group of the last match in a reply, or the whole match where the pattern has no group; None without a match.

    >>> read_verdict(r"[Ss]core:\\s*(\\d+)", "Score: 3? No. Score: 7"), read_verdict("yes|no", "I cannot say")
    ('7', None)
    """
    found = [match[1] if match.re.groups else match[0] for match in re.finditer(pattern, reply)]
    return found[-1] if found else None


def verdict_summary(results: Iterable[Result]) -> dict[str, Any]:
    """Counts of the verdicts in results, most first, how many replies have none, and the mean where all are numbers."""
    counts: Counter[str | None] = Counter()
    for result in results:
        found = result.get("verdict")
        counts.update(found if isinstance(found, list) else [found] if "error" not in result else [])
    unread = counts.pop(None, 0)
    summary: dict[str, Any] = {"verdicts": dict(counts.most_common(20)), "verdicts_unread": unread}
    if counts and all(verdict and _NUMBER.fullmatch(verdict) for verdict in counts):
        total = sum(float(verdict or 0) * count for verdict, count in counts.items())
        summary["verdict_mean"] = total / counts.total()
    return summary


@dataclass(frozen=True)
class Judge:
    """Asks a model for a verdict on each answer.

    Args:
        writer: the model.
        prompts: with the prompt `judge`.
        pattern: of the verdict; see `read_verdict`.
    """

    writer: TextWriter
    prompts: Prompts
    pattern: str

    async def columns(self, row: Mapping[str, Any], texts: Sequence[str], key: str) -> dict[str, list[Any]]:
        """Columns with an entry for each answer: the verdict, the judge's whole reply, and its tokens. Raises BadRow."""
        asked = [self.prompts.fill("judge", {**row, "response": text}) for text in texts]
        asks = (ask_of(self.writer, f"{key}/judge/{number}")(text) for number, text in enumerate(asked))
        replies = await asyncio.gather(*asks)
        return {
            "verdict": [read_verdict(self.pattern, reply.text) for reply in replies],
            "verdict_reply": [reply.text for reply in replies],
            "verdict_tokens": [reply.tokens for reply in replies],
        }
