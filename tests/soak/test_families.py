"""Slow: each family in vLLM, in a process of its own, as configs/FAMILIES.md says."""

import pytest

from tests.support.families import FAMILIES
from tests.support.family_columns import SLOW
from tests.support.family_table import cell_in_process, slow_cells


@pytest.mark.timeout(300)
@pytest.mark.parametrize("column", SLOW)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_in_vllm_is_as_the_page_says(family: str, column: str) -> None:
    assert cell_in_process(family, column) == slow_cells()[family][column]
