"""Random models stop at the rate that is asked for, after every text."""

import pytest
import torch

from tests.benchmarks.peers.models import ModelSpec, alphabet_tokenizer, stopping_rate

VOCABULARY, END = 500, 499


def spec(model_type: str = "gpt2", spread: float = 1.0) -> ModelSpec:
    gpt2 = {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 64}
    llama = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape = (gpt2 if model_type == "gpt2" else llama) | {"vocab_size": VOCABULARY}
    return ModelSpec(model_type, shape, end_token=END, spread=spread, seed=0)


def end_probabilities(made: ModelSpec, rate: float) -> torch.Tensor:
    """Of the end token at each position of random texts."""
    ids = torch.randint(0, END, (8, 32), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return made.build(rate)(ids).logits.softmax(-1)[..., END].flatten()


def test_answers_have_the_mean_length() -> None:
    """1,000 answers: the standard error of their mean length is 0.3 tokens."""
    torch.manual_seed(0)
    model = spec().build(stopping_rate(12.0, 32))
    prompts = torch.randint(0, END, (1000, 4))
    with torch.no_grad():
        found = model.generate(prompts, attention_mask=torch.ones_like(prompts), do_sample=True, top_k=0, max_new_tokens=32)
    answers = found[:, 4:]
    lengths = torch.where((answers == END).any(1), (answers == END).int().argmax(1) + 1, answers.shape[1])
    assert float(lengths.float().mean()) == pytest.approx(12.0, abs=0.9)


def test_the_rate_is_the_same_after_every_text() -> None:
    found = end_probabilities(spec(), 0.05)
    assert found.mean() == pytest.approx(0.05, rel=0.1)
    assert found.std() < 0.2 * found.mean()


def test_a_model_without_a_rate_hardly_ever_stops() -> None:
    assert end_probabilities(spec("llama", spread=3.0), 0.0).max() < 2e-4


def test_logits_have_the_spread() -> None:
    ids = torch.randint(0, END, (4, 16), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        logits = spec(spread=1.5).build(0.05)(ids).logits[..., :END]
    assert logits.std(-1).mean() == pytest.approx(1.5, rel=0.05)


@pytest.mark.parametrize(("rate", "longest"), [(0.5, 3), (0.02, 128)])
def test_a_stopping_rate_gives_its_mean_back(rate: float, longest: int) -> None:
    mean = sum((1 - rate) ** step for step in range(longest))  # the answer is longer than `step`
    assert stopping_rate(mean, longest) == pytest.approx(rate)


def test_a_tokenizer_of_characters_has_the_vocabulary() -> None:
    assert len(alphabet_tokenizer(100)) == 100
