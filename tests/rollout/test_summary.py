"""The numbers of `status`: counted once, by the path that was decided."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nsbuild.rollout.decision import Decision
from nsbuild.rollout.ledger import Ledger
from nsbuild.rollout.summary import summarise


def fill(directory: Path) -> Ledger:
    """Three direct builds, two shadows, four in the namespace of three apps."""
    with Ledger(directory) as ledger:

        def build(app: str, path: str, result: str, exit_code: int, seconds: float, **more: Any) -> None:
            reason = "percentage" if path != "direct" else "off"
            decided = ledger.decided(Decision(app, path, reason))
            arm = "namespace" if path == "namespace" and result not in ("fallback", "rescued") else "direct"
            started = 1000.0 + seconds
            done = decided.outcome(arm, result, started=started, seconds=seconds, exit_code=exit_code, **more)
            ledger.record(done)
            if path == "shadow":
                candidate = "same" if app == "s1" else "failed"
                ledger.record(decided.outcome("namespace", candidate, shadow=True, started=2000.0, seconds=900.0))

        for app, seconds in [("d1", 1.0), ("d1", 2.0), ("d2", 9.0)]:
            build(app, "direct", "succeeded", 0, seconds, slug_bytes=int(seconds))
        build("s1", "shadow", "succeeded", 0, 5.0)
        build("s2", "shadow", "failed", 1, 5.0)
        build("n1", "namespace", "succeeded", 0, 3.0, leaks=0, boot="passed")
        build("n2", "namespace", "failed", 1, 4.0, leaks=2, boot="failed")
        build("n3", "namespace", "fallback", 7, 5.0, fallback="no user namespaces")
        build("n3", "namespace", "rescued", 0, 6.0, namespace_exit_code=1)
    return ledger


def test_every_build_is_counted_once_under_the_path_that_was_decided(tmp_path: Path) -> None:
    found = summarise(fill(tmp_path))
    assert found.decisions == {"direct": 3, "shadow": 2, "namespace": 4}
    assert found.reasons == {"off": 3, "percentage": 6}
    assert {path: (row.builds, row.apps, row.failing) for path, row in found.shipped.items()} == {
        "direct": (3, 2, 0),
        "shadow": (2, 2, 1),
        "namespace": (4, 3, 2),
    }
    namespace = found.shipped["namespace"]
    assert namespace.results == {"succeeded": 1, "failed": 1, "fallback": 1, "rescued": 1}
    assert (namespace.leaking, namespace.boots) == (1, {"passed": 1, "failed": 1})
    assert found.candidates == {"same": 1, "different": 0, "failed": 1, "crashed": 0, "timed out": 0, "skipped": 0}
    assert found.fallbacks == (("no user namespaces", 1),)
    assert (found.first, found.last) == (1001.0, 2000.0)


def test_medians_are_of_what_is_known(tmp_path: Path) -> None:
    found = summarise(fill(tmp_path))
    direct = found.shipped["direct"]
    assert (direct.seconds_median, direct.seconds_p95, direct.slug_bytes_median) == (2.0, 9.0, 2.0)
    assert found.shipped["shadow"].seconds_p95 == 5.0, "a candidate's time is no shipped build's"
    assert found.shipped["shadow"].slug_bytes_median is None


def test_an_empty_ledger_has_numbers_too(tmp_path: Path) -> None:
    found = summarise(Ledger(tmp_path))
    assert found.first is None and found.shipped["direct"].builds == 0
