"""The student's weights outside of training: out to the engines, to disk, and back from a checkpoint."""

from dataclasses import replace
from pathlib import Path

from torch import Tensor

from minidist.config.models import ModelConfig
from minidist.learners.backends import PlainTorch
from minidist.learners.forward import Student
from minidist.models.arrays import to_array
from minidist.models.files import is_adapter
from minidist.models.hub import load_model
from minidist.models.lora import merged, read_adapters, rebased, save_adapters
from minidist.models.names import as_in_files
from minidist.types import Weights


class StudentWeights:
    """Reads and replaces the tensors that a backend holds. All ranks make the same calls; `first` says which one writes."""

    def __init__(self, student: Student, backend: PlainTorch, *, first: bool) -> None:
        self._student = student
        self._backend = backend
        self._first = first

    def publish(self, version: int) -> Weights | None:
        """Every tensor of the plain checkpoint, adapters merged, under the names of its files; None from a rank that only took
        part in gathering them."""
        tensors = self._backend.tensors()
        if not self._first:
            return None
        files = as_in_files(self._student.model, self._merged(tensors))
        arrays = {name: to_array(tensor) for name, tensor in files.items()}
        return Weights(version, {n: array for n, (array, _) in arrays.items()}, {n: dtype for n, (_, dtype) in arrays.items()})

    def save(self, path: Path) -> None:
        """A directory that transformers and vLLM load as it is, or PEFT where adapters are saved alone."""
        tensors = self._backend.tensors()
        if not self._first:
            return
        path.mkdir(parents=True, exist_ok=True)
        adapters = self._student.adapters
        if adapters is not None and adapters.config.save == "adapter":
            save_adapters(path, adapters, tensors)
        else:
            self._student.model.save_pretrained(path, state_dict=self._merged(tensors))
        self._student.renderer.tokenizer.save_pretrained(path)

    def load(self, path: Path) -> None:
        """The weights of a checkpoint of the same architecture, or of adapters on the same base."""
        adapters = self._student.adapters
        if adapters is not None and is_adapter(path):
            tensors = self._backend.tensors()
            self._backend.load(tensors | read_adapters(path, adapters, tensors))
            return
        config = ModelConfig(model=str(path), dtype=str(self._student.model.dtype).removeprefix("torch."))  # type: ignore[arg-type]
        tensors = dict(load_model(config, "weights").state_dict())
        if adapters is not None:
            tensors = rebased(tensors, self._backend.tensors())
            self._student = replace(self._student, adapters=replace(adapters, base=str(path.resolve())))
        self._backend.load(tensors)

    def _merged(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The plain checkpoint's tensors."""
        adapters = self._student.adapters
        return tensors if adapters is None else merged(tensors, scale=adapters.scale, transposed=adapters.transposed)
