"""How a learner's gradient is computed and applied, and where its tensors lie: on plain torch, the base of every backend."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import Parameter

from minidist.config.learner import LearnerConfig
from minidist.learners.forward import ForwardPass
from minidist.learners.group import Group
from minidist.learners.schedule import make_optimizer, optimizer_step, read_parameter, write_parameter
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

    def tensors(self, wanted: Callable[[str], bool] = lambda name: True, *, on_cpu: bool = True) -> dict[str, Tensor]:
        """The tensors of the model by name, all or those `wanted`, complete on the first rank at least. `on_cpu`: those that
        are gathered for it go to the CPU's memory, else they stay on the device."""
        return {name: tensor for name, tensor in self._model.state_dict().items() if wanted(name)}

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Replace every tensor of the model; the optimizer's moments stay."""
        self._model.load_state_dict(tensors)

    def read_state(self, steps: int) -> Iterable[tuple[str, dict[str, Tensor]]]:
        """Each trained parameter by name, with its `weight` and moments, complete, after `steps` optimizer steps."""
        return ((name, self._read(parameter, steps)) for name, parameter in self._trained())

    def write_state(self, steps: int, tensors: Callable[[str], dict[str, Tensor]]) -> None:
        """Restore what `read_state` gave; `tensors` maps a parameter's name to its `weight` and moments."""
        for name, parameter in self._trained():
            self._write(parameter, tensors(name), steps)

    def _trained(self) -> list[tuple[str, Parameter]]:
        return [(name, each) for name, each in self._model.named_parameters() if each.requires_grad]

    def _read(self, parameter: Parameter, steps: int) -> dict[str, Tensor]:
        return read_parameter(self.optimizer, parameter)

    def _write(self, parameter: Parameter, tensors: dict[str, Tensor], steps: int) -> None:
        write_parameter(self.optimizer, parameter, tensors, steps)
