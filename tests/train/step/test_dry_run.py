"""The dry run takes what a step takes, and changes nothing."""

import json

import pytest

pytestmark = pytest.mark.slow("eight configurations trained on one and on two ranks, with every tensor counted")


@pytest.fixture(scope="module", params=[1, 2], ids=["1-rank", "2-ranks"])
def measured(request, warm, tmp_path_factory):
    """What the main rank found in a world of one and of two ranks, by ZeRO stage and precision."""
    directory = tmp_path_factory.mktemp("bytes")
    ended = warm.run([], ranks=request.param, patch=["tensor_bytes", str(directory)])
    assert set(ended.codes) == {0}, ended.output
    return request.param, json.loads((directory / "found-0.json").read_text())


def test_no_step_takes_more_than_the_dry_run(measured):
    """The packs of a step and its update, of the first step and of later ones; nor does the dry run take more."""
    for found in measured[1].values():
        for step in found["steps"]:
            for part, taken in found["rehearsal"].items():
                assert step[part] - 64 <= taken <= 1.01 * step[part]  # 64: a step's norm, and the like
        assert found["trained"]


def test_the_moments_are_there_before_the_first_step(measured):
    """8 bytes a parameter over the ranks; DeepSpeed pads shards, and leaves some small parameters whole."""
    ranks, by_config = measured
    for found in by_config.values():
        assert 8 * found["parameters"] / ranks <= found["moments"] < 8 * found["parameters"] / ranks * 1.1


def test_the_rehearsal_changes_no_bit(measured):
    for found in measured[1].values():
        assert found["rehearsed"], "DeepSpeed's own step must have been gone through"
        assert found["changed"] == []
        assert found["compared"] > 20
