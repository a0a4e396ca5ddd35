"""What a job has done: counts of rows, answers and tokens."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from typing import Any

from minidist.pipelines.shards import Result


@dataclass
class Tally:
    """Counts of the rows of some shards."""

    rows: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    voted: int = 0
    right: int = 0
    right_kept: int = 0
    graded: int = 0
    tokens: int = 0
    truncated: int = 0
    answer_tokens: int = 0

    @classmethod
    def of(cls, results: Iterable[Result]) -> "Tally":
        """The counts of results."""
        tally = cls()
        for result in results:
            tally.add(result)
        return tally

    def __iadd__(self, other: "Tally") -> "Tally":
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
        return self

    def add(self, result: Result) -> None:
        """Count a result."""
        self.rows += 1
        if "error" in result:
            self.failed[result["error"][:100]] += 1
            return
        self.tokens += int(result.get("tokens") or 0)
        if "kept" in result:
            self.voted += 1
            self.kept += bool(result["kept"])
            self.answer_tokens += int(result["answer_tokens"])
            self.truncated += bool(result["truncated"])
        if "right" in result:
            answers = result["right"] if isinstance(result["right"], list) else [result["right"]]
            self.graded += len(answers)
            self.right += sum(answers)
            self.right_kept += bool(result["right"] and result.get("kept"))

    def summary(self) -> dict[str, Any]:
        """Counts and shares, for summary.json."""
        failed = sum(self.failed.values())
        found: dict[str, Any] = {"rows": self.rows, "rows_failed": failed, "tokens": self.tokens}
        if failed:
            found["reasons"] = dict(self.failed.most_common(5))
        if self.voted:
            found |= {"rows_kept": self.kept, "accept_frac": self.kept / self.voted}
            found["answer_tokens_mean"] = self.answer_tokens / self.voted
        if self.graded:
            found["accuracy"] = self.right / self.graded
        if self.graded and self.voted:
            found["accuracy_kept"] = self.right_kept / self.kept if self.kept else None
        return found
