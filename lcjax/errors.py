"""The one exception for faults that the user can mend."""


class InputError(ValueError):
    """A wrong path, file, flag or combination: the message names the thing and the mend in one line.

    Command lines print the message alone and exit with code 2 (see `lcjax.cli`); every other exception is a bug of
    ours and keeps its traceback.
    """
