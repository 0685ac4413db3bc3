"""What goes wrong on the host, before a VM runs."""

from __future__ import annotations

import click


class Unavailable(click.ClickException):
    """Something that a VM needs cannot be had here: a sentence, and the fix."""

    exit_code = 125

    def __init__(self, sentence: str, fix: str = "") -> None:
        super().__init__(f"{sentence} {fix}".strip())
