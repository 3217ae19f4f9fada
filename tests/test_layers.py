"""Imports point down: each module may import only what stands above it in this list (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest
from paths import ROOT

LAYERS = [
    *(f"data.{name}" for name in ("screen", "durable", "progress", "keys", "columns", "pairs", "conversations")),
    *(f"data.{name}" for name in ("builtin", "child", "files", "condition", "hub", "sources", "where")),
    *(f"data.{name}" for name in ("words", "markdown", "near_duplicates", "cached", "pool", "render")),
    *(f"data.benchmarks.{name}" for name in ("comparison", "aggregate", "rewardbench", "rewardbench2")),
    *(f"data.benchmarks.{name}" for name in ("ppe_preference", "ppe_correctness", "rmb", "rm_bench", "judgebench")),
    *(f"data.benchmarks.{name}" for name in ("comparisons", "best_of_n", "catalogue")),
    *(f"data.{name}" for name in ("contamination", "settings", "chat", "tokenise", "store", "mixture", "selection")),
    *(f"data.{name}" for name in ("row_facts", "gates", "prepare", "card", "packing", "planning", "sampler", "loader")),
    *(f"models.{name}" for name in ("attention", "losses", "last_layer", "reward_model", "liger")),
    *(f"models.{name}" for name in ("config_check", "weights", "build", "export")),
    *(
        f"train.{name}"
        for name in ("references", "ports", "distributed", "tracking", "preemption", "watchdog", "engine")
    ),
    *(f"train.{name}" for name in ("pair_metrics", "checkpoint", "shards", "evaluation_files", "evaluation")),
    *(f"train.{name}" for name in ("example", "flops", "metrics", "bad_steps")),
    *(f"train.{name}" for name in ("recipe_yaml", "overlays", "recipe", "memory", "costs", "tokenizer", "inputs")),
    *(f"train.{name}" for name in ("prepare", "show", "decontaminate", "plan")),
    *(f"train.{name}" for name in ("scorer", "benchmark_run", "loop_benchmarks")),
    *(f"train.{name}" for name in ("starting_point", "resumable", "run", "early_stop", "loop", "card")),
    *(f"train.{name}" for name in ("report_plots", "report_page", "report_data", "report_sections", "benchmark_table")),
    *(f"train.{name}" for name in ("sweep_points", "sweep_config", "sweep_prepare", "sweep_plan", "sweep_lines")),
    *(f"train.{name}" for name in ("sweep_jobs", "sweep_slurm", "sweep_progress", "sweep_results", "sweep_benchmarks")),
    *(f"train.{name}" for name in ("sweep_scaling", "sweep_tables", "sweep_plots", "report_sweep")),
    *(f"train.{name}" for name in ("report_benchmarks", "report", "check_export", "finish", "score", "main")),
    *(f"train.{name}" for name in ("benchmark", "sweep")),
]


def imports_of(path: Path) -> set[str]:
    """Our modules that a file imports anywhere in it, type checking and late imports included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found & set(LAYERS)


def modules() -> dict[str, Path]:
    paths = [path for package in ("data", "models", "train") for path in sorted((ROOT / package).rglob("*.py"))]
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in paths if path.stem != "__init__"}


def test_every_module_has_a_layer():
    assert set(modules()) == set(LAYERS)


@pytest.mark.parametrize("name", LAYERS)
def test_imports_point_down(name):
    above = {other for other in imports_of(modules()[name]) if LAYERS.index(other) >= LAYERS.index(name)}
    assert not above
    if not name.startswith("train."):
        own = name.split(".")[0]
        assert all(other.startswith(own) for other in imports_of(modules()[name])), "data and models meet in train only"


def test_the_test_would_notice():
    assert imports_of(modules()["train.run"]) >= {"data.packing.loader", "models.build", "train.recipe"}


def test_no_module_shadows_another_library():
    """`deepspeed train/main.py` puts train/ first on sys.path; the commands take it off, but not before torch's own."""
    import sys

    for name, path in modules().items():
        if path.parent.name == "train":
            assert name.split(".")[1] not in sys.stdlib_module_names
