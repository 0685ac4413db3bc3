"""What this kernel allows, step by step; the reason and the fix when it does not.

Not on the launch path: imported by `doctor`, and when a launch has failed.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from typing import Any

from nsbuild.errors import Refused
from nsbuild.sandbox.evidence import Evidence, collect
from nsbuild.sandbox.outcome import LaunchError
from nsbuild.sandbox.restrictions import DEGRADED, MISSED, NOTE, REFUSED, TABLE, Finding
from nsbuild.sandbox.steps import Step, try_all

NOBODY = 65534
_CODE = (
    "import sys; sys.path[:] = sys.argv[4:]; from nsbuild.sandbox import probe; "
    "probe._answer(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])"
)


@dataclass(frozen=True)
class Report:
    """Every step that was tried, what was read, and what follows from both."""

    steps: tuple[Step, ...]
    evidence: Evidence
    findings: tuple[Finding, ...]

    @property
    def severity(self) -> str:
        """The worst of the findings: `refused`, `degraded`, or `note` also when there is none."""
        found = {finding.severity for finding in self.findings}
        return next((severity for severity in (REFUSED, DEGRADED) if severity in found), NOTE)

    @property
    def exit_code(self) -> int:
        """What `nsbuild doctor` exits with."""
        return {REFUSED: 2, DEGRADED: 1}.get(self.severity, 0)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"schema": 1, "severity": self.severity, **asdict(self)}

    def as_text(self) -> str:
        """For a person: the steps, the findings, the verdict."""
        release = ".".join(map(str, self.evidence.kernel))
        lines = [f"Linux {release} on {self.evidence.machine}, builds as uid {self.evidence.uid}", ""]
        lines += [f"  {'ok    ' if step.ok else 'FAILED'} {step.name}{_why(step)}" for step in self.steps]
        for found in self.findings:
            lines += ["", f"{found.severity}: {found.restriction} [{found.code}]", f"  read: {found.evidence}"]
            lines += [f"  fix:  {found.fix}"] if found.fix else []
            lines += [f"    {line}".rstrip() for line in found.snippet.splitlines()]
        return "\n".join([*lines, "", _VERDICTS[self.severity]])


_VERDICTS = {
    REFUSED: "Refused: builds cannot run in a sandbox here.",
    DEGRADED: "Degraded: builds run in a sandbox here, and do without what is said above.",
    NOTE: "Well: builds run in a sandbox here.",
}


def _why(step: Step) -> str:
    if step.ok:
        return ""
    about = f" {step.path}" if step.path else ""
    return f": {step.call}{about}" + (f": {os.strerror(step.errno)}" if step.errno else "")


def probe(uid: int | None = None, gid: int | None = None, workspace: str = "") -> Report:
    """Try every step of a launch in a forked child of its own, read the evidence, diagnose.

    `uid` and `gid` are what a build would get when root starts it (default: SUDO_UID and SUDO_GID, else 65534);
    otherwise it is the caller's. With `workspace`, also whether programs there can be executed. A caller with other
    threads must not fork Python: then a fresh interpreter does all this. Raises nothing for what is refused.
    """
    uid, gid = _user(uid, gid)
    evidence = collect(uid, gid, workspace, experiments=False)
    if evidence.threads > 1:
        return _by_another(evidence, uid, gid, workspace)
    evidence = collect(uid, gid, workspace)
    steps = try_all(uid, gid, workspace)
    return Report(steps, evidence, tuple(diagnose(steps, evidence)))


def diagnose(steps: Iterable[Step], evidence: Evidence) -> list[Finding]:
    """What the failed steps mean, by the table in `restrictions.py`, and what else is worth a note. Pure."""
    findings: dict[str, Finding] = {}
    for step in steps:
        if step.ok:
            continue
        matches = (row.match(evidence, step) for row in TABLE)
        finding = next(match for match in matches if match is not None)
        if finding.code == "unknown":
            finding = _unknown(finding, step)
        known = findings.get(finding.code)
        if known is None or (known.severity != REFUSED and finding.severity == REFUSED):
            findings[finding.code] = finding
    return [*findings.values(), *_notes(evidence)]


def _unknown(finding: Finding, step: Step) -> Finding:
    sentence = f"The step `{step.name}` fails for a reason that nsbuild cannot tell."
    if step.name in MISSED:
        sentence += f" {MISSED[step.name]}"
    # One for each step: nothing says that they have one cause.
    return replace(finding, code=f"unknown-{step.name.replace(' ', '-')}", restriction=sentence)


def _notes(evidence: Evidence) -> list[Finding]:
    notes = []
    if evidence.groups:
        notes.append(
            Finding(
                "supplementary-groups",
                NOTE,
                "Builds keep the supplementary groups of whoever starts nsbuild, and reach what those may reach.",
                f"the groups are {', '.join(evidence.groups)}",
                "Start nsbuild from a user without them, or as root, which can drop them (--user).",
            )
        )
    if evidence.unread:
        notes.append(
            Finding(
                "unread",
                NOTE,
                "Some evidence could not be read, so a restriction may go unnamed.",
                f"closed to us: {', '.join(evidence.unread)}",
            )
        )
    return notes


def explain(error: LaunchError, uid: int | None = None, gid: int | None = None) -> Refused:
    """The restriction that made a launch fail, with its fix; else an honest account of the failed step.

    Probes, so it takes a tenth of a second. `uid` and `gid` as for `probe`. Raises nothing.
    """
    report = probe(uid, gid, error.path if error.step == "exec" else "")
    step = _as_step(error)
    own = _known(diagnose([step], report.evidence))
    probed = _known(report.findings)
    candidates = [*own, *(found for found in probed if found.severity == REFUSED)]
    if step.name == "clone":
        # Only the probe's single steps say which of its namespaces a clone was refused.
        candidates = [*(found for found in probed if found.severity == REFUSED or found.step == "NEWNET"), *own]
    if not candidates:
        about = f" {error.path}" if error.path else ""
        reason = os.strerror(error.errno) if error.errno else error.text
        return Refused(
            f"The sandbox could not be set up: at the step `{error.step}`, {error.call}{about} failed ({reason}), "
            "and nothing that nsbuild knows of explains it.",
            "`nsbuild doctor` tells what works here.",
        )
    found = candidates[0]
    fix = f"{found.fix} (`nsbuild doctor` prints the text.)" if found.snippet else found.fix
    return Refused(f"{found.restriction.removesuffix('.')} ({found.evidence}).", fix)


def _known(findings: Iterable[Finding]) -> list[Finding]:
    """Those that come from a step, and name its cause."""
    return [found for found in findings if found.step and not found.code.startswith("unknown")]


_BY_CALL = {
    "pivot_root": "pivot_root",
    "mount_setattr": "mount_setattr",
    "open_tree": "bind",
    "move_mount": "bind",
    "openat2": "bind",
    "mount": "private /",
    "umount2": "pivot_root",
}


def _as_step(error: LaunchError) -> Step:
    """The step of the probe that corresponds to where a launch failed."""
    call = error.call.split(" ")[0]
    name = error.step
    if call in ("fsopen", "fsconfig", "fsmount"):
        filesystem = error.path.split(" ")[0]
        name = filesystem if filesystem in ("proc", "overlay") else "tmpfs"
    elif name != "take the mounts":
        name = _BY_CALL.get(call, name)
    return Step(name, False, error.errno, error.call, error.path)


def _user(uid: int | None, gid: int | None) -> tuple[int, int]:
    if os.geteuid() != 0:
        return os.geteuid(), os.getegid()
    if uid is None:
        uid = int(os.environ.get("SUDO_UID") or NOBODY) or NOBODY
        gid = int(os.environ.get("SUDO_GID") or NOBODY) if gid is None else gid
    return uid, uid if gid is None else gid


def _by_another(evidence: Evidence, uid: int, gid: int, workspace: str) -> Report:
    """Let a fresh interpreter probe; what is about this process (threads, dumpable, script) stays as read here."""
    own = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    paths = [os.path.abspath(path) for path in sys.path if path]
    command = [sys.executable, "-I", "-S", "-c", _CODE, str(uid), str(gid), workspace, own, *paths]
    try:
        answer = subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        failed = Step("start", False, getattr(error, "errno", 0) or 0, "fork")
        return Report((failed,), evidence, tuple(diagnose([failed], evidence)))
    report: Report = pickle.loads(answer)
    theirs = report.evidence
    evidence = replace(evidence, filtered=theirs.filtered, apparmor_inside=theirs.apparmor_inside)
    return Report(report.steps, evidence, tuple(diagnose(report.steps, evidence)))


def _answer(uid: int, gid: int, workspace: str) -> None:
    sys.stdout.buffer.write(pickle.dumps(probe(uid, gid, workspace)))
