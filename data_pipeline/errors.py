"""The exceptions that are meant for the person at the keyboard."""


class InputError(ValueError):
    """Something given from outside cannot work; the message says what to change.

    `launch.py` prints it as one sentence, without a traceback.
    """
