"""The tokenizers of the shared data, and chat templates in the styles of well-known families."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest
from tokenizers import AddedToken
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer, BertTokenizer, GPT2Tokenizer, LlamaTokenizer, PreTrainedTokenizerBase

NAMES = ("gpt2", "bert-base-uncased", "minimind", "mistral-v1", "tinystories512")

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] | trim }}<|eot_id|>{% endfor %}"
    "{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
GEMMA = (
    "{{ '<bos>' }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<start_of_turn>{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] | trim }}<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'user' %}[INST] {{ m['content'] }} [/INST]"
    "{% elif m['role'] == 'assistant' %} {{ m['content'] }}</s>{% endif %}{% endfor %}"
)
QWEN3 = (
    "{% for m in messages %}{% if m['role'] == 'assistant' %}<|im_start|>assistant\n"
    "{% if loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m['content'].split('</think>')[-1].lstrip('\n') }}<|im_end|>\n"
    "{% else %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
TEMPLATES = {
    "chatml": (CHATML, ["<|im_start|>", "<|im_end|>"]),
    "llama3": (LLAMA3, ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]),
    "gemma": (GEMMA, ["<bos>", "<start_of_turn>", "<end_of_turn>"]),
    "mistral": (MISTRAL, ["<s>", "</s>"]),
    "qwen3": (QWEN3, ["<|im_start|>", "<|im_end|>"]),
}


def data_directory() -> Path:
    """The shared data; the test is skipped, with the reason, where there is none."""
    if (directory := os.environ.get("MINIDIST_DATA")) is None:
        pytest.skip("MINIDIST_DATA is not set: the shared data is not here")
    return Path(directory)


def shared_tokenizer(name: str, *, adds: str = "none", template: str | None = None) -> PreTrainedTokenizerBase:
    """A tokenizer of the shared data. `adds`: none, bos, eos or both, by its post-processor; `template`: a style, or None."""
    tokenizer = _load(data_directory() / "tokenizers" / name)
    if tokenizer.eos_token is None:
        tokenizer.add_special_tokens({"eos_token": "[SEP]" if name.startswith("bert") else "</s>"})
    if tokenizer.bos_token is None:
        tokenizer.add_special_tokens({"bos_token": "[CLS]" if name.startswith("bert") else "<s>"})
    tokenizer.chat_template = None
    if template is not None:
        tokenizer.chat_template, tokens = TEMPLATES[template]
        tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True)
    bos, eos = str(tokenizer.bos_token), str(tokenizer.eos_token)
    single = {"none": "$A", "bos": f"{bos} $A", "eos": f"$A {eos}", "both": f"{bos} $A {eos}"}[adds]
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in (bos, eos)}
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=list(ids.items()))
    return tokenizer


def _load(path: Path) -> PreTrainedTokenizerBase:
    if path.name == "gpt2":
        return GPT2Tokenizer(vocab=str(path / "vocab.json"), merges=str(path / "merges.txt"))
    if path.name.startswith("bert"):
        return BertTokenizer(vocab=str(path / "vocab.txt"))
    if path.name == "minimind":
        return AutoTokenizer.from_pretrained(path)
    model = next(file for file in path.iterdir() if ".model" in file.name)
    with tempfile.TemporaryDirectory() as folder:  # transformers finds a SentencePiece model by this name
        shutil.copy(model, Path(folder) / "tokenizer.model")
        return LlamaTokenizer.from_pretrained(folder)
