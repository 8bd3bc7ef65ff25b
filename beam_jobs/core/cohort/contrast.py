"""What a text says of contrast agent: with it, without it, both or nothing.

Words are English, German, French, Spanish, Portuguese, Italian, Dutch, the Scandinavian, Polish,
Czech and Turkish ones. One mechanism: a word before ("without", "before") or a sign turns the
agent's name into its absence, and what is left of the text may still name it: then it says both.
"""

from __future__ import annotations

import enum
import re


class Agent(enum.Enum):
    """What a text says of contrast agent."""

    UNSAID = enum.auto()
    GIVEN = enum.auto()
    ABSENT = enum.auto()
    BOTH = enum.auto()


def words(*alternatives: str) -> str:
    """A pattern of whole words of a normalised text."""
    return rf"(?<![a-z0-9])(?:{'|'.join(alternatives)})(?![a-z0-9])"


# Of other events than the injection: "post-op", "pre-treatment".
_EVENT = (
    r"(?! ?(?:op|surg|chir|rt\b|rad|best|treat|ther|trauma|fossa|scan|sat|bio|res[ek]|stroke|ict|"
    r"nat|chemo|tx|inter))"
)
_NAME = r"(?:km|gd|gad\w*|[ck]ontras[tc]\w*|mdc|inj\w*|gabe)"
_AGENT = rf"(?:{_NAME}|c|ce|con\w*|pdc|iv|enh\w*)"
_FILL = r"(?: (?:de|del|di|il|la|le|the|any|i?v))*"
# "Injection de gadolinium" is one.
_PHRASE = rf"{_AGENT}(?: (?:(?:de|di|do|of|von) )?{_NAME})*"
_PREFIX = r"(?:[es]|3d|2d|o?ax|o?sag|sg|o?cor|tra)?"

ENHANCED = words(
    rf"p?{_NAME}|ce|enhanced|iv|pdc|dotarem|prohance|c c|"
    r"magnevist|clariscan|multihance|omniscan|vueway|elucirem",
    rf"(?:post|after|nach|etter|efter|apres|dopo|despues){_EVENT}(?:gd|gad\w*|con\w*|km)?",
    rf"\+ ?(?:k|{_AGENT})|c \+|(?<=\w )c$",
    # A plus at a word's end, where nothing follows that it adds: "MPR+".
    r"(?<=\w )\+$",
    _PREFIX + r"t1(?:wi?)?(?:ce|gd|km|c(?!or|ube|erv|spine))\w*",
)
PLAIN = words(
    rf"(?:prae?|pre|before|vor|avant|antes|prima|voor){_EVENT}{_FILL}(?: ?{_PHRASE})?",
    rf"(?:prior(?: to)?|ante|przed|pred|fore?|innan){_FILL} {_NAME}",
    rf"(?:post )?(?:without|w o|wo|w out|ohne|sans|senza|sin|sem|zonder|uten|utan|uden|bez|fara)"
    rf"(?! ?(?:fs|fat|sat|spir)){_FILL}(?: {_PHRASE})?",
    rf"(?:post )?(?:non?|not|kein\w*)(?:{_FILL}(?: {_NAME})+| ?{_PHRASE})|o {_NAME}",
    rf"{_NAME} (?:neg\w*|no|nein|oncesi|frei|free)|[ck]ontrast(?:siz|frei\w*|los\w*|less)",
    r"unenhanced|plain|nativ\w*|basale?(?! gang)",
)
# "With and without contrast" names an exam, not a series.
_EXAM = re.compile(
    r"\b(?:wow|w(?:ith)? ?(?:and |\+ ?)?(?:wo|w ?o(?:ut)?|without)|mit und ohne|avec et sans)\b"
    r"(?: (?:iv|contrast\w*|km|gd|gad\w*|c))*"
)
# Signs that words apart by blanks would lose; a cervical spine is no contrast.
_SIGNED = r"(?:c|ce|km|gd|mdc|gad[a-z]*|[ck]ontrast[a-z]*)"
_SIGNS = (
    (rf"(?<![a-z0-9])(?:{_SIGNED} ?)?(?:\+ ?/ ?-|±)(?: ?{_SIGNED}(?![a-z0-9]))?", " wow "),
    (rf"(?<![a-z0-9]){_SIGNED} ?(?:\(-\)|-$)", " plain "),
    (rf"(?<![a-z0-9]){_SIGNED}-(?![a-z0-9]| ?(?:spine|ws|wirbel|col))", " plain "),
    (rf"(?<![^\s_])-(?={_SIGNED}(?![a-z0-9-]))", " ohne "),
    (r"(?<![a-z0-9])s[/.] ?c(?![a-z0-9])\.?", " plain "),
    (r"(?<![a-z0-9])c[/.] ?c(?![a-z0-9])\.?", " gd "),
    (rf"(?<![a-z0-9])s/ ?(?={_SIGNED})", " sem "),
)


def with_signs_as_words(text: str) -> str:
    """A text in small letters, "C-", "-KM", "s/c" and their like turned into words.

    >>> with_signs_as_words("ax t1 c-").split()
    ['ax', 't1', 'plain']
    """
    for pattern, meaning in _SIGNS:
        text = re.sub(pattern, meaning, text)
    return text


def without_exams(text: str) -> str:
    """A normalised text without "with and without contrast"."""
    return _EXAM.sub(" ", text)


def without_contrast_words(text: str) -> str:
    """A normalised text without any word that speaks of contrast agent."""
    return re.sub(ENHANCED, " ", re.sub(PLAIN, " ", text))


def agent_in(text: str) -> Agent:
    """What a normalised text says.

    >>> agent_in("t1 tra ohne km"), agent_in("t1 post pre")
    (<Agent.ABSENT: 3>, <Agent.BOTH: 4>)
    """
    rest, absent = re.subn(PLAIN, " ", text)
    if re.search(ENHANCED, rest):
        return Agent.BOTH if absent else Agent.GIVEN
    return Agent.ABSENT if absent else Agent.UNSAID
