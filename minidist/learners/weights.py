"""The student's weights outside of training: out to the engines, to disk, and back from a checkpoint."""

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from torch import Tensor

from minidist.config.models import ModelConfig
from minidist.learners.backends import PlainTorch
from minidist.learners.forward import Student
from minidist.models.adapted import shapes_in_files
from minidist.models.arrays import to_array
from minidist.models.files import is_adapter
from minidist.models.hub import load_model
from minidist.models.lora import (
    is_adapter_name,
    merged,
    plain_names,
    published_adapters,
    read_adapters,
    rebased,
    save_adapters,
)
from minidist.models.names import as_in_files, found_in_files
from minidist.types import Adaptation, Array, Weights


class StudentWeights:
    """Reads and replaces the tensors that a backend holds. All ranks make the same calls; `first` says which one writes."""

    def __init__(self, student: Student, backend: PlainTorch, *, first: bool) -> None:
        self._student = student
        self._backend = backend
        self._first = first

    def publish(self, version: int, *, whole: bool = True) -> Weights | None:
        """Every tensor of the plain checkpoint, adapters merged, under the names of its files; None from a rank that only took
        part in gathering them. Not `whole`: adapters alone, where the files of their base hold all else."""
        adaptation = None if whole else self._adaptation
        tensors = self._backend.tensors() if adaptation is None else self._backend.tensors(is_adapter_name)
        if not self._first:
            return None
        if adaptation is not None:
            return replace(as_weights(version, published_adapters(tensors)), adaptation=adaptation)
        return as_weights(version, as_in_files(self._student.model, self._merged(tensors)))

    @cached_property
    def _adaptation(self) -> Adaptation | None:
        """How the adapters change the files of their base; None without adapters, or where the files name the model's tensors
        otherwise, and adapters alone would not do."""
        adapters, model = self._student.adapters, self._student.model
        if adapters is None:
            return None
        names = plain_names(model.state_dict())
        files = found_in_files(model, names, shapes_in_files(adapters.base))
        if files is None:
            return None
        return Adaptation(adapters.base, str(model.dtype).removeprefix("torch."), adapters.scale, files, adapters.transposed)

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
            self.__dict__.pop("_adaptation", None)
        self._backend.load(tensors)

    def _merged(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """The plain checkpoint's tensors."""
        adapters = self._student.adapters
        return tensors if adapters is None else merged(tensors, scale=adapters.scale, transposed=adapters.transposed)


def as_weights(version: int, tensors: Mapping[str, Tensor]) -> Weights:
    """The tensors as arrays, without a copy where they lie in the CPU's memory.

    The names of one tensor, as of a tied head, share one array, which a message to another process holds once.
    """
    arrays: dict[str, Array] = {}
    dtypes: dict[str, str] = {}
    shared: dict[tuple[object, ...], Array] = {}
    for name, tensor in tensors.items():
        place = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        array, dtypes[name] = to_array(tensor)
        arrays[name] = shared.setdefault(place, array) if tensor.numel() else array
    return Weights(version, arrays, dtypes)
