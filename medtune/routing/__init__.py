"""Routing of questions to adapters: a classifier of the question's task chooses the adapter that answers (ME-VLIP)."""

from medtune.routing.backend import RoutedModel
from medtune.routing.loading import load_router
from medtune.routing.questions import require_tasks

__all__ = ["RoutedModel", "load_router", "require_tasks"]
