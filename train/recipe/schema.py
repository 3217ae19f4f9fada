"""A run as a file: defaults <- recipe <- overlays <- command line, checked before anything is downloaded or started.

Each part's dataclass stands beside the code that reads it; here they are composed. The result is plain dataclasses;
OmegaConf stays in this package. Nothing here imports torch, so that a wrong key is answered at once.
"""

import operator
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from data.common.resume_policy import extends, free
from data.rows.sources import SourceConfig
from data.selection.config import DataConfig, check_data
from models.build import ATTENTION, ModelConfig
from models.losses import LossConfig
from train.checkpoints.state import CheckpointConfig, check_checkpoint
from train.evaluation.held_out import EvaluationConfig, check_evaluation
from train.recipe.merge import OVERLAYS, check_given, check_removals, find_file, merge, names_in, override, read_overlay
from train.recipe.safe_yaml import RECIPES, RecipeError, check_resolved, closest, explain, read_yaml
from train.runtime.preemption import RunConfig, check_run
from train.runtime.tracking import TrackingConfig
from train.step.config import EngineConfig, OptimizerConfig, check_engine


@dataclass
class TrainingConfig:
    pairs_per_step: int = 256  # pairs of one optimizer step, over all ranks; part of the recipe, not of the machine
    epochs: int = extends(1)  # passes over the mixture
    max_steps: int | None = extends(None)  # stop after so many steps; the schedule ends there too


@dataclass
class ExportConfig:
    enabled: bool = free(True)  # write runs/<name>/export at the end
    num_check_pairs: int = free(8)  # held-out pairs on which the export is compared with training, besides references


@dataclass
class Recipe:
    """A run. `docs/recipes.md` and each dataclass say what the keys mean.

    A field also says whether it may change when a run goes on (resume_policy.py). One that says nothing may not: with
    another value it is another run.
    """

    name: str = free("run")  # on the model card; default: the recipe's file name, then the overlays'
    run_dir: str | None = free(None)  # default: runs/<name>; its last part is the run's name in wandb
    seed: int = 0  # of the order of pairs, the score head and random weights
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    run: RunConfig = field(default_factory=RunConfig)

    def directory(self) -> Path:
        return Path(os.path.expanduser(self.run_dir or f"runs/{self.name}"))


def load_recipe(arguments: list[str], *, with_data: bool = True) -> Recipe:
    """The recipe that a command line asks for.

    Args:
        arguments: `recipe=NAME_OR_FILE`, `overlay=NAME_OR_FILE[,NAME_OR_FILE...]` and `key=value` overrides.
        with_data: False for a command that reads no pairs: a generated set then stands for all sources.

    Raises: RecipeError: one line that names the key and what to write instead.
    """
    overrides, path, overlays = [], None, []
    for argument in arguments:
        if argument.startswith(("--local_rank=", "--local-rank=")):  # the deepspeed launcher appends it
            continue
        key, equals, value = argument.partition("=")
        if not equals or not key or key.startswith("-"):
            raise RecipeError(f"{argument!r}: expected key=value, e.g. recipe=tiny or data.pack_tokens=8192")
        if key == "recipe":
            path = find_file("recipe", value, RECIPES)
        elif key == "overlay":
            overlays += [find_file("overlay", name, OVERLAYS) for name in value.split(",")]
        else:
            overrides.append((key, value))
    if path is None:
        raise RecipeError(f"which recipe? give recipe=NAME, one of {', '.join(recipe_names())}, or recipe=FILE.yaml")
    merged = _read_recipe(path, overlays)
    mandatory: dict[str, Path] = {}
    for overlay in overlays:
        extra, keys = read_overlay(overlay)
        if overlay.parent != OVERLAYS:  # a shipped one removes the sources of all shipped recipes
            check_removals(merged, extra, str(overlay))
        merged = merge(merged, extra, str(overlay))
        mandatory |= dict.fromkeys(keys, overlay)
    for key, value in overrides:
        merged = override(merged, key, value)
    if with_data:
        check_given(merged, mandatory)
    recipe = _to_object(merged)
    if not with_data:
        recipe.data.sources, recipe.data.eval.sources = {"any": SourceConfig(builtin="twins-train")}, {}
    check_recipe(recipe)
    return recipe


def read_recipe(path: Path) -> Recipe:
    """A file over the defaults; files that it names need not be there. Raises: RecipeError."""
    return _to_object(_read_recipe(path, check=False))


def recipe_names() -> list[str]:
    return names_in(RECIPES)


def to_yaml(recipe: Recipe) -> str:
    """The whole recipe, defaults included, as YAML that `recipe=FILE` reads back."""
    return OmegaConf.to_yaml(OmegaConf.structured(recipe))


def check_recipe(recipe: Recipe) -> None:
    """Checks values beyond their types. Raises: RecipeError naming the key."""

    def require(ok: bool, key: str, expected: str) -> None:
        if not ok:
            raise RecipeError(f"{key}={operator.attrgetter(key)(recipe)}: expected {expected}")

    model, training, optimizer, engine = recipe.model, recipe.training, recipe.optimizer, recipe.engine
    if (model.base is None) == (model.config is None):
        raise RecipeError("model: give exactly one of model.base (weights) and model.config (random weights)")
    if model.base is None and model.tokenizer is None:
        raise RecipeError("model.tokenizer: needed beside model.config (a hub name, a directory, or `bytes`)")
    for key, sources in (("data.sources", recipe.data.sources), ("data.eval.sources", recipe.data.eval.sources)):
        _check_begun(key, sources)
    try:
        check_data(recipe.data)
        check_engine(engine)
        check_checkpoint(recipe.checkpoint)
        check_run(recipe.run)
        check_evaluation(recipe.evaluation, recipe.checkpoint.best)
    except ValueError as error:
        raise RecipeError(str(error)) from None
    require(model.attention in ATTENTION, "model.attention", f"one of {', '.join(ATTENTION)}")
    for key, path in (("run_dir", str(recipe.directory())), ("checkpoint.resume", recipe.checkpoint.resume)):
        if set(path) & set("*?[]"):
            raise RecipeError(f"{key}={path}: DeepSpeed takes * ? [ and ] for patterns; give a name without them")
    require(model.liger in ("auto", "always", "never"), "model.liger", "auto, always or never")
    require(bool(re.fullmatch(r"\w[\w.-]{0,99}", recipe.name)), "name", "letters, digits, '.', '_' and '-'")
    require(training.pairs_per_step >= 1, "training.pairs_per_step", "1 or more")
    require(training.epochs >= 1, "training.epochs", "1 or more")
    require(
        training.max_steps is None or training.max_steps >= 1,
        "training.max_steps",
        "1 or more; to evaluate an export on pairs without training: "
        "python train/benchmark.py model=EXPORT benchmark=comparisons path=PAIRS.jsonl",
    )
    require(0 <= recipe.loss.label_smoothing < 0.5, "loss.label_smoothing", "0 or more and below 0.5")
    require(recipe.loss.center_coefficient >= 0, "loss.center_coefficient", "0 or more")
    require(0 < optimizer.learning_rate < float("inf"), "optimizer.learning_rate", "a finite number above 0")
    require(optimizer.schedule in ("constant", "linear", "cosine"), "optimizer.schedule", "constant, linear or cosine")
    require(0 <= optimizer.warmup_ratio < 1, "optimizer.warmup_ratio", "0 or more and below 1")
    betas = optimizer.betas
    require(len(betas) == 2 and all(0 <= b < 1 for b in betas), "optimizer.betas", "two numbers in [0, 1)")
    require(optimizer.eps > 0, "optimizer.eps", "a number above 0")
    require(optimizer.weight_decay >= 0, "optimizer.weight_decay", "0 or more")
    require(optimizer.max_grad_norm >= 0, "optimizer.max_grad_norm", "0 (off) or more")
    require(0 <= recipe.seed < 2**63, "seed", "0 or more, and below 2^63")
    require(recipe.tracking.log_every >= 1, "tracking.log_every", "1 or more steps")
    require(recipe.export.num_check_pairs >= 0, "export.num_check_pairs", "0 or more")
    if model.attention not in ("auto", "sdpa", "eager") and engine.precision == "fp32":
        raise RecipeError(
            f"model.attention={model.attention} computes in bf16 only and engine.precision=fp32; change one of them"
        )


def _check_begun(key: str, sources: Mapping[str, SourceConfig | None]) -> None:
    """Raises: RecipeError when a source reads nothing, while others do: its name may be mistyped."""
    reads = {n: any((s.path, s.dataset, s.builtin)) for n, s in sources.items() if s is not None}
    others = [name for name, does in reads.items() if does]
    for name, does in reads.items():
        if not does and others:
            raise RecipeError(
                f"{key}.{name} reads nothing{closest(name, others)}: give exactly one of path, dataset and builtin; "
                f"the other sources are {', '.join(others)}"
            )


def _read_recipe(path: Path, overlays: Sequence[Path] = (), *, check: bool = True) -> DictConfig:
    name = "-".join([path.stem, *(overlay.stem for overlay in overlays)])
    defaults: Any = OmegaConf.merge(OmegaConf.structured(Recipe), {"name": name})
    content = read_yaml(path)
    if check and not {f.name for f in fields(Recipe)} <= set(content):  # a run's recipe.yaml keeps what was removed
        check_removals(defaults, content, str(path))
    return merge(defaults, content, str(path))


def _to_object(config: DictConfig) -> Recipe:
    try:
        recipe = OmegaConf.to_object(config)
    except OmegaConfBaseException as error:
        raise RecipeError(explain(error)) from None
    assert isinstance(recipe, Recipe)
    check_resolved(asdict(recipe))
    return recipe
