"""A model that learns: its predictions, its loss against another model's, its optimizer, and the gradients of its step."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from minidist.config.learner import OptimizerConfig
from minidist.config.models import LoraConfig
from minidist.config.terms import TermConfig
from minidist.errors import DivergedError
from minidist.learners.group import Group
from minidist.learners.schedule import learning_rate, make_optimizer, optimizer_step, read_parameter, write_parameter
from minidist.learners.state import StateReader
from minidist.losses.predictions import Predictions
from minidist.losses.terms import loss_terms, total
from minidist.models.classifiers import Predictor, adapt
from minidist.models.lora import Adapters, merged
from minidist.types import LabelledRow

Rows = Sequence[LabelledRow]


@dataclass(frozen=True)
class Adapted:
    """Low-rank adapters in the layers of a model below its head; the head is trained whole."""

    adapters: Adapters

    @classmethod
    def inject(cls, predictor: Predictor, config: LoraConfig, base: str | None, seed: int) -> "Adapted":
        """Inject adapters in place and freeze the weights of all layers. `base`: the model's checkpoint."""
        return cls(adapt(predictor.model, predictor.task, config, base or "", seed=seed))

    def merged(self, predictor: Predictor) -> dict[str, Tensor]:
        """The weights of the plain model that equals the adapted one, by name."""
        return merged(predictor.model.state_dict(), scale=self.adapters.scale, transposed=self.adapters.transposed)


@dataclass(frozen=True)
class Training:
    """How a model learns.

    Args:
        optimizer: the section of its optimizer.
        steps: number of its optimizer steps in the run, over which schedules and annealing extend.
        dropout: train with the model's dropout.
    """

    optimizer: OptimizerConfig
    steps: int
    dropout: bool = False


class Learning:
    """A model that learns in some steps of a run.

    Args:
        name: `student`, `teacher` ...: in metrics and in checkpoints.
        predictor: the model.
        loss: the terms of its loss, by name; None for a model that is not trained.
        training: how it learns.
        group: the ranks that share each step's rows. Each holds the whole model, bit for bit the same.
        adapted: the adapters that are trained in place of the whole model, if any.
    """

    def __init__(
        self,
        name: str,
        predictor: Predictor,
        loss: Mapping[str, TermConfig] | None,
        training: "Training",
        *,
        group: Group,
        adapted: "Adapted | None" = None,
    ) -> None:
        terms = loss or {}
        self.name = name
        self.predictor = predictor
        self.needs_other = any(term.needs_teacher for term in terms.values())
        self.needs_hidden = any(term.needs_hidden for term in terms.values())
        self.parameters = {key: each for key, each in predictor.model.named_parameters() if each.requires_grad}
        self.taken = 0
        self._terms = loss_terms(terms)
        self._training = training
        self._group = group
        self._adapted = adapted
        self._optimizer = None if loss is None else make_optimizer(training.optimizer, self.parameters.items())
        predictor.model.eval()

    @property
    def learns(self) -> bool:
        """Whether the model is trained."""
        return self._optimizer is not None

    @property
    def progress(self) -> float:
        """How far the model is through its steps, from 0 to 1 at its last step."""
        return min(1.0, self.taken / max(1, self._training.steps - 1))

    def predict(self, rows: Rows, *, hidden: bool = False) -> Predictions:
        """Predictions in evaluation mode, without gradient."""
        with torch.no_grad():
            return self.predictor.predict(rows, hidden=hidden)

    def loss(self, own: Predictions, other: Predictions | None, *, imitation: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each row [B], and of each term, without gradient, by name.

        other: predictions of the model that is imitated. imitation: of the terms that imitate alone.
        """
        terms = {name: term for name, term in self._terms.items() if term.config.needs_teacher or not imitation}
        each_N, values = total(terms, own, other, progress=self.progress)
        return own.row_means(each_N), {name: own.row_means(value) for name, value in values.items()}

    @contextmanager
    def training(self, *key: int) -> Iterator[None]:
        """Training mode, where dropout is wanted; its random numbers are a function of `key`, and of the rank."""
        if not self._training.dropout:
            yield
            return
        with torch.random.fork_rng():
            torch.manual_seed(int(np.random.SeedSequence([*key, self.taken, self._group.rank]).generate_state(1)[0]))
            self.predictor.model.train()
            try:
                yield
            finally:
                self.predictor.model.eval()

    def gradient(self, accumulate: Callable[[], None]) -> list[Tensor]:
        """The gradient, of all ranks, that `accumulate` adds up by its backward passes, parameter by parameter; `.grad` is
        free before and after. Parameters that no pass reaches have a gradient of zero."""
        parameters = list(self.parameters.values())
        assert all(each.grad is None for each in parameters), "a gradient was left over"
        accumulate()
        gradient = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
        for each in parameters:
            each.grad = None
        self._group.sum_(gradient)
        return gradient

    def step(self, gradient: Iterable[Tensor]) -> dict[str, float]:
        """An optimizer step along a gradient of all ranks. Raises DivergedError before the optimizer moves where it is not
        finite. Returns the gradient's norm and the learning rate."""
        assert self._optimizer is not None, f"{self.name} does not learn"
        for (key, parameter), each in zip(self.parameters.items(), gradient, strict=True):
            if not bool(torch.isfinite(each).all()):
                self._optimizer.zero_grad(set_to_none=True)
                raise DivergedError(f"the gradient of {key} of the {self.name} is not finite; nothing was updated")
            parameter.grad = each
        rate = learning_rate(self._training.optimizer, self.taken, self._training.steps)
        norm = optimizer_step(self._optimizer, self.parameters.values(), rate=rate, limit=self._training.optimizer.grad_clip)
        self.taken += 1
        return {f"{self.name}/grad_norm": norm, f"{self.name}/lr": rate}

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Steps that are taken inside are undone at the end, bit for bit: weights, the optimizer's state, and the count."""
        assert self._optimizer is not None, f"{self.name} does not learn"
        weights = [each.detach().clone() for each in self.parameters.values()]
        state, taken = deepcopy(self._optimizer.state_dict()), self.taken
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, weight in zip(self.parameters.values(), weights, strict=True):
                    parameter.copy_(weight)
            self._optimizer.load_state_dict(state)
            self.taken = taken

    def save(self, path: Path) -> None:
        """Write the model as transformers loads it, with adapters merged into its weights."""
        self.predictor.save(path, None if self._adapted is None else self._adapted.merged(self.predictor))

    def read_state(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Weights and moments by the parameter's name, and the steps taken, for a checkpoint."""
        yield f"{self.name}|steps", {"taken": torch.tensor([self.taken])}
        if self._optimizer is not None:
            for key, parameter in self.parameters.items():
                yield f"{self.name}|{key}", read_parameter(self._optimizer, parameter)

    def write_state(self, reader: StateReader) -> None:
        """Go on from what `read_state` gave."""
        self.taken = int(reader.tensors(f"{self.name}|steps")["taken"])
        if self._optimizer is not None:
            for key, parameter in self.parameters.items():
                write_parameter(self._optimizer, parameter, reader.tensors(f"{self.name}|{key}"), self.taken)
