"""A run as a file: YAML, overlays and the command line, checked without torch."""

from typing import TYPE_CHECKING

from data.common.lazy import lazy_exports

if TYPE_CHECKING:
    from train.recipe.safe_yaml import RecipeError
    from train.recipe.schema import Recipe, load_recipe, to_yaml

__all__ = ["Recipe", "RecipeError", "load_recipe", "to_yaml"]
__getattr__ = lazy_exports(
    __name__, {"Recipe": "schema", "RecipeError": "safe_yaml", "load_recipe": "schema", "to_yaml": "schema"}
)
