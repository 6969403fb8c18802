"""Errors that end a run with a message instead of a traceback."""


class InputError(ValueError):
    """A config, file, checkpoint or model that cannot be used.

    The message says what was found, where, and what to do; programs print it without
    a traceback and exit with status 2.
    """


class TrainingFailed(RuntimeError):
    """The run cannot continue; earlier checkpoints are unchanged."""
