"""Training methods, each one small object; see :mod:`medtune.objectives.base`."""

from medtune.objectives.instfree import InstFree
from medtune.objectives.sft import SFT

__all__ = ["SFT", "InstFree"]
