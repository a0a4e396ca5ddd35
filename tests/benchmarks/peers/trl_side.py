"""One of TRL's trainers in a process of its own: `python -m tests.benchmarks.peers.trl_side TASK.json`.

It trains, and writes a line after each optimizer step; or it computes its loss on given answers.
"""

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, TrainerCallback

from tests.benchmarks.peers.workloads import LEARNING_RATE, SEED, PeerSettings

IGNORED = -100


@dataclass(frozen=True)
class PeerTask:
    """What the process does, as JSON. `answers`: rollouts to compute the loss on, in place of a run of `steps` steps."""

    trainer: str
    student: str
    teacher: str
    prompts: str
    max_new_tokens: int
    settings: PeerSettings
    output: str
    steps: int = 0
    answers: str | None = None
    use_cpu: bool = True

    def write(self, path: Path) -> Path:
        path.write_text(json.dumps(asdict(self)))
        return path

    @classmethod
    def read(cls, path: Path) -> "PeerTask":
        fields = json.loads(path.read_text())
        return cls(**fields | {"settings": PeerSettings(**fields["settings"])})


class StepLines(TrainerCallback):
    """Writes a line after each optimizer step: its number and the lengths of its answers."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.lengths: list[int] = []

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        with self._path.open("a") as lines:
            lines.write(json.dumps({"step": state.global_step - 1, "lengths": self.lengths}) + "\n")
        self.lengths = []


def main() -> None:
    task = PeerTask.read(Path(sys.argv[1]))
    if task.answers is not None:
        Path(task.output).write_text(json.dumps(loss_on(task, Path(task.answers))))
        return
    lines = StepLines(Path(task.output))
    trainer = make_trainer(task, lines)
    trainer.train()


def make_trainer(task: PeerTask, lines: StepLines) -> Any:
    """The trainer at its settings, on exact reverse KL of text that the student writes at temperature 1."""
    tokenizer = AutoTokenizer.from_pretrained(task.student, padding_side="left")
    prompts = [json.loads(line)["prompt"] for line in Path(task.prompts).read_text().splitlines()]
    student, teacher = (_load(path, task.settings.weights) for path in (task.student, task.teacher))
    common = {
        "output_dir": str(Path(task.output).with_suffix(".trl")),
        "use_cpu": task.use_cpu,
        "bf16": task.settings.autocast,
        "per_device_train_batch_size": task.settings.rows,
        "gradient_accumulation_steps": task.settings.accumulation,
        "gradient_checkpointing": False,
        "max_steps": task.steps or 1,
        "learning_rate": LEARNING_RATE,
        "lr_scheduler_type": "constant",
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "seed": SEED,
    }
    parts = {"model": student, "teacher_model": teacher, "processing_class": tokenizer, "callbacks": [lines]}
    make = {"distillation": _distillation, "gkd": _gkd}[task.trainer]
    return make(task, common, parts, prompts, lines)


def _load(path: str, dtype: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))


def _distillation(task: PeerTask, common: dict[str, Any], parts: dict[str, Any], prompts: list[str], lines: StepLines) -> Any:
    from trl import DistillationConfig, DistillationTrainer  # type: ignore[import-not-found]

    class Counted(DistillationTrainer):
        def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
            lines.lengths += inputs["completion_mask"].sum(1).tolist()
            return super().compute_loss(model, inputs, *arguments, **named)

    settings = DistillationConfig(**common, beta=1.0, temperature=1.0, max_completion_length=task.max_new_tokens)
    return Counted(**parts, args=settings, train_dataset=Dataset.from_dict({"prompt": prompts}))


def _gkd(task: PeerTask, common: dict[str, Any], parts: dict[str, Any], prompts: list[str], lines: StepLines) -> Any:
    from trl.experimental.gkd import GKDConfig, GKDTrainer  # type: ignore[import-not-found]

    class Counted(GKDTrainer):
        def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
            lines.lengths += (inputs["labels"] != IGNORED).sum(1).tolist()
            return super().compute_loss(model, inputs, *arguments, **named)

    settings = GKDConfig(**common, lmbda=1.0, beta=1.0, temperature=1.0, max_new_tokens=task.max_new_tokens)
    tokenizer = parts["processing_class"]
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts]
    columns = {
        "prompt": prompts,
        "input_ids": [[*row, tokenizer.eos_token_id] for row in ids],  # an answer of one token, which is never read
        "completion_mask": [[0] * len(row) + [1] for row in ids],
    }
    return Counted(**parts, args=settings, train_dataset=Dataset.from_dict(columns))


def loss_on(task: PeerTask, answers: Path) -> dict[str, float]:
    """The trainer's loss on the answers of a rollouts file, nats a token, and their number of tokens.

    Row by row: in a padded batch GPT-2 of transformers counts the positions of a row from its padding, and TRL then trains
    another function of the tokens than the one that wrote them.
    """
    trainer = make_trainer(task, StepLines(Path(task.output)))
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    tokenizer = trainer.processing_class
    total = count = 0.0
    trainer.model.train()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        for row in rows:
            inputs = _inputs(task.trainer, tokenizer(row["prompt"])["input_ids"], row["tokens"])
            total += float(trainer.compute_loss(trainer.model, inputs, num_items_in_batch=torch.tensor(1)))
            count += len(row["tokens"])
    return {"loss": total / count, "tokens": count}


def _inputs(trainer: str, prompt: list[int], answer: list[int]) -> dict[str, torch.Tensor]:
    """A batch of one row, as the trainer's own code makes it of what its student has written."""
    ids, empty = torch.tensor([prompt + answer]), torch.full((1, len(prompt)), IGNORED)
    whole, border = torch.ones_like(ids), len(prompt)
    if trainer == "gkd":
        labels = torch.cat([empty, ids[:, border:]], dim=1)
        return {"input_ids": ids, "attention_mask": whole, "labels": labels}
    parts = {"prompt": slice(None, border), "completion": slice(border, None)}
    inputs = {f"{name}_ids": ids[:, part] for name, part in parts.items()}
    masks = {f"{name}_mask": whole[:, part] for name, part in parts.items()}
    return inputs | masks | {"num_items_in_batch": torch.tensor(1.0)}


if __name__ == "__main__":
    main()
