"""The exceptions that are meant for the person at the keyboard."""


class InputError(ValueError):
    """Something given from outside cannot work; the message says what to change.

    A field to change is named as `out=DIR`, for the library knows no command line:
    `launch.py` makes `--config.out=DIR` of it, and prints the sentence, without a
    traceback.
    """
