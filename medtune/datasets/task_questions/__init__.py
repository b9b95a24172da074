"""Questions with their tasks, for training and evaluating a task router."""

from medtune.datasets.task_questions.builder import task_questions, unseen_task_questions

__all__ = ["task_questions", "unseen_task_questions"]
