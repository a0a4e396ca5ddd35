"""The reference sampler: exact distributions, log-probabilities of the sampled distribution, one seed a sample."""

import asyncio
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

import minidist.rollout.hf as module
from minidist.config.models import ModelConfig
from minidist.models.arrays import to_array
from minidist.rollout.hf import HFEngine, sample, warp
from minidist.rollout.seeds import sample_seed
from minidist.types import Finish, Prompt, Rollout, Sampling, Vocabulary, Weights
from tests.support.tiny import VOCABULARY, random_rollouts, tiny_model, tiny_renderer

RENDERER = tiny_renderer()
FAMILIES = pytest.mark.parametrize("kind", ["llama", "gpt2"])


def made_prompts(*lengths: int) -> list[Prompt]:
    return [rollout.prompt for rollout in random_rollouts([(length, 1) for length in lengths])]


def written(model: PreTrainedModel, prompts: list[Prompt], **options: Any) -> list[Rollout]:
    return sample(model, RENDERER, prompts, Sampling(**({"max_new_tokens": 12} | options)), version=3)


@torch.no_grad()
def exact(model: PreTrainedModel, tokens: np.ndarray, *, temperature: float = 1.0, top_p: float = 1.0) -> torch.Tensor:
    """Probabilities [S, V] after each token, truncated naively: sort, keep the smallest set that reaches top_p."""
    table = (model(torch.tensor(tokens[None].astype(np.int64))).logits[0].double() / temperature).softmax(-1)
    for line in table:
        mass, kept = 0.0, []
        for token in line.argsort(descending=True).tolist():
            if mass < top_p:
                kept.append(token)
            mass += float(line[token])
        keep = torch.zeros_like(line)
        keep[kept] = 1
        line *= keep
        line /= line.sum()
    return table


@FAMILIES
def test_greedy_equals_generate(kind: str) -> None:
    model = tiny_model(kind)
    for rollout in written(model, made_prompts(2, 7, 4, 5), temperature=0.0):
        ids = torch.tensor(rollout.prompt.tokens[None].astype(np.int64))
        options = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": 0, "pad_token_id": 0}
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), **options)
        assert rollout.tokens.tolist() == expected[0, ids.shape[1] :].tolist()


@pytest.mark.parametrize("size", [2, 3])
def test_ngrams_are_blocked_as_in_transformers(size: int) -> None:
    """Greedy, against `generate`; n-grams of the prompt count, and rows of different length do not mix."""
    model, prompts = tiny_model(), made_prompts(2, 9, 4, 20)
    plain = [rollout.tokens.tolist() for rollout in written(model, prompts, temperature=0.0)]
    blocked = written(model, prompts, temperature=0.0, no_repeat_ngram_size=size)
    assert sum(rollout.tokens.tolist() != tokens for rollout, tokens in zip(blocked, plain, strict=True)) >= 2
    for rollout in blocked:
        ids = torch.tensor(rollout.prompt.tokens[None].astype(np.int64))
        options = {"do_sample": False, "max_new_tokens": 12, "eos_token_id": 0, "pad_token_id": 0}
        expected = model.generate(ids, attention_mask=torch.ones_like(ids), no_repeat_ngram_size=size, **options)
        assert rollout.tokens.tolist() == expected[0, ids.shape[1] :].tolist()


def test_blocked_samples_have_the_logprobs_of_the_remaining_tokens() -> None:
    model = tiny_model()
    for rollout in written(model, made_prompts(4, 9), samples=4, no_repeat_ngram_size=2):
        whole = [*rollout.prompt.tokens.tolist(), *rollout.tokens.tolist()]
        table = exact(model, np.array(whole))[len(rollout.prompt.tokens) - 1 : -1]
        for at, token in enumerate(rollout.tokens.tolist()):
            before = whole[: len(rollout.prompt.tokens) + at]
            left = [each for each in range(VOCABULARY) if (before[-1], each) not in set(pairwise(before))]
            assert token in left
            assert rollout.logprobs is not None
            assert float(rollout.logprobs[at]) == pytest.approx(
                float((table[at][token] / table[at][left].sum()).log()), abs=1e-4
            )


@FAMILIES
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.9), (0.7, 0.9)])
def test_logprobs_are_of_the_sampled_distribution(kind: str, temperature: float, top_p: float) -> None:
    model = tiny_model(kind)
    for rollout in written(model, made_prompts(2, 7, 4, 5), samples=3, temperature=temperature, top_p=top_p):
        whole = np.concatenate([rollout.prompt.tokens, rollout.tokens])
        table = exact(model, whole, temperature=temperature, top_p=top_p)[len(rollout.prompt.tokens) - 1 : -1]
        wanted = table[range(len(rollout.tokens)), rollout.tokens.tolist()].log()
        assert np.abs(rollout.logprobs - wanted.numpy()).max() < 1e-4


def test_the_same_seed_gives_the_same_samples_in_any_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model, prompts = tiny_model(), made_prompts(2, 7, 4, 5)
    together = written(model, prompts, samples=2)
    assert [rollout.tokens.tolist() for rollout in written(model, prompts, samples=2)] == [r.tokens.tolist() for r in together]
    alone = [rollout for prompt in prompts[::-1] for rollout in written(model, [prompt], samples=2)[::-1]][::-1]
    monkeypatch.setattr(module, "ROWS", 3)
    for other in (alone, written(model, prompts, samples=2)):
        for left, right in zip(together, other, strict=True):
            assert (left.prompt.row, left.sample) == (right.prompt.row, right.sample)
            assert left.tokens.tolist() == right.tokens.tolist()
            assert np.abs(left.logprobs - right.logprobs).max() < 1e-4


def test_samples_of_different_numbers_and_seeds_differ() -> None:
    model, prompts = tiny_model(), made_prompts(5, 5)
    one, two, *_ = written(model, prompts, samples=2)
    assert one.tokens.tolist() != two.tokens.tolist()
    assert written(model, prompts, seed=1)[0].tokens.tolist() != one.tokens.tolist()
    assert len({sample_seed(seed, row, number) for seed in range(9) for row in range(9) for number in range(9)}) == 729
    assert all(0 <= sample_seed(0, row, 0) < 1 << 31 for row in range(99))


def test_rollouts_are_ordered_by_prompt_then_sample() -> None:
    rollouts = written(tiny_model(), made_prompts(9, 2, 5), samples=2)
    assert [(rollout.prompt.row, rollout.sample) for rollout in rollouts] == [(0, 0), (0, 1), (1, 0), (1, 1), (2, 0), (2, 1)]
    assert all((rollout.versions == 3).all() and len(rollout.versions) == len(rollout.tokens) for rollout in rollouts)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 0.9)])
def test_frequencies_of_samples_are_their_probabilities(temperature: float, top_p: float) -> None:
    model, prompts, count = tiny_model(), made_prompts(4), 3000
    rollouts = written(model, prompts, samples=count, max_new_tokens=1, temperature=temperature, top_p=top_p)
    seen = np.bincount([int(rollout.tokens[0]) for rollout in rollouts], minlength=VOCABULARY)
    wanted = count * exact(model, prompts[0].tokens, temperature=temperature, top_p=top_p)[-1].numpy()
    assert seen[wanted == 0].sum() == 0, "outside top-p nothing is sampled"
    rare = (wanted > 0) & (wanted < 5)  # together, since chi-square needs some of each
    pairs = [(seen[at], wanted[at]) for at in np.flatnonzero(wanted >= 5)]
    if rare.any():
        pairs.append((seen[rare].sum(), wanted[rare].sum()))
    statistic = sum((got - want) ** 2 / want for got, want in pairs)
    freedom = len(pairs) - 1
    assert freedom >= 2
    assert statistic < freedom + 4 * (2 * freedom) ** 0.5, "four standard deviations of chi-square"


def test_the_end_of_sequence_token_ends_and_the_limit_truncates() -> None:
    rollouts = written(tiny_model(), made_prompts(2, 7, 4, 5), samples=8, max_new_tokens=10)
    assert {rollout.finish for rollout in rollouts} == {Finish.STOP, Finish.LENGTH}
    for rollout in rollouts:
        tokens = rollout.tokens.tolist()
        assert 0 not in tokens[:-1]
        assert (rollout.finish is Finish.STOP) == (tokens[-1] == 0)
        assert rollout.finish is Finish.STOP or len(tokens) == 10
        assert rollout.text == RENDERER.tokenizer.decode([token for token in tokens if token != 0])


def test_engine_scores_and_takes_new_weights(tmp_path: Path) -> None:
    old, new = tiny_model(), tiny_model(seed=1)
    old.save_pretrained(tmp_path / "old")
    new.save_pretrained(tmp_path / "new")
    pairs = {name: to_array(tensor) for name, tensor in new.state_dict().items()}
    weights = Weights(7, {name: pair[0] for name, pair in pairs.items()}, {name: pair[1] for name, pair in pairs.items()})
    sequence = made_prompts(9)[0].tokens

    async def use() -> None:
        engine = HFEngine(ModelConfig(model=str(tmp_path / "old")), RENDERER)
        for loaded, model, version in (
            (None, old, 0),
            (weights, new, 7),
            (tmp_path / "old", old, 8),
            (tmp_path / "new", new, 9),
        ):
            if loaded is not None:
                await engine.load(loaded)
            wanted = exact(model, sequence)[range(8), sequence[1:].tolist()].log()
            assert np.abs(np.array((await engine.score([sequence.tolist()]))[0]) - wanted.numpy()).max() < 1e-4
            rollout = (await engine.generate(made_prompts(3), Sampling(max_new_tokens=4)))[0]
            assert rollout.tokens.tolist() == written(model, made_prompts(3), max_new_tokens=4)[0].tokens.tolist()
            assert set(rollout.versions.tolist()) == {version} == {await engine.version()}
        await engine.close()

    asyncio.run(use())


def test_an_answer_ends_at_any_id_that_ends_answers() -> None:
    """Its tokens are those without the second id up to there; finish and visible text agree."""
    model, prompts, renderer = tiny_model(), made_prompts(2, 7, 4, 5), tiny_renderer(4)
    sampling = Sampling(max_new_tokens=12, samples=6)
    found, endings = sample(model, renderer, prompts, sampling, version=0), set()
    for rollout, free in zip(found, written(model, prompts, samples=6), strict=True):
        ids = free.tokens.tolist()
        end = min((ids.index(stop) for stop in (0, 4) if stop in ids), default=11)
        assert rollout.tokens.tolist() == ids[: end + 1]
        stopped = ids[end] in (0, 4)
        assert rollout.finish is (Finish.STOP if stopped else Finish.LENGTH)
        assert rollout.text == renderer.decode(np.array(ids[:end] if stopped else ids[: end + 1]))
        endings.add(ids[end] if stopped else None)
    assert endings >= {0, 4}


@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "top_p": 0.9}, {"temperature": 0.0, "top_p": 0.5}])
def test_absent_ids_are_never_drawn_and_carry_no_probability(options: dict[str, float]) -> None:
    """As in a model whose head has no rows for them."""
    sampling, logits = Sampling(max_new_tokens=4, **options), torch.randn(5, 9)  # type: ignore[arg-type]
    found = warp(logits, sampling, Vocabulary(7, [2, 4]))
    kept = [0, 1, 3, 5, 6]
    assert torch.allclose(found[:, kept], warp(logits[:, kept], sampling))
    assert (found[:, [2, 4]] == -torch.inf).all() and found.shape == (5, 7)
