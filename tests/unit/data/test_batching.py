"""The shift, and micro-batches that lose no row."""

import doctest
from dataclasses import replace

import numpy as np
import pytest
import torch

from minidist.data import batching
from minidist.data.batching import collate, in_minibatches, in_order, pack, share_out, unlabelled
from minidist.data.sources import Example
from minidist.types import Finish, Payload, Prompt, Rollout, Row, Stream, TeacherScores
from tests.support.tiny import answer_of, random_rollouts, row_logits, tiny_model, tiny_renderer

LAYOUTS = pytest.mark.parametrize("padded", [False, True], ids=["packed", "buckets"])


def stream_rows(lengths: list[tuple[int, int]]) -> tuple[Row, ...]:
    rollouts = random_rollouts(lengths)
    scores = [TeacherScores(Payload.SAMPLED, logprobs=np.zeros(len(rollout.tokens))) for rollout in rollouts]
    return collate("rows", rollouts, scores, objective="none").rows


def random_lengths(rng: np.random.Generator) -> list[tuple[int, int]]:
    return [(int(rng.integers(1, 20)), int(rng.integers(1, 20))) for _ in range(int(rng.integers(1, 25)))]


def test_first_generated_token_is_predicted_from_the_last_prompt_token() -> None:
    rollout = random_rollouts([(3, 4)])[0]
    row = stream_rows([(3, 4)])[0]
    assert row.tokens.tolist() == [*rollout.prompt.tokens.tolist(), *rollout.tokens.tolist()]
    assert row.outputs.tolist() == [2, 3, 4, 5]
    assert row.labels.tolist() == rollout.tokens.tolist()
    assert (row.tokens[row.outputs + 1] == row.labels).all()


def test_end_of_sequence_is_a_label() -> None:
    renderer = tiny_renderer()
    given, answer = renderer.prompt("21="), answer_of(renderer, "12")
    stream = collate("gold", [Example(np.concatenate([given, answer]), len(given)).as_rollout()])
    assert stream.rows[0].labels.tolist() == answer.tolist()
    assert stream.rows[0].labels[-1] == renderer.eos
    assert stream.loss_tokens == 3


def test_every_token_of_plain_text_but_the_first_is_a_label() -> None:
    row = collate("text", [Example(np.array([5, 6, 7]), 1).as_rollout()]).rows[0]
    assert (row.outputs.tolist(), row.labels.tolist()) == ([0, 1], [6, 7])


@pytest.mark.parametrize("label", [0, 2, 4])
def test_output_t_decides_label_t_and_no_other(label: int) -> None:
    model, row = tiny_model(), stream_rows([(4, 5)])[0]
    head, moved = model.get_output_embeddings(), int(row.outputs[label])

    def said(push: bool) -> torch.Tensor:
        """Log-probabilities of the labels; `push` alters the hidden state at outputs[label] alone."""
        hidden = model.base_model(input_ids=torch.tensor(row.tokens[None].astype(np.int64))).last_hidden_state[0].clone()
        hidden[moved] += push
        return head(hidden)[row.outputs].log_softmax(-1)[range(len(row.labels)), row.labels]

    changed = (said(True) - said(False)).abs() > 1e-4
    assert changed.tolist() == [place == label for place in range(5)]


def test_label_is_read_off_the_token_before_it() -> None:
    """The causal model's logits at outputs[t] do not see labels[t], and do see labels[t - 1]."""
    model, row = tiny_model(), stream_rows([(2, 5)])[0]
    before, place = row_logits(model, row), 3
    tokens = row.tokens.copy()
    tokens[row.outputs[place] + 1] = (tokens[row.outputs[place] + 1] + 1) % 13
    after = row_logits(model, Row(tokens, row.outputs, row.labels))
    moved = ((after - before).abs() > 1e-4).any(-1)
    assert moved.tolist() == [False, False, False, False, True]


def test_per_token_arrays_must_fit() -> None:
    with pytest.raises(AssertionError, match="one entry a generated token"):
        collate("x", random_rollouts([(2, 3)]), [TeacherScores(Payload.SAMPLED, logprobs=np.zeros(4))], objective="")


@LAYOUTS
def test_pack_keeps_every_row_whole(padded: bool) -> None:
    rng = np.random.default_rng(0)
    for _ in range(60):
        rows, budget = stream_rows(random_lengths(rng)), int(rng.integers(1, 80))
        micros = pack(rows, budget=budget, padded=padded)
        assert sorted(index for micro in micros for index in micro.rows) == list(range(len(rows)))
        for micro in micros:
            lengths = [len(rows[index].tokens) for index in micro.rows]
            cost = len(lengths) * max(lengths) if padded else sum(lengths)
            assert cost <= budget or len(micro.rows) == 1
            assert sum(lengths) >= 0.95 * cost
            assert micro.tokens.tolist() == [token for index in micro.rows for token in rows[index].tokens]
            assert micro.labels.tolist() == [label for index in micro.rows for label in rows[index].labels]
            assert micro.positions.tolist() == [place for length in lengths for place in range(length)]
            assert micro.sequence.tolist() == [order for order, length in enumerate(lengths) for _ in range(length)]
            assert (micro.tokens[micro.outputs + 1] == micro.labels).all()
            assert (micro.sequence[micro.outputs + 1] == micro.sequence[micro.outputs]).all()


@LAYOUTS
def test_row_over_budget_stands_alone(padded: bool) -> None:
    micros = pack(stream_rows([(2, 2), (9, 9), (2, 2)]), budget=8, padded=padded)
    assert [micro.rows for micro in micros] == ([(0, 2), (1,)] if padded else [(0,), (1,), (2,)])


@pytest.mark.parametrize(("budget", "expected"), [(19, [(1,), (3,), (2,), (0,)]), (20, [(1,), (3,), (2, 0)])])
def test_buckets_put_like_lengths_together(budget: int, expected: list[tuple[int, ...]]) -> None:
    # 9 and 10 tokens make a rectangle of 20, a twentieth of it padding; 2 and 3 tokens would waste a sixth.
    micros = pack(stream_rows([(1, 9), (1, 1), (1, 8), (1, 2)]), budget=budget, padded=True)
    assert [micro.rows for micro in micros] == expected


@LAYOUTS
def test_teacher_states_stay_with_their_rows(padded: bool) -> None:
    rollouts = random_rollouts([(2, 5), (3, 1), (1, 3)])
    scores = [
        TeacherScores(Payload.HIDDEN, hidden=np.full((len(rollout.tokens), 2), row, dtype=np.float32))
        for row, rollout in enumerate(rollouts)
    ]
    for micro in pack(collate("x", rollouts, scores, objective="").rows, budget=16, padded=padded):
        (joined,) = micro.scores
        assert isinstance(joined, TeacherScores) and joined.hidden is not None
        owners = [row for row in micro.rows for _ in rollouts[row].tokens]
        assert joined.hidden[:, 0].tolist() == owners


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_every_row_goes_to_one_rank_and_loads_are_even(ranks: int) -> None:
    rng = np.random.default_rng(ranks)
    for _ in range(100):
        lengths = rng.integers(1, 60, int(rng.integers(1, 40))).tolist()
        shares = share_out(lengths, ranks)
        assert shares == share_out(lengths, ranks) and len(shares) == ranks
        assert sorted(row for share in shares for row in share) == list(range(len(lengths)))
        assert all(share == sorted(share) for share in shares)
        loads = [sum(lengths[row] for row in share) for share in shares]
        assert max(loads) - min(loads) <= max(lengths)


def test_the_longest_first_each_to_the_least_loaded() -> None:
    assert share_out([3, 9, 4, 4], 2) == [[1], [0, 2, 3]]
    assert share_out([5, 5, 5], 2) == [[0, 2], [1]], "like rows in their order, to the first of like ranks"
    assert share_out([7], 3) == [[0], [], []]


def test_rows_of_one_prompt_stay_together_unless_a_rank_would_get_a_twentieth_more() -> None:
    prompts = ["a", "b", "a", "b", "c", "c"]
    assert share_out([9, 8, 9, 8, 9, 9], 3, prompts) == [[0, 2], [4, 5], [1, 3]]
    assert share_out([9, 9, 9, 9], 4, ["a"] * 4) == [[0], [1], [2], [3]]
    assert share_out([100, 106, 100, 105], 2, ["a", "b", "a", "b"]) == [[1, 3], [0, 2]], "211 tokens, and 206 alone"
    assert share_out([100, 115, 100, 112], 2, ["a", "b", "a", "b"]) == [[1, 2], [0, 3]], "227 tokens, and 215 alone"


def test_loads_are_better_than_row_by_row() -> None:
    """Two long rows never meet while there is an empty rank."""
    assert sorted(map(len, share_out([50, 1, 50, 1, 1, 1], 3))) == [1, 1, 4]


SCORES = TeacherScores(
    Payload.HIDDEN,
    logprobs=np.zeros(4),
    top_ids=np.zeros((4, 3)),
    top_logprobs=np.zeros((4, 3)),
    hidden=np.zeros((4, 8), np.uint16),
    hidden_dtype="bfloat16",
)


@pytest.mark.parametrize("scores", [SCORES, replace(SCORES, hidden=None), None], ids=["all", "top_k", "none"])
def test_an_unlabelled_row_has_no_label_and_packs_with_its_kind(scores: TeacherScores | None) -> None:
    row = collate("x", random_rollouts([(3, 4)]), None if scores is None else [scores], objective="").rows[0]
    still = unlabelled(row)
    assert still.tokens.tolist() == row.tokens[:1].tolist()
    assert len(still.labels) == len(still.outputs) == 0 and still.credit is None
    (micro,) = pack([row, still], budget=99, padded=False)
    assert (len(micro.tokens), len(micro.labels)) == (8, 4)
    (alone,) = pack([still], budget=99, padded=False)
    if scores is None:
        assert alone.scores == ()
        return
    (empty,) = alone.scores
    assert isinstance(empty, TeacherScores) and (empty.payload, empty.hidden_dtype) == (Payload.HIDDEN, "bfloat16")
    for name in ("logprobs", "top_ids", "top_logprobs", "hidden"):
        whole, cut = getattr(scores, name), getattr(empty, name)
        assert cut is whole if whole is None else cut.shape == (0, *whole.shape[1:]) and cut.dtype == whole.dtype


def test_every_row_is_in_one_minibatch_of_each_pass() -> None:
    rows = tuple(Row(np.zeros(n + 1), np.arange(n), np.zeros(n)) for n in (1, 5, 2, 7, 3))
    parts = in_minibatches(Stream("main", rows, "main", 18), 2, 3, seed=(0, 4))
    assert [len(part.rows) for part in parts] == [3, 2] * 3
    passes = [{id(row) for part in parts[at : at + 2] for row in part.rows} for at in (0, 2, 4)]
    assert all(found == {id(row) for row in rows} for found in passes)
    assert all(part.loss_tokens == sum(len(row.labels) for row in part.rows) for part in parts)
    assert len({tuple(id(row) for row in part.rows) for part in parts[::2]}) > 1  # drawn anew
    again = in_minibatches(Stream("main", rows, "main", 18), 2, 3, seed=(0, 4))
    assert [[id(row) for row in part.rows] for part in again] == [[id(row) for row in part.rows] for part in parts]


def test_parts_in_order_keep_the_order_of_the_rows() -> None:
    rows = tuple(Row(np.zeros(n + 1), np.arange(n), np.zeros(n)) for n in (1, 5, 2, 7))
    parts = in_order(Stream("lm", rows, "lm", 15), 2)
    assert [([len(row.labels) for row in part.rows], part.loss_tokens) for part in parts] == [([1, 5], 6), ([2, 7], 9)]


def test_docstring_examples() -> None:
    names = {"Prompt": Prompt, "Rollout": Rollout, "Finish": Finish, "Row": Row, "Stream": Stream}
    done = doctest.testmod(batching, extraglobs=names)
    assert done.attempted and done.failed == 0


def test_only_labelled_tokens_are_trained_and_scored_at_their_own_positions() -> None:
    """A conversation: two turns of the assistant in one row, with a user's turn between them."""
    labelled = np.array([True, True, False, False, True, False])
    rollout = Example(np.arange(10, 18), 2, labelled).as_rollout()
    assert rollout.tokens.tolist() == [12, 13, 14, 15, 16]  # nothing after the last label
    scores = TeacherScores(Payload.SAMPLED, logprobs=np.arange(5, dtype=np.float32))
    row = collate("gold", [rollout], [scores]).rows[0]
    assert row.labels.tolist() == [12, 13, 16] and row.outputs.tolist() == [1, 2, 5]
    assert [int(row.tokens[output + 1]) for output in row.outputs] == row.labels.tolist()
    assert row.scores is not None and row.scores.logprobs is not None and row.scores.logprobs.tolist() == [0, 1, 4]
