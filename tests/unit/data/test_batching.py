"""The shift, and micro-batches that lose no row."""

import numpy as np
import pytest
import torch

from minidist.data.batching import collate, collate_examples, pack
from minidist.data.sources import Example
from minidist.types import Payload, Row, TeacherScores
from tests.support.tiny import random_rollouts, row_logits, tiny_model, tiny_renderer

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
    given, answer = renderer.prompt("21="), renderer.answer("12")
    stream = collate_examples("gold", [Example(np.concatenate([given, answer]), len(given))], objective="supervised")
    assert stream.rows[0].labels.tolist() == answer.tolist()
    assert stream.rows[0].labels[-1] == renderer.eos
    assert stream.loss_tokens == 3


def test_every_token_of_plain_text_but_the_first_is_a_label() -> None:
    row = collate_examples("text", [Example(np.array([5, 6, 7]), 1)], objective="supervised").rows[0]
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


def test_buckets_put_like_lengths_together() -> None:
    micros = pack(stream_rows([(1, 9), (1, 1), (1, 8), (1, 2)]), budget=20, padded=True)
    assert [micro.rows for micro in micros] == [(1, 3), (2,), (0,)] or [micro.rows for micro in micros] == [(1, 3), (2, 0)]


@LAYOUTS
def test_teacher_states_stay_with_their_rows(padded: bool) -> None:
    rollouts = random_rollouts([(2, 5), (3, 1), (1, 3)])
    scores = [
        TeacherScores(Payload.HIDDEN, hidden=np.full((len(rollout.tokens), 2), row, dtype=np.float32))
        for row, rollout in enumerate(rollouts)
    ]
    for micro in pack(collate("x", rollouts, scores, objective="").rows, budget=16, padded=padded):
        assert micro.scores is not None and micro.scores.hidden is not None
        owners = [row for row in micro.rows for _ in rollouts[row].tokens]
        assert micro.scores.hidden[:, 0].tolist() == owners
