"""Recipes as modules; they are files that ``tune run`` starts, not a package."""

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

RECIPES = Path(__file__).resolve().parents[1] / "recipes"


def load_recipe(name: str) -> ModuleType:
    """Execute ``recipes/NAME.py`` under a name of its own."""
    spec = importlib.util.spec_from_file_location(f"{name}_recipe_module", RECIPES / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module
