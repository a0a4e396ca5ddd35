"""How fast devices, wires and Python are: published rates, or rates measured on this machine and kept in a file."""

import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from minidist.errors import ConfigError
from minidist.run.files import write_text
from minidist.text import shown

GB = 1e9


@dataclass(frozen=True)
class Device:
    """One device: a GPU, or on a machine without GPUs the cores of one process.

    Args:
        gib: its memory, GiB.
        score_flops, update_flops: FLOP/s that a forward pass, and a step of training, achieve.
        small_flops: the same of a step of training of a model below `SMALL` parameters, whose products are small.
        bandwidth: bytes/s that reading weights and caches achieves.
    """

    gib: float
    score_flops: float
    update_flops: float
    small_flops: float
    bandwidth: float


@dataclass(frozen=True)
class Wires:
    """Ways between devices, bytes/s.

    Args:
        link: of a device to the others of its node.
        network: of a device to those of other nodes.
        to_host, to_device: copies between a device and its host's memory, pageable.
        store: a copy into the object store.
        between: of objects from the store of one node to that of another.
        pipe: to the worker processes of an engine that is split over devices.
    """

    link: float
    network: float
    to_host: float
    to_device: float
    store: float
    between: float
    pipe: float


@dataclass(frozen=True)
class Overheads:
    """Seconds that are no product, no byte.

    Args:
        engine_step: of each step of an engine beside its reading: scheduling, launching, sampling.
        written_token: Python for each token that an engine writes.
        overlaps: whether that Python runs while the device works (vLLM's asynchronous scheduling; not on CPUs).
        top_k_token: Python for each token that an engine scores with its top k classes.
        decoded_token: to make the text of a written token, in the engine's process.
        counted_token: figures of the text, in the driver.
        score_call: of each call of a teacher.
        micro_batch: of each micro-batch of the learner.
        update: of each optimizer step.
        publish: to pause the engines, and to prove that they have the new weights.
        step: of the loop, between its phases.
        switch: to put a role to sleep and wake another on the same device.
        loss_passes: how often the loss reads or writes a float32 table [tokens, vocabulary].
    """

    engine_step: float = 2e-3
    written_token: float = 12e-6
    overlaps: bool = True
    top_k_token: float = 0.6e-6
    decoded_token: float = 2.4e-6
    counted_token: float = 1.4e-6
    score_call: float = 0.0
    micro_batch: float = 0.0
    update: float = 0.0
    publish: float = 1.0
    step: float = 0.0
    switch: float = 1.7
    loss_passes: float = 12.0


@dataclass(frozen=True)
class Rates:
    """Rates of one kind of machine.

    Args:
        name: of the kind.
        source: where the rates come from, in words.
        device, wires, overheads: the rates.
        per_node: devices of a node.
        base_gib: memory that driver and Ray take on a machine without GPUs, GiB.
    """

    name: str
    source: str
    device: Device
    wires: Wires
    overheads: Overheads = field(default_factory=Overheads)
    per_node: int = 8
    base_gib: float = 0.0

    def to_record(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> "Rates":
        """What `to_record` gave."""
        parts = {"device": Device, "wires": Wires, "overheads": Overheads}
        return cls(**record | {name: kind(**record[name]) for name, kind in parts.items()})

    def write(self, path: Path) -> None:
        """Write the rates to a file, which `read_rates` reads."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(self.to_record(), indent=1) + "\n")


SMALL = 1e9
"""Parameters below which `Device.small_flops` holds."""

_WIRES = Wires(300 * GB, 40 * GB, 4 * GB, 5 * GB, 5 * GB, 2 * GB, 1.5 * GB)
_SHARES = "45 % of the peak in scoring, 40 % in training (30 % below 1e9 parameters), 70 % of the memory's bandwidth"
_HOST = "host, object store and Ray between nodes 4, 5 and 2 GB/s; Python as measured on a CPU"


def _gpu(name: str, source: str, gib: float, peak: float, bandwidth: float, wires: Wires) -> Rates:
    """A GPU of published peaks: FLOP/s of dense products in 16 bits, and bytes/s of its memory."""
    device = Device(gib, 0.45 * peak, 0.4 * peak, 0.3 * peak, 0.7 * bandwidth)
    return Rates(name, f"peaks: {source}; assumed: {_SHARES}; {_HOST}", device, wires)


PUBLISHED = {
    rates.name: rates
    for rates in (
        # Peaks: NVIDIA H100 Tensor Core GPU datasheet, column SXM: bfloat16 1,979 TFLOP/s with sparsity, half of it without.
        _gpu("h100", "NVIDIA H100 datasheet, SXM: 989 TFLOP/s, 3.35 TB/s, 80 GB", 79.6, 989.5e12, 3.35e12, _WIRES),
        # Peaks: NVIDIA A100 Tensor Core GPU datasheet, column 80GB SXM. NVLink has two thirds of the H100's 900 GB/s.
        _gpu(
            "a100",
            "NVIDIA A100 datasheet, 80 GB SXM: 312 TFLOP/s, 2.039 TB/s",
            79.2,
            312e12,
            2.039e12,
            replace(_WIRES, link=200 * GB, network=20 * GB),
        ),
    )
}
"""Rates by the name of the device. Peaks are published; the shares that programs achieve, and all else, are assumptions."""

DEFAULT_FILE = Path.home() / ".cache" / "minidist" / "rates.json"
"""Where `minidist plan --measure` writes the rates of this machine, and where later calls look for them."""


def read_rates(name: str) -> Rates:
    """The published rates of a device by its name, or the rates of a file.

    Raises ConfigError with one sentence where there are none.
    """
    if name in PUBLISHED:
        return PUBLISHED[name]
    path, known = Path(name), ", ".join(PUBLISHED)
    if not path.is_file():
        raise ConfigError(f"--rates is {name}; expected {known}, or a file that `minidist plan --measure` wrote")
    try:
        return Rates.from_record(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = shown(str(error), 120)
        raise ConfigError(f"{name} is no file of rates ({reason}); write one with `minidist plan --measure`") from None
