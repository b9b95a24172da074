"""Errors meant for the person at the keyboard.

Every message says what was wrong, where (file, row, key) and what to do. Recipes and the command line print such an
error as one line and exit with status 2; anything else is a defect of medtune and keeps its traceback.
"""


class MedtuneError(Exception):
    """Base of all errors that a user can mend."""


class ConfigError(MedtuneError):
    """A config key, value or component that cannot be used."""


class DataError(MedtuneError):
    """A sample, image, table or folder that cannot be used."""


class ModelError(MedtuneError):
    """A model, its weights or its parts do not fit what was asked."""


class CheckpointError(MedtuneError):
    """A training checkpoint cannot be written, read or continued."""


class TrainingError(MedtuneError):
    """Training had to stop before the weights were harmed."""
