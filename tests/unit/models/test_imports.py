"""Packages that count as missing while others are imported."""

import importlib
import sys
from pathlib import Path

import pytest

from minidist.models.imports import without


def test_a_package_is_missing_inside_and_found_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "seldom_used.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    with without("seldom_used"), pytest.raises(ImportError):
        importlib.import_module("seldom_used")
    found = importlib.import_module("seldom_used")
    with without("seldom_used"):  # it is imported already: whoever has it keeps it
        assert importlib.import_module("seldom_used") is found
    assert sys.modules.pop("seldom_used") is found
