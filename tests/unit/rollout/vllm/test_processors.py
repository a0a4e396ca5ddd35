"""The logits processors of both of vLLM's model runners: which are loaded, and what they do to logits on a CPU."""

import importlib
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import LogitsProcessor as First
from vllm.v1.worker.gpu.sample.logits_processor import LogitsContext, LogitsProcRequestState
from vllm.v1.worker.gpu.sample.logits_processor import LogitsProcessor as Second

from minidist.rollout.ngrams import OPTION, completions
from minidist.rollout.vllm import processors
from minidist.types import Vocabulary

CPU = torch.device("cpu")
WIDTH = 12


def configuration(runner: int = 1) -> Any:
    """vLLM's configuration, as far as it is asked."""
    model = SimpleNamespace(get_vocab_size=lambda: WIDTH, logits_processors=None)
    return SimpleNamespace(use_v2_model_runner=runner == 2, model_config=model, additional_config={"other": 1})


def loaded(config: Any) -> list[type]:
    """The classes that vLLM would load."""
    found = [name.split(":") for name in config.model_config.logits_processors or []]
    return [getattr(importlib.import_module(module), name) for module, name in found]


def states(slots: int, longest: int) -> LogitsProcRequestState:
    """The second runner's tables of `slots` requests, filled with stale tokens."""
    tokens: Any = SimpleNamespace(gpu=torch.full((slots, longest), WIDTH - 1, dtype=torch.int32))
    none: Any = None
    fields = {"all_token_ids": tokens, "prompt_len": none, "prefill_len": none, "total_len": none}
    return LogitsProcRequestState(device=CPU, max_num_reqs=slots, vocab_size=WIDTH, **fields)


def context(slots: list[int], lengths: list[int]) -> LogitsContext:
    """A step with a row of logits for each of the requests in these slots."""
    mapping, pos = torch.tensor(slots, dtype=torch.int32), torch.tensor(lengths) - 1
    return LogitsContext(
        expanded_idx_mapping=mapping,
        idx_mapping=mapping,
        idx_mapping_np=np.array(slots, dtype=np.int32),
        expanded_local_pos=torch.zeros(len(slots), dtype=torch.int32),
        input_ids=torch.zeros(len(slots), dtype=torch.int32),
        pos=pos,
        seq_lens_upper_bound_np=np.array(lengths, dtype=np.int32),
    )


@pytest.mark.parametrize(("runner", "interface"), [(1, First), (2, Second)])
def test_each_runner_gets_processors_of_its_own_interface(runner: int, interface: type) -> None:
    config = configuration(runner)
    processors.load(config, 8, ngrams=True)
    assert [each.__name__ for each in loaded(config)] == ["SharedVocabulary", "NoRepeatNgram"]
    assert all(issubclass(each, interface) for each in loaded(config))
    assert config.additional_config["other"] == 1


@pytest.mark.parametrize("vocabulary", [None, WIDTH, WIDTH + 3])
def test_nothing_is_loaded_where_all_ids_are_shared(vocabulary: int | None) -> None:
    config = configuration()
    processors.load(config, vocabulary, ngrams=False)
    assert config.model_config.logits_processors is None


@pytest.mark.parametrize("runner", [1, 2])
@pytest.mark.parametrize("vocabulary", [Vocabulary(9), Vocabulary(9, [0, 4]), Vocabulary(WIDTH, [3])])
def test_ids_that_are_not_shared_have_no_part_in_the_softmax(runner: int, vocabulary: Vocabulary) -> None:
    config = configuration(runner)
    processors.load(config, vocabulary, ngrams=False)
    [kind] = loaded(config)
    logits_BV = torch.randn(5, WIDTH, generator=torch.Generator().manual_seed(1))
    expected_BC = torch.log_softmax(logits_BV[:, vocabulary.ids], -1)
    if runner == 1:
        processor: Any = kind(config, CPU, False)
        processor.update_state(None)
        assert not processor.is_argmax_invariant(), "a greedy draw needs it too"
        found_BV = processor.apply(logits_BV.clone())
    else:
        processor = kind(config, states(8, 4))
        assert processor.add_request(2, SamplingParams()), "the runner leaves out rows of requests that no processor changes"
        processor.apply_staged_writes()
        found_BV = processor.apply(logits_BV.clone(), context([2, 0, 1, 5, 4], [3] * 5))
    logprobs_BV = torch.log_softmax(found_BV, -1)
    torch.testing.assert_close(logprobs_BV[:, vocabulary.ids], expected_BC)
    others = sorted(set(range(WIDTH)) - set(vocabulary.ids))
    assert bool((logprobs_BV[:, others] == float("-inf")).all())


def blocked(kind: type, sequences: list[list[int]], sizes: list[int | None], slots: list[int]) -> Tensor:
    """Logits [B, V] of zeros after the second runner's n-gram processor, requests in these slots."""
    tables = states(max(slots) + 1, 40)
    processor: Any = kind(configuration(2), tables)
    for slot in slots:  # whoever had the slots before
        processor.add_request(slot, SamplingParams(extra_args={OPTION: 1}))
    for slot, sequence, size in zip(slots, sequences, sizes, strict=True):
        tables.all_token_ids.gpu[slot, : len(sequence)] = torch.tensor(sequence, dtype=torch.int32)
        found = processor.add_request(slot, SamplingParams(extra_args=None if size is None else {OPTION: size}))
        assert found is (size is not None)
    processor.apply_staged_writes()
    return processor.apply(torch.zeros(len(slots), WIDTH), context(slots, [len(sequence) for sequence in sequences]))


def test_the_second_runner_blocks_the_ngrams_that_the_first_one_blocks() -> None:
    """Rows of several lengths and sizes, in an order that is not that of their slots."""
    config = configuration(2)
    processors.load(config, None, ngrams=True)
    [kind] = loaded(config)
    random = np.random.default_rng(3)
    sizes: list[int | None] = [1, 2, 3, None, 2, 3, 4, 2, 2, 1]
    lengths = [5, 30, 39, 30, 1, 2, 40, 2, 17, 1]
    sequences = [random.integers(0, 4, length).tolist() for length in lengths]
    slots = random.permutation(len(sizes)).tolist()
    logits_BV = blocked(kind, sequences, sizes, slots)
    for row_V, sequence, size in zip(logits_BV, sequences, sizes, strict=True):
        expected = set() if size is None else completions(sequence, size)
        assert set(torch.nonzero(row_V == float("-inf")).flatten().tolist()) == expected
        assert set(row_V.tolist()) <= {0.0, float("-inf")}
    assert {len(completions(s, size)) for s, size in zip(sequences, sizes, strict=True) if size} >= {0, 1, 2, 4}


def test_a_step_without_requests_that_block_ngrams_costs_nothing() -> None:
    config = configuration(2)
    processors.load(config, None, ngrams=True)
    [kind] = loaded(config)
    logits_BV = torch.zeros(2, WIDTH)
    assert blocked(kind, [[1, 1], [2, 2, 2]], [None, None], [1, 0]).equal(logits_BV)
