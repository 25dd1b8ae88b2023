"""What must hold between the fields of a config, each of which fits its row."""

from collections.abc import Callable, Iterable
from typing import Any

from data_pipeline.errors import InputError
from data_pipeline.fields import find, show


def check(config, rules: Iterable[tuple[Callable[[Any], bool], str]]) -> None:
    """Refuses fields that contradict each other.

    Args:
        config: of which each field alone fits its row.
        rules: what must hold of it, and what is said where it does not; the sentence
            names fields as {c.model.dim}.

    Raises:
        InputError: the sentence of the first rule that does not hold.
    """
    for holds, sentence in rules:
        if not holds(config):
            raise InputError(sentence.format(c=config))


def ask(config, *calls: tuple) -> None:
    """Lets those judge that will be given the values.

    Args:
        config: of which each field alone fits its row.
        *calls: each a function that may raise an InputError, and the names of the
            fields that it is called with.

    Raises:
        InputError: what the function said, behind the fields and their values.
    """
    for function, *names in calls:
        values = [find(config, name)[1] for name in names]
        try:
            function(*values)
        except InputError as error:
            said = ", ".join(f"{n}={show(v)}" for n, v in zip(names, values))
            raise InputError(f"{said}: {error}") from error
