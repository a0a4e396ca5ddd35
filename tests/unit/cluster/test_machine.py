"""The cores of this machine within the quota of its cgroup."""

from pathlib import Path

import pytest

from minidist.cluster import machine


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "max 100000"}, 4),
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "900000 100000"}, 4),
        ({"cpu.cfs_quota_us": "250000", "cpu.cfs_period_us": "100000"}, 2.5),
        ({"cpu.cfs_quota_us": "-1", "cpu.cfs_period_us": "100000"}, 4),
    ],
)
def test_a_quota_limits_the_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: float) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(machine, "_groups", lambda controller: [tmp_path])
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(4)))
    assert machine.usable_cores() == cores
    assert machine.cores() == int(cores)
