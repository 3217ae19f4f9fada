"""What a run computes does not depend on ranks, packs, sharing, checkpointing, launcher or ZeRO stage."""

import pytest
import torch
from running import SMALL

CURVES = (
    "train/loss", "train/margin", "train/chosen_reward", "train/grad_norm", "eval/all/loss", "eval/all/margin_p10",
    "eval/all/chosen_reward_std", "eval/all/brier", "eval/all/ece", "eval/all/accuracy_chosen_longer",
    "eval/all/length_correlation",
)  # fmt: skip


def same_curves(a, b, rtol, atol):
    for key in CURVES:
        ours, theirs = torch.tensor(a.steps(key)), torch.tensor(b.steps(key))
        assert len(ours) > 1
        # The loss does not determine what all rewards have in common: its gradient is rounding, and Adam follows it.
        allowed = 10 * atol if key == "train/chosen_reward" else atol
        torch.testing.assert_close(ours, theirs, rtol=rtol, atol=allowed, msg=lambda m, k=key: f"{k}: {m}")


def same_weights(a, b, atol):
    ours, theirs = a.weights(), b.weights()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=atol, msg=lambda m, n=name: f"{n}: {m}")


def test_one_and_two_ranks_other_packs_no_sharing_recomputing(two_ranks, one_rank):
    assert two_ranks.steps("train/packs") != one_rank.steps("train/packs")
    assert two_ranks.steps("train/prefix_tokens_saved")[0] > 0 == one_rank.steps("train/prefix_tokens_saved")[0]
    same_curves(two_ranks, one_rank, rtol=2e-5, atol=2e-6)
    same_weights(two_ranks, one_rank, atol=2e-5)


@pytest.mark.parametrize(("kind", "ranks", "stage"), [("torchrun", 2, 2), ("deepspeed", 1, 1)])
@pytest.mark.slow("a real run for each launcher and stage")
def test_launchers_and_zero_stages(runs, two_ranks, kind, ranks, stage):
    extra = [f"engine.zero_stage={stage}", "data.pack_tokens=1024", "export.num_check_pairs=2"]
    other = runs.get(f"zero-{stage}", ["recipe=smoke-qwen3", *SMALL, *extra], kind, ranks)
    same_curves(two_ranks, other, rtol=2e-5, atol=2e-6)
    same_weights(two_ranks, other, atol=2e-5)


@pytest.mark.slow("two real runs, one on two ranks")
def test_llama_on_one_and_two_ranks(runs):
    one = runs.get("llama-one", ["recipe=smoke-llama", *SMALL, "data.pack_tokens=512"])
    two = runs.get("llama-two", ["recipe=smoke-llama", *SMALL], "deepspeed", 2)
    same_curves(one, two, rtol=2e-5, atol=2e-6)
    same_weights(one, two, atol=2e-5)


@pytest.mark.slow("a real run on two ranks")
def test_bf16_follows_fp32(runs, two_ranks):
    bf16 = runs.get("bf16", ["recipe=smoke-qwen3", *SMALL, "engine.precision=bf16"], "deepspeed", 2)
    assert bf16.weights()["model.norm.weight"].dtype == torch.bfloat16
    torch.testing.assert_close(
        torch.tensor(bf16.steps("train/loss")), torch.tensor(two_ranks.steps("train/loss")), rtol=0.05, atol=0.05
    )


@pytest.mark.slow("a real run on two ranks")
def test_resume_goes_on_exactly(runs, two_ranks):
    middle = two_ranks.directory / "checkpoints" / "step-3"
    extra = ["data.pack_tokens=512", f"checkpoint.resume={middle}", "evaluation.at_start=false"]
    resumed = runs.get("resumed", ["recipe=smoke-qwen3", *SMALL, *extra], "deepspeed", 2)
    assert "resumed from step 3 of 5" in resumed.output
    assert [line["step"] for line in resumed.metrics if "train/loss" in line] == [4, 5]
    assert resumed.steps("train/loss") == two_ranks.steps("train/loss")[3:]
    for name, tensor in resumed.weights().items():
        assert torch.equal(tensor, two_ranks.weights()[name]), name
