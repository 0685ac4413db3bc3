"""Where an app stands in the queue: the same place on every host, for ever."""

from __future__ import annotations

from hashlib import sha256

ALGORITHM = "sha256-8-10000"
"""Named in the flags file. It is never changed: another algorithm gets another name, lest every app moves."""
BUCKETS = 10_000


def bucket(salt: str, app: str) -> int:
    """0 to 9999. An app that is below one share is below every larger one."""
    return int(sha256(f"{salt}:{app}".encode()).hexdigest()[:8], 16) % BUCKETS
