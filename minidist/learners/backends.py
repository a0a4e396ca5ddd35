"""How a learner's gradient is computed and applied, and where its tensors lie: the protocol, and plain torch."""

from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor
from torch.nn import Parameter

from minidist.config.learner import LearnerConfig
from minidist.learners.forward import ForwardPass
from minidist.learners.group import Group
from minidist.learners.schedule import make_optimizer


class Backend(Protocol):
    """A student, its gradient and its optimizer; `PlainTorch` describes the methods. All ranks make the same calls in order.

    A backend is built from the student's forward pass, the learner's configuration, and the ranks that share the work. Every
    backend computes the same gradient as `PlainTorch`.
    """

    name: ClassVar[str]
    """Names the learner in the summaries of runs, which keep these names from one release to the next."""
    distributed: ClassVar[bool]
    """Whether it needs a process group, even for a single rank."""

    def forward(self, method: str, *arguments: Any, **options: Any) -> Any: ...
    def backward(self, loss: Tensor) -> None: ...
    def step(self, rate: float) -> float: ...
    def discard(self) -> None: ...
    def tensors(self) -> dict[str, Tensor]: ...
    def load(self, tensors: dict[str, Tensor]) -> None: ...
    def read_state(self, steps: int) -> Iterable[tuple[str, dict[str, Tensor]]]: ...
    def write_state(self, steps: int, tensors: Callable[[str], dict[str, Tensor]]) -> None: ...


class PlainTorch:
    """One process and plain torch: the reference that every other backend must equal."""

    name: ClassVar = "SingleLearner"
    distributed: ClassVar = False

    def __init__(self, student: ForwardPass, config: LearnerConfig, group: Group) -> None:
        self._student = student
        self._grad_clip = config.optimizer.grad_clip
        self.optimizer = make_optimizer(config.optimizer, student.model.named_parameters())

    def forward(self, method: str, *arguments: Any, **options: Any) -> Any:
        """A method of `ForwardPass`, by name."""
        return self._student(method, *arguments, **options)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of this rank's part of the step's loss; the parts of all ranks are summed."""
        loss.backward()

    def step(self, rate: float) -> float:
        """Clip the gradient, take an optimizer step at this learning rate, and clear the gradient; returns the gradient's norm
        before it was clipped."""
        limit = self._grad_clip
        norm = torch.nn.utils.clip_grad_norm_(self._student.model.parameters(), float("inf") if limit is None else limit)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return float(norm)

    def discard(self) -> None:
        """Clear the gradient of a step that is not taken."""
        self.optimizer.zero_grad(set_to_none=True)

    def tensors(self) -> dict[str, Tensor]:
        """Every tensor of the model by its name, complete on the first rank at least."""
        return dict(self._student.model.state_dict())

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Replace every tensor of the model; the optimizer's moments stay."""
        self._student.model.load_state_dict(tensors)

    def read_state(self, steps: int) -> Iterable[tuple[str, dict[str, Tensor]]]:
        """Each trained parameter by name, with its `weight` and moments, complete, after `steps` optimizer steps."""
        return ((name, self.read(parameter)) for name, parameter in self.trained())

    def write_state(self, steps: int, tensors: Callable[[str], dict[str, Tensor]]) -> None:
        """Restore what `read_state` gave; `tensors` maps a parameter's name to its `weight` and moments."""
        for name, parameter in self.trained():
            self.write(parameter, tensors(name), steps)

    def trained(self) -> list[tuple[str, Parameter]]:
        """The trained parameters, by name."""
        return [(name, each) for name, each in self._student.model.named_parameters() if each.requires_grad]

    def read(self, parameter: Parameter) -> dict[str, Tensor]:
        """A parameter's `weight` and moments."""
        state = self.optimizer.state.get(parameter, {})
        return {"weight": parameter.data} | {name: value for name, value in state.items() if value.shape == parameter.shape}

    def write(self, parameter: Parameter, tensors: dict[str, Tensor], steps: int) -> None:
        """Restore what `read` gave after `steps` optimizer steps."""
        parameter.data.copy_(tensors.pop("weight"))
        if tensors:
            moments = {name: tensor.to(parameter) for name, tensor in tensors.items()}
            self.optimizer.state[parameter] = {"step": torch.tensor(float(steps)), **moments}
