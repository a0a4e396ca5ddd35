"""The micro-batches of a stream, each laid out when its turn comes; scores that are kept elsewhere are fetched one ahead."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

from minidist.cluster.kept import fetched
from minidist.data.batching import MicroBatch, micro_batch
from minidist.errors import ScoresLostError
from minidist.learners.group import Group
from minidist.types import KeptScores, Row

Part = tuple[Sequence[Row], Sequence[int]]
"""The rows of a micro-batch, and their indices in the stream."""


def laid_out(parts: Sequence[Part], group: Group) -> Iterator[MicroBatch]:
    """The micro-batches of `parts`, as many on every rank of the group.

    While one is computed, the scores of the next are fetched: no more than two are in memory. Raises ScoresLostError on all
    ranks alike where any of them cannot fetch its scores.
    """
    kept = any(isinstance(row.scores, KeptScores) for rows, _ in parts for row in rows)
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


def _fetched(part: Part) -> MicroBatch | ScoresLostError:
    rows, indices = part
    try:
        return micro_batch(fetched(rows), indices)
    except ScoresLostError as error:
        return error
