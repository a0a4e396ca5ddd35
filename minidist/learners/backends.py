"""How a learner's gradient is computed and applied, and where its tensors lie: on plain torch, the base of every backend."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from minidist.config.learner import LearnerConfig
from minidist.learners.forward import ForwardPass
from minidist.learners.group import Group
from minidist.learners.schedule import make_optimizer, optimizer_step, read_parameter, write_parameter
from minidist.learners.state import Piece, StateReader, whole_pieces
from minidist.models.device import leave_device, to_device


class PlainTorch:
    """A student, its gradient and its optimizer, in one process: the reference that every other backend must equal.

    A backend is built from the student's forward pass, the learner's configuration, and the ranks that share the work. All
    ranks make the same calls in order.
    """

    name: ClassVar = "SingleLearner"
    """Names the learner in the summaries of runs, which keep these names from one release to the next."""
    distributed: ClassVar = False
    """Whether it needs a process group, even for a single rank."""

    def __init__(self, student: ForwardPass, config: LearnerConfig, group: Group) -> None:
        self._model = student.model
        self._group = group
        self._grad_clip = config.optimizer.grad_clip
        self.optimizer = make_optimizer(config.optimizer, student.model.named_parameters())
        self._device = student.model.device
        self._module: Any = student
        """What is called for a forward pass."""

    def forward(self, method: str, *arguments: Any, **options: Any) -> Any:
        """A method of `ForwardPass`, by name."""
        return self._module(method, *arguments, **options)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this rank's part of the step's loss; the parts of all ranks are summed."""
        loss.backward()

    def step(self, rate: float) -> float:
        """`schedule.optimizer_step` at this learning rate."""
        return optimizer_step(self.optimizer, self._model.parameters(), rate=rate, limit=self._grad_clip)

    def discard(self) -> None:
        """Clear the gradient of a step that is not taken."""
        self.optimizer.zero_grad(set_to_none=True)

    def sleep(self) -> None:
        """Move weights and optimizer to host memory, and give the device's to other processes, until `wake`."""
        self._move_optimizer(torch.device("cpu"))
        leave_device(self._model)

    def wake(self) -> None:
        to_device(self._device, self._model)
        self._move_optimizer(self._device)

    def _move_optimizer(self, device: torch.device) -> None:
        for state in self.optimizer.state.values():
            # Counts of steps stay where the optimizer's kernel wants them.
            state.update({name: value.to(device) for name, value in state.items() if isinstance(value, Tensor) and value.dim()})

    def state(self) -> dict[str, Tensor]:
        """The tensors of the model by name, as they are here: whole, or in parts."""
        return dict(self._model.state_dict(keep_vars=True))

    @contextmanager
    def whole(self, names: Sequence[str]) -> Iterator[dict[str, Tensor]]:
        """Some tensors of the model, complete until the context ends; all ranks ask for the same."""
        state = self._model.state_dict()
        yield {name: state[name] for name in names}

    def tensors(self, wanted: Callable[[str], bool] = lambda name: True, *, on_cpu: bool = True) -> dict[str, Tensor]:
        """The tensors of the model by name, all or those `wanted`, complete on the first rank at least. `on_cpu`: those that
        are gathered for it go to the CPU's memory, else they stay on the device."""
        return {name: tensor for name, tensor in self._model.state_dict().items() if wanted(name)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Replace every tensor of the model; the optimizer's moments stay."""
        self._model.load_state_dict(tensors)

    def renew(self) -> None:
        """Take over what has replaced the tensors of a partitioned model; the optimizer's moments stay."""

    def pieces(self, steps: int) -> Iterator[Piece]:
        """This rank's elements of each trained parameter's `weight` and moments after `steps` optimizer steps; the ranks
        together have all."""
        for name, parameter in self._trained():
            yield from self._pieces(name, parameter, steps)

    def restore(self, reader: StateReader) -> None:
        """Restore what the pieces of any number of ranks hold."""
        for name, parameter in self._trained():
            self._restore(name, parameter, reader)

    def _trained(self) -> list[tuple[str, Parameter]]:
        return [(name, each) for name, each in self._model.named_parameters() if each.requires_grad]

    def _pieces(self, name: str, parameter: Parameter, steps: int) -> list[Piece]:
        return whole_pieces([(name, read_parameter(self.optimizer, parameter))]) if self._group.rank == 0 else []

    def _restore(self, name: str, parameter: Parameter, reader: StateReader) -> None:
        write_parameter(self.optimizer, parameter, reader.tensors(name), reader.steps)
