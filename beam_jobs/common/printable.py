"""Text of headers and file names made fit for a terminal."""

from __future__ import annotations


def printable(text: str, *, keep: str = "") -> str:
    r"""A text in which nothing but what is seen is left: the rest stands in escapes.

    Control characters, escape sequences, marks of writing direction, lone surrogates and unassigned
    characters could move the cursor, forge lines or hide what stands there.

    Args:
      text: any.
      keep: characters to be left as they are.

    >>> printable("T1\x1b[2J\u202e\xa0w")
    'T1\\x1b[2J\\u202e w'
    """
    if text.isprintable():
        return text
    return "".join(
        letter
        if letter.isprintable() or letter in keep
        else " "
        if letter.isspace() and letter not in "\n\r\t\v\f\x1c\x1d\x1e\x1f\x85\u2028\u2029"
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


def in_digits(number: float, digits: int = 4) -> str:
    """A measured number with so many digits that count, in zeros rather than powers of ten.

    >>> in_digits(4875086.0), in_digits(29.130276), in_digits(1.23456e-06), in_digits(9999.6)
    ('4875000', '29.13', '1.235e-06', '10000')
    """
    text = f"{number:.{digits}g}"
    return f"{float(text):.0f}" if "e+" in text and abs(number) < 1e15 else text


def counted(number: int, noun: str) -> str:
    """How many of what.

    >>> counted(1, "patient"), counted(2, "patient"), counted(2, "series")
    ('1 patient', '2 patients', '2 series')
    """
    return f"{number} {plural(number, noun)}"


def plural(number: int, noun: str) -> str:
    """The noun as it stands behind a number."""
    return noun if number == 1 or noun.endswith("s") else f"{noun}s"
