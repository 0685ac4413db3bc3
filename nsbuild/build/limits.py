"""What platforms allow a build: 15 minutes for a compile, 500 MB for a compressed slug.

https://devcenter.heroku.com/articles/slug-compiler
"""

from __future__ import annotations

from nsbuild.build.options import BuildOptions

COMPILE_SECONDS = 900.0
SLUG_BYTES = 500 << 20
COMPILES = ("compile", "test-compile")
TESTS = ("test-setup", "test")


def time_limit(script: str, options: BuildOptions) -> float | None:
    """Seconds after which `bin/SCRIPT` is ended; a compile only where that was asked for, else it is warned about."""
    if options.timeout is not None:
        return options.timeout
    if script in TESTS or (script in COMPILES and not options.enforce_limits):
        return None
    return COMPILE_SECONDS


def slow(seconds: float, limit: float | None) -> str:
    """What to say of a compile that took this long; empty when it was in time, or held to a `limit` of its own."""
    if limit is not None or seconds <= COMPILE_SECONDS:
        return ""
    return f"took {seconds:.0f} seconds: a platform ends it after {COMPILE_SECONDS / 60:g} minutes"


def megabytes(size: int) -> str:
    """As platforms print a slug's size: `12.3M`, of 1024 KiB each."""
    return f"{size / (1 << 20):.1f}M"


def too_large(size: int) -> str:
    """What the platform says of a compressed slug of so many bytes; empty when it may be as large."""
    if size <= SLUG_BYTES:
        return ""
    return f"Compiled slug size: {megabytes(size)} is too large (max is {SLUG_BYTES >> 20}M)."
