"""Make what the experiments of this folder start from: a tokenizer and the rows on which a base model learns to write steps.

Usage: python configs/system2/prepare.py TASK runs/system2/TASK  (TASK: last_letters or arithmetic)

The base model learns to write the steps of whole problems, to answer after steps, and to answer at once where there is one step
only, so that it knows the form of a direct answer but cannot give one to a whole problem.
"""

import json
import random
import re
import sys
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from minidist.data.tasks import generate

ROWS, PIECES = 20_000, 400


def one_step(task: str, row: dict[str, Any]) -> tuple[str, str]:
    """A problem of one step, cut from a whole one, and its answer."""
    if task == "last_letters":
        names = row["prompt"].split('"')[1]
        return row["prompt"].replace(names, names.split()[0]), row["answer"][0]
    shortened = re.sub(r"(: [-+*] \d),.*", r"\1.", row["prompt"])
    return shortened, re.findall(r"= (\d)", row["steps"])[0]


def lessons(task: str) -> list[dict[str, str]]:
    """Rows of prompt and answer: of ten, seven with steps, one with the answer after them, two with one step only."""
    found = []
    for number, row in enumerate(generate(task, split="train", rows=ROWS, seed=0)):
        if number % 10 < 7:
            found.append((f"{row['prompt']} Steps:", f" {row['steps']}"))
        elif number % 10 == 7:
            found.append((f"{row['prompt']} Steps: {row['steps']} Answer:", f" {row['answer']}"))
        else:
            prompt, answer = one_step(task, row)
            found.append((f"{prompt} Answer:", f" {answer}"))
    random.Random(0).shuffle(found)
    return [{"prompt": prompt, "answer": answer} for prompt, answer in found]


def main() -> None:
    """Write tokenizer/ and base.jsonl into the folder given."""
    task, folder = sys.argv[1], Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    rows = lessons(task)
    (folder / "base.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=PIECES, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False)
    pieces.train_from_iterator((row["prompt"] + row["answer"] for row in rows), trainer)
    PreTrainedTokenizerFast(tokenizer_object=pieces, eos_token="<eos>").save_pretrained(folder / "tokenizer")
    print(f"{len(rows):,} rows in {folder}")


if __name__ == "__main__":
    main()
