"""The error for what a user can put right."""


class InputError(ValueError):
    """A config, file, checkpoint or model that cannot be used as it is.

    The message says what was found, where, and what to do; programs print it without
    a traceback and exit with status 2.
    """
