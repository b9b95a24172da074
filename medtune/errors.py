"""Errors that the user can fix.

Every message says what is wrong, where (file, row, key) and what to do. Recipes and the command line print such an
error as one line and exit with status 2. Any other exception is a bug in medtune and keeps its traceback.
"""


class MedtuneError(Exception):
    """Base class of all errors that a user can fix."""


class ConfigError(MedtuneError):
    """A config key, value or component that cannot be used."""


class DataError(MedtuneError):
    """A sample, image, table or folder that cannot be used."""


class ModelError(MedtuneError):
    """A model, its weights or its parts do not match the request."""


class CheckpointError(MedtuneError):
    """A training checkpoint cannot be written, read or resumed from."""


class TrainingError(MedtuneError):
    """Training had to stop before the weights were damaged."""
