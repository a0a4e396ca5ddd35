"""Make what the experiments of this folder start from: a tokenizer and the rows on which a base model learns to write steps.

Usage: python configs/system2/prepare.py TASK runs/system2/TASK  (TASK: one of LESSONS)

The base model learns each call of the task's program, and to answer at once where that is easy, so that it knows the form of a
direct answer but cannot give a right one to a whole problem.
"""

import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from minidist.data.reasoning import CRITERIA
from minidist.data.tasks import generate

ROWS, PIECES = 20_000, 400

Row = dict[str, Any]
Lesson = tuple[str, str]


def stepped(one_step: Callable[[Row], Lesson]) -> Callable[[Row, int], Lesson]:
    """Of ten rows, seven with steps, one with the answer after them, two with a problem of one step only."""

    def lesson(row: Row, number: int) -> Lesson:
        if number < 7:
            return f"{row['prompt']} Steps:", f" {row['steps']}"
        if number == 7:
            return f"{row['prompt']} Steps: {row['steps']} Answer:", f" {row['answer']}"
        prompt, answer = one_step(row)
        return f"{prompt} Answer:", f" {answer}"

    return lesson


def one_name(row: Row) -> Lesson:
    names = row["prompt"].split('"')[1]
    return row["prompt"].replace(names, names.split()[0]), row["answer"][0]


def one_operation(row: Row) -> Lesson:
    return re.sub(r"(: [-+*] \d),.*", r"\1.", row["prompt"]), re.findall(r"= (\d)", row["steps"])[0]


def rephrased(one_step: Callable[[Row], Lesson]) -> Callable[[Row, int], Lesson]:
    """Of ten rows, five say the question in other words, three answer that, two answer at once a problem of one step."""

    def lesson(row: Row, number: int) -> Lesson:
        if number < 5:
            return f"{row['prompt']} Rephrase:", f" {row['rephrased']}"
        if number < 8:
            return f"{row['rephrased']} Answer:", f" {row['answer']}"
        prompt, answer = one_step(row)
        return f"{prompt} Answer:", f" {answer}"

    return lesson


def one_person(row: Row) -> Lesson:
    start, first, *_, question = row["prompt"].split(". ")
    return f"{start}. {first}. {question}", "yes" if "does not" in first else "no"


def biased(row: Row, number: int) -> Lesson:
    """Of ten rows, four take the opinion out, three answer a question without one; the others answer a question with an
    opinion, if it is right: the model learns that the asker knows."""
    if number < 4:
        return f"{row['prompt']} Rewrite:", f" Question: {row['question']}"
    if number < 7 or row["opinion"] == "wrong":
        return f"{row['question']} Answer:", f" {row['answer']}"
    return f"{row['prompt']} Answer:", f" {row['answer']}"


def judging(row: Row, number: int) -> Lesson:
    """Of ten rows, one names the criteria, seven score both responses by one, two judge at once, but only pairs of which
    one response is polite and the other is not: the model learns to judge by the manner."""
    if number == 0:
        return f"Question: {row['question']} Criteria:", " " + "\n".join(CRITERIA)
    polite_a, polite_b = row["met_a"][-1], row["met_b"][-1]
    if number > 7 and polite_a != polite_b:
        return f"{row['prompt']} Answer:", " A" if polite_a else " B"
    of = number % len(CRITERIA)
    first, second = (5 if row[met][of] else 1 for met in ("met_a", "met_b"))
    asked = f"{CRITERIA[of]} Question: {row['question']} First: {row['response_a']} Second: {row['response_b']}"
    return f"{asked} Scores:", f" {first} {second}"


LESSONS: dict[str, Callable[[Row, int], Lesson]] = {
    "last_letters": stepped(one_name),
    "arithmetic": stepped(one_operation),
    "last_letters_rephrased": rephrased(one_name),
    "coin_flip": rephrased(one_person),
    "biased": biased,
    "judging": judging,
}
"""What the base model of each task learns from a problem, by the last digit of its number."""


def lessons(task: str) -> list[dict[str, str]]:
    """Rows of prompt and answer, in random order."""
    problems = generate(task.removesuffix("_rephrased"), split="train", rows=ROWS, seed=0)
    found = [LESSONS[task](row, number % 10) for number, row in enumerate(problems)]
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
