"""The student's weights outside of training: out to the engines, to disk, and back from a checkpoint."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from minidist.config.models import ModelConfig
from minidist.learners.backends import PlainTorch
from minidist.learners.forward import Student
from minidist.learners.group import Group
from minidist.learners.partition import is_partitioned
from minidist.models.adapted import shapes_in_files
from minidist.models.arrays import to_array
from minidist.models.by_layer import by_layer, layer_of
from minidist.models.files import is_adapter
from minidist.models.filling import fill, own_range, set_own_part
from minidist.models.hub import load_model
from minidist.models.lora import (
    adapted_groups,
    is_adapter_name,
    merged,
    plain_name,
    plain_names,
    published_adapters,
    read_adapters,
    rebased,
    save_adapters,
    starts_at_zero,
)
from minidist.models.names import as_in_files, found_in_files
from minidist.models.saving import save_configuration, write_weights
from minidist.types import Adaptation, Array, Outline, Weights


class StudentWeights:
    """Reads and replaces the tensors that a backend holds. All ranks of the group make the same calls."""

    def __init__(self, student: Student, backend: PlainTorch, group: Group) -> None:
        self._student = student
        self._backend = backend
        self._group = group
        self._first = group.rank == 0

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

    def outline(self) -> Outline:
        """The tensors of `publish`, whole, in the order in which `stream` gives them."""
        shapes = as_in_files(self._student.model, self._merged(self._empty()))
        shared: dict[tuple[str, int], str] = {}
        first = {name: shared.setdefault((layer_of(name), id(tensor)), name) for name, tensor in shapes.items()}
        names = [name for group in by_layer(shapes).values() for name in group if first[name] == name]
        dtypes = tuple(str(shapes[name].dtype).removeprefix("torch.") for name in names)
        tied = {name: original for name, original in first.items() if name != original}
        return Outline(tuple(names), dtypes, tuple(tuple(shapes[name].shape) for name in names), tied)

    def stream(self, names: Sequence[str], *, all_ranks: bool = False) -> Iterator[tuple[str, Tensor]]:
        """These tensors of the plain checkpoint, in this order, on the student's device, complete on the first rank, or on
        `all_ranks`, where none is partitioned. Where its files hold the student's tensors as they are, no more than a decoder
        layer is gathered at a time."""
        empty = self._empty()
        if self._student.adapters is None and set(as_in_files(self._student.model, empty)) == set(empty):
            for group in by_layer(names).values():
                tensors = self._backend.tensors(set(group).__contains__, on_cpu=False)
                yield from ((name, tensors[name]) for name in group)
            return
        gathered = self._backend.tensors(on_cpu=False)
        if self._first or all_ranks:
            tensors = as_in_files(self._student.model, self._merged(gathered))
            yield from ((name, tensors[name]) for name in names)

    def _empty(self) -> dict[str, Tensor]:
        """A tensor without data for each of the model, whole where it is partitioned; tied names share one."""
        state = self._student.model.state_dict(keep_vars=True)
        made = {
            id(each): torch.empty(getattr(each, "ds_shape", each.shape), dtype=each.dtype, device="meta")
            for each in state.values()
        }
        return {name: made[id(each)] for name, each in state.items()}

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

    def save(self, path: Path) -> dict[str, str]:
        """Write a directory that transformers and vLLM load as it is, or PEFT where adapters are saved alone; returns the
        sha256 sums of the large files that this rank wrote, by name."""
        path.mkdir(parents=True, exist_ok=True)
        adapters, model, group = self._student.adapters, self._student.model, self._group
        if self._first:
            self._student.renderer.tokenizer.save_pretrained(path)
        if adapters is not None and adapters.config.save == "adapter":
            tensors = self._backend.tensors(is_adapter_name)
            if self._first:
                save_adapters(path, adapters, tensors)
            return {}
        try:
            if self._first:
                save_configuration(path, model)
        finally:
            group.largest([0])  # transformers removes files of an earlier model: the ranks write theirs when that is done
        names = self._backend.state()
        groups = adapted_groups(names) if adapters else [[name] for name in names]
        return write_weights(path, model, self._backend, merge=self._merged, groups=groups, rank=(group.rank, group.size))

    def load(self, path: Path) -> None:
        """The weights of a checkpoint of the same architecture, or of adapters on the same base."""
        adapters = self._student.adapters
        if adapters is not None and is_adapter(path):
            tensors = self._backend.tensors()
            self._backend.load(tensors | read_adapters(path, adapters, tensors))
            return
        if is_partitioned(self._student.model):
            self._load_parts(path)
            return
        config = ModelConfig(model=str(path), dtype=str(self._student.model.dtype).removeprefix("torch."))  # type: ignore[arg-type]
        tensors = dict(load_model(config, "weights").state_dict())
        if adapters is not None:
            tensors = rebased(tensors, self._backend.tensors())
            self._rebase(path)
        self._backend.load(tensors)

    def _load_parts(self, path: Path) -> None:
        """`load` of a whole model's files, of which each rank reads its own parts."""
        state, adapters = self._backend.state(), self._student.adapters
        fill(
            self._student.model,
            path,
            "weights",
            {plain_name(name): each for name, each in state.items() if not is_adapter_name(name)},
        )
        if adapters is not None:
            for name, each in state.items():
                if starts_at_zero(name):
                    set_own_part(each, torch.zeros(own_range(each)[1] - own_range(each)[0]))
            self._rebase(path)
        self._backend.renew()

    def _rebase(self, path: Path) -> None:
        """The student's adapters adapt the model at `path` from now on."""
        assert self._student.adapters is not None
        self._student = replace(self._student, adapters=replace(self._student.adapters, base=str(path.resolve())))
        self.__dict__.pop("_adaptation", None)

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
