"""Names and texts of others on one line, without what a terminal would obey."""

from __future__ import annotations


def printable(text: str) -> str:
    """What an app or a buildpack has named: what is not printable is escaped as in Python."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode() for character in text
    )
