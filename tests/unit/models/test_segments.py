"""Attention by segments: what each row sees, what is computed, and what stays as it was."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from minidist.data.batching import MicroBatch, pack
from minidist.models.families import PACKED
from minidist.models.forward import checkpoint_activations, hidden_states, padded_layout
from minidist.models.segments import Segments, share_prompts, use_segments
from minidist.types import Row
from tests.support.families import FAMILIES, family_model
from tests.support.micro import alone, states, uneven_rows
from tests.support.tiny import VOCABULARY, tiny_model

LENGTHS = [(9, 5), (9, 11), (3, 40), (9, 2), (3, 33), (1, 7), (30, 12)]


def rows_of(lengths: list[tuple[int, int]], seed: int = 0) -> tuple[Row, ...]:
    """Rows with prompts and answers of the given lengths; prompts of one length are the same."""
    rng = np.random.default_rng(seed)
    prompts = {length: rng.integers(0, VOCABULARY, length) for length, _ in lengths}
    rows = []
    for prompt, answer in lengths:
        tokens = np.concatenate([prompts[prompt], rng.integers(0, VOCABULARY, answer)])
        rows.append(Row(tokens, np.arange(prompt - 1, len(tokens) - 1), tokens[prompt:]))
    return tuple(rows)


def packed(rows: tuple[Row, ...]) -> MicroBatch:
    (micro,) = pack(rows, budget=10_000, padded=False)
    return micro


def segmented(kind: str = "llama", **fields: Any) -> PreTrainedModel:
    model = tiny_model(kind, **fields)
    assert use_segments(model)
    return model


@pytest.mark.parametrize("family", sorted(PACKED & FAMILIES.keys()))
def test_rows_by_segments_equal_rows_alone(family: str) -> None:
    model, reference = family_model(family), family_model(family)
    if not use_segments(model):
        assert family == "gemma2", "its soft cap has no fused kernel"
        return
    assert not padded_layout("auto", model)
    rows = rows_of(LENGTHS)
    for index, got in states(model, rows, padded=False, budget=10_000).items():
        assert (got - alone(reference, rows[index])).abs().max() < 2e-5


@pytest.mark.parametrize(
    "lengths",
    [[(5, 4)], [(5, 4), (4, 5)], [(6, 5), (5, 4), (3, 2)], [(3, 2), (5, 4)], [(30, 12), (4, 3), (3, 3)], [(9, 5), (9, 5)]],
    ids=str,
)
def test_rows_equal_rows_alone_however_their_lengths_are_ordered(lengths: list[tuple[int, int]]) -> None:
    """In falling order the rows lie as they are attended, with padding after the last ones or with none."""
    model, rows = segmented(), rows_of(lengths)
    for index, got in states(model, rows, padded=False, budget=10_000).items():
        assert (got - alone(tiny_model("llama"), rows[index])).abs().max() < 2e-5


@pytest.mark.parametrize("window", [2, 4, 8, 9, 10, 11, 41, 50])
def test_windows_of_every_length_hold_before_and_after_the_end_of_a_shared_prompt(window: int) -> None:
    model, reference = (family_model("mistral", sliding_window=window) for _ in range(2))
    assert use_segments(model)
    rows = rows_of(LENGTHS)
    for index, got in states(model, rows, padded=False, budget=10_000).items():
        assert (got - alone(reference, rows[index])).abs().max() < 2e-5


def test_a_perturbed_row_moves_no_other_row() -> None:
    model, rows = segmented(), uneven_rows()
    before = states(model, rows, padded=False, budget=1000)
    for changed in range(len(rows)):
        row = rows[changed]
        moved = (*rows[:changed], Row((row.tokens + 1) % VOCABULARY, row.outputs, row.labels), *rows[changed + 1 :])
        after = states(model, moved, padded=False, budget=1000)
        differs = [bool((before[index] - after[index]).abs().max() > 1e-6) for index in range(len(rows))]
        assert differs == [index == changed for index in range(len(rows))]


def test_no_token_is_padding_and_a_shared_prompt_is_computed_once() -> None:
    model, seen = segmented(), []
    model.get_input_embeddings().register_forward_hook(lambda module, given, _: seen.append(given[0].numel()))
    hidden_states(model, packed(rows_of(LENGTHS)), padded=False)
    answers = sum(answer for _, answer in LENGTHS)
    assert seen == [9 + 3 + 1 + 30 + answers]


def test_segments_of_shared_prompts_by_hand() -> None:
    row = Row(np.array([5, 6, 7, 8]), np.array([1, 2]), np.array([7, 8]))
    other = Row(np.array([5, 6, 9]), np.array([1]), np.array([9]))
    single = Row(np.array([4, 3]), np.array([0]), np.array([3]))
    segments, read, place = share_prompts(packed((row, single, other)))
    assert segments.length.tolist() == [2, 2, 1, 2] and segments.before.tolist() == [-1, 0, 0, -1]
    assert read.tolist() == [0, 1, 2, 3, 8, 4, 5]
    assert place.tolist() == [0, 1, 2, 3, 5, 6, 0, 1, 4]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_equal_those_of_rows_alone(checkpointing: bool) -> None:
    model, reference = (family_model("mistral", sliding_window=5) for _ in range(2))
    assert use_segments(model)
    if checkpointing:
        checkpoint_activations(model)
    micro = packed(rows_of(LENGTHS))
    hidden_LD = hidden_states(model, micro, padded=False)
    weight_LD = torch.linspace(-1, 1, hidden_LD.numel()).view_as(hidden_LD)
    (hidden_LD * weight_LD).sum().backward()
    for row, part_LD in zip(rows_of(LENGTHS), weight_LD.split([answer for _, answer in LENGTHS]), strict=True):
        states_SD = reference.base_model(input_ids=torch.tensor(row.tokens)[None]).last_hidden_state[0]
        (states_SD[row.outputs] * part_LD).sum().backward()
    found = {name: parameter.grad for name, parameter in model.named_parameters()}
    for name, parameter in reference.named_parameters():
        if parameter.grad is not None:
            assert torch.allclose(found[name], parameter.grad, atol=1e-5 * float(parameter.grad.abs().max())), name


def test_generation_is_that_of_torchs_attention() -> None:
    ids = torch.randint(1, VOCABULARY, (3, 6), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    options: dict[str, Any] = {"attention_mask": mask, "max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
    assert torch.equal(segmented().generate(ids, **options), tiny_model().generate(ids, **options))


def test_a_model_with_other_attention_keeps_it() -> None:
    model = tiny_model()
    model.set_attn_implementation("eager")
    assert not use_segments(model) and model.config._attn_implementation == "eager"
    assert padded_layout("auto", model)


def test_the_marker_holds_the_segments() -> None:
    marker = Segments(np.array([2, 3]), np.array([-1, 0])).marker()
    assert marker.shape == (1, 1, 2, 2) and marker.flatten().tolist() == [2, 3, -1, 0]
