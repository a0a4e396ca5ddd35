"""What an engine's answers count as work."""

import numpy as np

from minidist.rollout.answers import answered
from minidist.run.timeline import SpanLog
from minidist.types import Prompt
from tests.support.tiny import tiny_renderer


def counted(cached: int) -> dict[str, float]:
    log, prompt = SpanLog(), Prompt(0, np.arange(5, dtype=np.int32), "")
    with log.call("generate"):
        answered((prompt, 0), tiny_renderer(), [1, 2, 3], [-0.1, -0.2, -0.3], cached=cached, version=0)
    return dict(log.take().done[0].counts)


def test_an_answer_is_one_pass_over_the_prompt_and_one_a_token_but_the_last() -> None:
    """Five tokens of prompt and three written: seven pass through the model, the seventh sees seven; 4 bytes a number."""
    work = {"forward_tokens": 7, "forward_pairs": 28, "forward_heads": 3}
    assert counted(0) == work | {"written": 3, "generate_bytes": 3 * 3 * 4}


def test_a_cached_prefix_is_not_computed_again() -> None:
    """The first four tokens had 1 + 2 + 3 + 4 pairs."""
    found = counted(4)
    assert (found["forward_tokens"], found["forward_pairs"], found["forward_heads"]) == (3, 18, 3)
