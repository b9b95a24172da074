"""Judges: they choose the better of two answers to a question, or score an answer beside a reference answer."""

from medtune.judges.attribute_judge import AttributeJudge
from medtune.judges.chat_judge import ChatJudge
from medtune.judges.human_judge import HumanJudge
from medtune.judges.model_judge import ModelJudge
from medtune.judges.verdict_judge import VerdictJudge

__all__ = ["AttributeJudge", "ChatJudge", "HumanJudge", "ModelJudge", "VerdictJudge"]
