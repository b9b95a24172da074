"""Judges: they choose the better of two answers to a question, and the choices become preference pairs."""

from medtune.judges.attribute_judge import AttributeJudge
from medtune.judges.human_judge import HumanJudge
from medtune.judges.model_judge import ModelJudge

__all__ = ["AttributeJudge", "HumanJudge", "ModelJudge"]
