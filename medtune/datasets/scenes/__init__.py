"""Scenes: white blood cells on small canvases, with known types, places, sizes and counts."""

from medtune.datasets.scenes.prepare import prepare_drawn_scenes, prepare_scenes

__all__ = ["prepare_drawn_scenes", "prepare_scenes"]
