"""Features of rows are found once and kept."""

from typing import Any

import pytest
from handmade_rows import pair
from prepared_data import Prepare, trained

from data.selection.config import GateConfig


def test_facts_about_rows_are_found_once(prepare: Prepare, monkeypatch: pytest.MonkeyPatch) -> None:
    from data.selection import row_features

    rows = ([pair(f"Q{i}", "yes", f"no {i}", n=i) for i in range(20)], {"where": "n < 12"})
    how = {"gates": GateConfig(near_duplicates="drop")}
    first = prepare({"x": rows}, **how)

    def fail(*_: Any) -> Any:
        raise AssertionError("the rows were read again")

    monkeypatch.setattr(row_features, "read_rows", fail)
    assert trained(prepare({"x": rows}, **how)) == trained(first)
    with pytest.raises(AssertionError, match="read again"):
        prepare({"x": (rows[0], {"where": "n < 13"})}, **how)
