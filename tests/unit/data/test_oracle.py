"""Rows of real data in real tokenizers: the ids and labels are those of the tokenizer's own encoding and of the template's."""

import gzip
import json
from functools import lru_cache
from itertools import islice
from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerBase

from minidist.config.data import RenderConfig
from minidist.data.examples import Example
from minidist.data.rendering import Renderer
from tests.support.tokenizers import NAMES, TEMPLATES, data_directory, shared_tokenizer

ROWS = 50  # of each of four sets


@lru_cache
def rows() -> list[tuple[str, str]]:
    """Prompts and answers; of a story, its first sentence and the rest."""
    data = data_directory()
    texts = [
        (f"{row['instruction']}\n{row['input']}", row["output"])
        for name in ("dolly/train.jsonl.gz", "short_instruct/train.jsonl")
        for row in lines(data / name)
    ]
    texts += [(f"Question: {row['question']}\nAnswer: ", row["answer"]) for row in lines(data / "gsm8k/train.jsonl.gz")]
    stories = [row["text"] for row in lines(next((data / "lm" / "tinystories").glob("train*")))]
    return texts + [(story[:40], story[40:400]) for story in stories]


def lines(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return [json.loads(line) for line in islice(file, ROWS)]


def labels_of(example: Example) -> list[int]:
    return example.answer.tolist()


@pytest.mark.parametrize("adds", ["none", "bos", "eos", "both"])
@pytest.mark.parametrize("name", NAMES)
def test_without_a_template_the_ids_are_those_of_the_joined_text(name: str, adds: str) -> None:
    tokenizer = shared_tokenizer(name, adds=adds)
    renderer, eos = Renderer(tokenizer, RenderConfig()), tokenizer.eos_token_id
    kept = 0
    for prompt, answer in rows():
        example = renderer.example(prompt, answer)
        asked = without_end(tokenizer(prompt)["input_ids"], eos)
        joined = [*without_end(tokenizer(prompt + answer)["input_ids"], eos), eos]
        assert example.tokens[: example.start].tolist() == asked
        if joined[: len(asked)] == asked:
            kept += 1
            assert example.tokens.tolist() == joined
            assert labels_of(example) == joined[len(asked) :]
        else:
            assert tokenizer.decode(example.tokens) == tokenizer.decode(joined)
            assert labels_of(example)[-1] == eos
    assert kept > 0.4 * len(rows())


def without_end(ids: list[int], eos: int) -> list[int]:
    return ids[:-1] if ids[-1:] == [eos] else ids


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("adds", ["none", "bos", "eos"])
@pytest.mark.parametrize("name", NAMES)
def test_with_a_template_the_ids_are_those_of_the_template(name: str, adds: str, template: str) -> None:
    tokenizer = shared_tokenizer(name, adds=adds, template=template)
    renderer = Renderer(tokenizer, RenderConfig())
    end = tokenizer.convert_tokens_to_ids(TEMPLATES[template][1][-1])
    assert renderer.end == end and end in renderer.stops
    kept = 0
    for prompt, answer in rows()[:: 1 if adds == "bos" else 10]:
        asking = [{"role": "user", "content": prompt}]
        example = renderer.example(prompt, answer)
        asked = ids_of(tokenizer, asking, asking_for_answer=True)
        whole = ids_of(tokenizer, [*asking, {"role": "assistant", "content": answer}])
        assert example.tokens[: example.start].tolist() == asked
        if whole[: len(asked)] == asked:
            kept += 1
            assert example.tokens.tolist() == whole
            last = len(whole) - whole[::-1].index(end)
            assert labels_of(example) == whole[len(asked) : last]
        else:
            assert tokenizer.decode(example.tokens) == tokenizer.decode(whole)
            assert labels_of(example)[-1] == end
    assert kept > 0 or template == "llama3"


def ids_of(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]], *, asking_for_answer: bool = False) -> list[int]:
    return tokenizer.apply_chat_template(messages, add_generation_prompt=asking_for_answer, return_dict=False)
