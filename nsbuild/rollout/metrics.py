"""The ledger's numbers as gauges, for Prometheus' textfile collector: what is removed by age is counted no more."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nsbuild.rollout.status import Status

Samples = Iterable[tuple[Mapping[str, str], float]]


def as_prometheus(status: Status) -> str:
    """Prometheus' text format, version 0.0.4."""
    return "".join(_family(f"nsbuild_rollout_{name}", about, samples) for name, about, samples in families(status))


def families(status: Status) -> list[tuple[str, str, Samples]]:
    """The name, what it is, and the values by their labels, of every gauge."""
    ledger = status.ledger
    one: dict[str, str] = {}
    found: list[tuple[str, str, Samples]] = [
        ("killed", "1 while the kill switch sends every build direct.", [(one, float(bool(status.killed)))]),
        ("flags_good", "1 while the flags file can be used.", [(one, float(not status.problem))]),
        ("spooled_records", "Records that wait for the ledger.", [(one, status.spooled)]),
        ("decisions", "Decisions in the ledger.", [({"path": path}, n) for path, n in ledger.decisions.items()]),
        (
            "reasons",
            "Decisions in the ledger, by reason.",
            [({"reason": why}, n) for why, n in ledger.reasons.items()],
        ),
        ("apps", "Distinct apps built.", [({"path": path}, row.apps) for path, row in ledger.shipped.items()]),
        (
            "builds",
            "Shipped builds in the ledger, by decided path.",
            [
                ({"path": path, "result": what}, n)
                for path, row in ledger.shipped.items()
                for what, n in row.results.items()
            ],
        ),
        (
            "failing_builds",
            "Shipped builds whose exit status was not 0.",
            [({"path": path}, row.failing) for path, row in ledger.shipped.items()],
        ),
        (
            "leaking_builds",
            "Shipped builds in which the audit found what breaks.",
            [({"path": path}, row.leaking) for path, row in ledger.shipped.items()],
        ),
        ("candidates", "Shadow builds, by result.", [({"result": what}, n) for what, n in ledger.candidates.items()]),
        ("fallbacks", "Fallbacks, by reason.", [({"why": why}, n) for why, n in ledger.fallbacks]),
        (
            "build_seconds",
            "Duration of a shipped build.",
            [
                ({"path": path, "quantile": share}, seconds)
                for path, row in ledger.shipped.items()
                for share, seconds in (("0.5", row.seconds_median), ("0.95", row.seconds_p95))
                if seconds is not None
            ],
        ),
    ]
    if status.shares is not None:
        shares = [({"path": path}, share) for path, share in status.shares.items()]
        found.insert(2, ("share", "The share of apps below which a path is taken, 0 to 1.", shares))
    if ledger.last is not None:
        found.append(("last_build_time_seconds", "When the latest build began.", [(one, ledger.last)]))
    return found


def _family(name: str, about: str, samples: Samples) -> str:
    lines = [f"# HELP {name} {about}", f"# TYPE {name} gauge"]
    for labels, value in samples:
        told = ",".join(f'{label}="{_escaped(text)}"' for label, text in labels.items())
        lines.append(f"{name}{{{told}}} {value}" if told else f"{name} {value}")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")
