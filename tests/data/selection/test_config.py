"""Wrong data settings name their key."""

from pathlib import Path
from typing import Any

import pytest

from data.common.errors import DataError
from data.rows.sources import SourceConfig
from data.selection.config import DataConfig, GateConfig, check_data


@pytest.mark.parametrize(
    ("gates", "said"),
    [
        ({"duplicates": "yes"}, "data.gates.duplicates='yes': expected one of ['off', 'report', 'drop']"),
        ({"contradictions": "vote"}, "'majority'"),
        ({"near_duplicate_threshold": 0.5}, "data.gates.near_duplicate_threshold=0.5: expected 0.7 or more"),
        ({"contamination": "drop"}, "of which benchmarks? give data.gates.benchmarks.NAME=PATH"),
        ({"benchmarks": {"rmbench": "hub"}}, "data.gates.benchmarks.rmbench: no such benchmark; there are rewardbench"),
        ({"benchmarks": {"rmb": "absent"}}, "data.gates.benchmarks.rmb=absent: no such file or directory"),
    ],
)
def test_wrong_gates_name_their_key(gates: dict[str, Any], said: str) -> None:
    with pytest.raises(DataError) as caught:
        check_data(DataConfig(sources={"x": SourceConfig(builtin="twins-train")}, gates=GateConfig(**gates)))
    assert said in str(caught.value)


@pytest.mark.parametrize("fraction", [0.0, 1.1, float("nan")])
def test_a_wrong_fraction_names_its_key(fraction: float) -> None:
    with pytest.raises(DataError, match=r"^data\.fraction="):
        check_data(DataConfig(sources={"x": SourceConfig(builtin="twins-train")}, fraction=fraction))


def test_a_condition_that_is_none_is_refused_before_a_row_is_read(tmp_path: Path) -> None:
    source = SourceConfig(builtin="twins-train", where="1; DROP TABLE x")
    with pytest.raises(DataError, match=r"^data\.sources\.x\.where"):
        check_data(DataConfig(sources={"x": source}))
