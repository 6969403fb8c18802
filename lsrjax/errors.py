"""What ends a run with a message instead of a traceback."""


class InputError(ValueError):
    """A config, file, checkpoint or model that cannot be used as it is.

    The message says what was found, where, and what to do; programs print it without
    a traceback and exit with status 2.
    """


class TrainingFailed(RuntimeError):
    """The run cannot go on; earlier checkpoints are as they were."""
