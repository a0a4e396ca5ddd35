"""The micro-batches of a stream, each laid out when its turn comes; scores that are kept elsewhere are fetched one ahead."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from minidist.cluster.kept import fetched
from minidist.data.batching import MicroBatch, grouped, micro_batch, unlabelled
from minidist.errors import ScoresLostError
from minidist.learners.group import Group
from minidist.types import Batch, KeptScores, Row, Stream, members_of

Part = tuple[Sequence[Row], Sequence[int]]
"""The rows of a micro-batch, and their indices in the stream."""


def micro_batches(stream: Stream, group: Group, *, budget: int, padded: bool) -> Iterator[MicroBatch]:
    """The stream's micro-batches of at most `budget` tokens, as many as on any other rank of the group.

    Ranks that share parameters or gradients must run every layer equally often, so a rank with less work fills up with
    micro-batches that have no labels.
    """
    groups = grouped(stream.rows, budget=budget, padded=padded)
    parts: list[Part] = [([stream.rows[index] for index in members], members) for members in groups]
    parts += [([unlabelled(stream.rows[0])], [0])] * (group.largest([len(parts)])[0] - len(parts))
    yield from laid_out(parts, group)


def laid_out(parts: Sequence[Part], group: Group) -> Iterator[MicroBatch]:
    """The micro-batches of `parts`, as many on every rank of the group.

    While one is computed, the scores of the next are fetched: no more than two are in memory. Raises ScoresLostError on all
    ranks alike where any of them cannot fetch its scores.
    """
    kept = any(isinstance(member, KeptScores) for rows, _ in parts for row in rows for member in members_of(row.scores))
    if not group.largest([kept])[0]:
        yield from (micro_batch(*part) for part in parts)
        return
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="scores") as pool:
        coming = pool.submit(_fetched, parts[0])
        for following in [*parts[1:], None]:
            found = coming.result()
            if group.largest([isinstance(found, ScoresLostError)])[0]:
                raise found if isinstance(found, ScoresLostError) else ScoresLostError("another rank's scores were lost")
            if following is not None:
                coming = pool.submit(_fetched, following)
            assert isinstance(found, MicroBatch)
            yield found


class CollectionSteps:
    """The optimizer steps of a collection. An update that lost scores is asked for again, and goes on after the steps that it
    took."""

    def __init__(self) -> None:
        self._collection: int | None = None
        self._taken: list[dict[str, float]] = []

    def take(self, batch: Batch, step: Callable[[int, Sequence[Stream]], dict[str, float]]) -> list[dict[str, float]]:
        """The metrics of each of the batch's steps; `step` takes one, and may raise ScoresLostError before it."""
        taken = self._taken if self._collection == batch.step else []
        self._collection = None
        try:
            for streams in batch.steps[len(taken) :]:
                taken.append(step(batch.step, streams))
        except ScoresLostError:
            self._collection, self._taken = batch.step, taken
            raise
        return taken


def _fetched(part: Part) -> MicroBatch | ScoresLostError:
    rows, indices = part
    try:
        return micro_batch(fetched(rows), indices)
    except ScoresLostError as error:
        return error
