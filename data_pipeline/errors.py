"""The exceptions that are meant for the person at the keyboard."""


class InputError(ValueError):
    """Something given from outside cannot work; the message says what to change.

    `launch.py` prints it as one sentence, without a traceback.
    """


class DamagedRecord(InputError):
    """A stored record cannot be read; other records of its dataset may be whole."""
