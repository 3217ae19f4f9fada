"""Packed rewards of real benchmark items equal those of plain transformers (`benchmark_parity.py` is the long form)."""

import paths
import pytest
from benchmark_parity import FOLDERS, TOLERANCE, compare

SHARED = paths.SHARED / "data"


@pytest.mark.slow("a model with a real vocabulary scores real items twice")
@pytest.mark.skipif(not SHARED.is_dir(), reason=f"needs the benchmarks and a tokenizer in {SHARED}")
def test_packed_equals_one_at_a_time():
    found = compare(SHARED / "benchmarks", SHARED / "tokenizers" / "qwen3", items=8)
    assert set(found) == set(FOLDERS)
    for line in found.values():
        assert line["items"] == 8
        assert line["worst"] <= TOLERANCE
        assert line["spread"] > 100 * TOLERANCE, "rewards that hardly differ would agree whatever was scored"
