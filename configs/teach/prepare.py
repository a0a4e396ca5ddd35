"""Make what the experiments of this folder start from: a WordPiece tokenizer and plain text, from the shared data.

Usage: python configs/teach/prepare.py runs/teach  (MINIDIST_DATA names the data)
"""

import gzip
import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from tokenizers import BertWordPieceTokenizer
from transformers import BertTokenizerFast

WORDS = 8192
TASKS = {
    "sst2": ("sentence",),
    "mrpc": ("sentence1", "sentence2"),
    "qnli": ("question", "sentence"),
    "mnli": ("premise", "hypothesis"),
    "stsb": ("sentence1", "sentence2"),
    "cola": ("sentence",),
    "rte": ("sentence1", "sentence2"),
}


def rows(path: Path) -> Iterator[dict[str, str]]:
    """Rows of a JSON-lines file, compressed or not."""
    with (gzip.open if path.suffix == ".gz" else open)(path, "rt", encoding="utf-8") as file:
        yield from map(json.loads, file)


def texts(data: Path) -> Iterator[str]:
    """Paragraphs of WikiText-2 and Tiny Shakespeare, stories, and the texts of the tasks' training rows, without labels."""
    for path in (data / "lm/wikitext2/valid.txt", data / "lm/wikitext2/test.txt"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if len(line) > 80:
                yield line.strip().replace(" @-@ ", "-").replace("<unk>", "")
    shakespeare = (data / "lm/tinyshakespeare/input.txt").read_text(encoding="utf-8")
    yield from (part.replace("\n", " ") for part in shakespeare.split("\n\n") if len(part) > 80)
    yield from (row["text"] for row in rows(data / "lm/tinystories/train.jsonl.gz"))
    for task, columns in TASKS.items():
        path = next((data / "glue" / task).glob("train.jsonl*"))
        sentences = [row[column] for row in rows(path) for column in columns]
        # SST-2 lists every phrase of its sentences: the longest ones hold the others.
        yield from (text for text in dict.fromkeys(sentences) if task != "sst2" or len(text.split()) >= 12)


def main() -> None:
    """Write the tokenizer and text.jsonl into the folder given."""
    folder, data = Path(sys.argv[1]), Path(os.environ["MINIDIST_DATA"])
    folder.mkdir(parents=True, exist_ok=True)
    found = list(texts(data))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in found), encoding="utf-8")
    pieces = BertWordPieceTokenizer(lowercase=True)
    pieces.train_from_iterator(found, vocab_size=WORDS, min_frequency=2, show_progress=False)
    tokenizer = BertTokenizerFast(tokenizer_object=pieces._tokenizer, do_lower_case=True)
    tokenizer.save_pretrained(folder / "tokenizer")
    print(f"{len(found):,} texts, {len(tokenizer):,} word pieces in {folder}")


if __name__ == "__main__":
    main()
