"""Runs variants, one VM after the other, and judges what came back."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from vm import cache
from vm.machine import Ended, boot
from vm.variants import Variant

CHECK = "/run/job/check"
LARGEST = 1_000_000_000
"""Bytes that a VM may take of the host."""
SAID = "Hello from plain, build 1, gray"
"""What tests/apps/plain says when it was built and runs."""


@dataclass(frozen=True)
class Verdict:
    """What came of a variant: `wrong` has a sentence for each answer that was not the expected one. `memory` is what
    QEMU took, in bytes.
    """

    variant: Variant
    wrong: tuple[str, ...]
    doctor: str
    outcome: str
    tests: str
    seconds: float
    memory: int = 0

    @property
    def word(self) -> str:
        """For the table."""
        return "WRONG" if self.wrong else "as expected"


def run(variant: Variant, timeout: float) -> Verdict:
    """Boot a VM for it and judge its answers. Raises Unavailable when none can be had."""
    # Not in /tmp: what a killed matrix leaves there nobody would remove.
    with cache.scratch() as results, tempfile.TemporaryFile() as output:
        # Root's job is to run a container's command: $VM_RESULTS and /run/job are in it too.
        command = ["bash", CHECK, *variant.tests]
        ended = boot(
            variant.kernel,
            command,
            variant.conditions,
            timeout=timeout,
            results=results,
            stdout=output,
            stderr=output,
        )
        output.seek(0)
        said = output.read().decode(errors="replace")[-3000:]
        return judge(variant, results, ended, said)


def judge(variant: Variant, results: Path, ended: Ended, said: str) -> Verdict:
    """The verdict on files that guest/check has left in `results`. Pure, but that it reads them."""
    wrong = list(_wrong(variant, results))
    if ended.status is None:
        wrong = [f"the VM ended before the check did, which said: {said}\n{ended.why()}"]
    elif ended.status:
        wrong.insert(0, f"the check ended with {ended.status}: {said}")
    if ended.memory > LARGEST:
        wrong.append(f"the VM took {ended.memory / 1e6:.0f} MB, more than {LARGEST / 1e6:.0f}")
    build = _read(results / "build.status")
    outcome = "builds" if build == "0" else f"refuses ({build})" if build else "?"
    if build == "0" and (ran := _read(results / "run.status")) != "0":
        outcome += f", run refuses ({ran})"
    if _compiled(results) == "direct":
        outcome += ", falls back"
    doctor = _doctor(results)
    codes = ["?"] if doctor is None else [each["code"] for each in doctor["findings"]]
    return Verdict(
        variant,
        tuple(wrong),
        ", ".join(codes) or "well",
        outcome,
        _counted(results),
        ended.seconds,
        ended.memory,
    )


def _wrong(variant: Variant, results: Path) -> Iterator[str]:
    if (answer := _doctor(results)) is None:
        yield f"doctor said nothing: {_read(results / 'doctor.err')}"
        return
    if (status := _read(results / "doctor.status")) != str(variant.doctor_status):
        yield f"doctor exited with {status}, not {variant.doctor_status}"
    found = {each["code"]: each for each in answer["findings"]}
    expected = {each.code for each in variant.doctor}
    serious = {code for code, each in found.items() if each["severity"] != "note"}
    if serious != expected:
        failed = [step for step in answer["steps"] if not step["ok"]]
        told, wanted = (", ".join(sorted(codes)) or "nothing" for codes in (serious, expected))
        yield f"doctor found {told}, not {wanted}; {failed}"
    for each in variant.doctor:
        given = found.get(each.code)
        if given and given["severity"] != each.severity:
            yield f"doctor calls {each.code} {given['severity']}, not {each.severity}"
        if given and each.fix not in given["fix"] + given["snippet"]:
            yield f"doctor's fix of {each.code} is {given['fix']!r}, without {each.fix!r}"
    for code in variant.notes:
        if found.get(code, {}).get("severity") != "note":
            yield f"doctor has no note {code}"
    yield from _wrong_build(
        variant, results, found[variant.doctor[0].code]["restriction"] if serious == expected != set() else ""
    )
    if (compiled := _compiled(results)) != variant.compile:
        said = _read(results / "compile.err")
        yield f"compile --fallback direct came out as {compiled}, not {variant.compile}: {said[-600:]}"
    if variant.tests and (status := _read(results / "tests.status")) != "0":
        yield f"pytest exited with {status or 'nothing'}: {', '.join(_failed(results))}"


def _wrong_build(variant: Variant, results: Path, sentence: str) -> Iterator[str]:
    """`sentence` is what doctor says of the restriction; what it says of the consequences is another."""
    expected = {"build": variant.build}
    if variant.build == "succeeds":
        expected["run"] = variant.run
    for name, outcome in expected.items():
        status, said = _read(results / f"{name}.status"), _read(results / f"{name}.err")
        if outcome == "succeeds":
            if status != "0":
                yield f"{name} exited with {status}: {said[-600:]}"
            elif name == "run" and (ran := _read(results / "run.out")) != SAID:
                yield f"the slug said {ran!r}: {said[-600:]}"
            continue
        if status != "125":
            yield f"{name} exited with {status}, and should have been refused: {said[-600:]}"
        if sentence.partition(". ")[0].removesuffix(".") not in said:
            yield f"the refusal of {name} does not say {sentence!r}: {said[-600:]}"


def _compiled(results: Path) -> str:
    if _read(results / "compile.status") != "0" or not (results / "compiled").exists():
        return "fails"
    return "direct" if "without a sandbox" in _read(results / "compile.err") else "sandbox"


def _doctor(results: Path) -> Any:
    """What doctor answered; None where it said nothing, or a VM that died has cut it off."""
    try:
        return json.loads(_read(results / "doctor.json"))
    except ValueError:
        return None


def _suites(results: Path) -> list[ElementTree.Element]:
    try:
        return list(ElementTree.parse(results / "tests.xml").getroot().iter("testsuite"))
    except (OSError, ElementTree.ParseError):
        return []


def _counted(results: Path) -> str:
    """`passed+skipped`, of the tests that the variant names."""
    for suite in _suites(results):
        count = {name: int(suite.get(name, 0)) for name in ("tests", "failures", "errors", "skipped")}
        bad = count["failures"] + count["errors"]
        text = f"{count['tests'] - bad - count['skipped']} passed"
        text += f", {count['skipped']} skipped" if count["skipped"] else ""
        return text + (f", {bad} failed" if bad else "")
    return ""


def _failed(results: Path) -> list[str]:
    cases = (case for suite in _suites(results) for case in suite.iter("testcase"))
    return [
        f"{case.get('classname')}::{case.get('name')}: {(problem.text or '')[-1500:]}"
        for case in cases
        for problem in (*case.iter("failure"), *case.iter("error"))
    ]


def _read(path: Path) -> str:
    return path.read_text(errors="replace").strip() if path.exists() else ""


def table(verdicts: Iterable[Verdict]) -> str:
    """For a person, and for docs/kernels.md: a row each, in Markdown."""
    lines = ["| variant | kernel | verdict | doctor | build | tests | seconds | MB |", f"|{'---|' * 8}"]
    for each in verdicts:
        cells = (
            each.variant.conditions.name,
            each.variant.kernel,
            each.word,
            each.doctor,
            each.outcome,
            each.tests,
            f"{each.seconds:.0f}",
            f"{each.memory / 1e6:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "".join(f"{line}\n" for line in lines)


def junit(verdicts: Iterable[Verdict], path: Path) -> None:
    """A JUnit file: one case a variant and kernel."""
    verdicts = list(verdicts)
    failures = sum(bool(verdict.wrong) for verdict in verdicts)
    suite = ElementTree.Element("testsuite", name="vm", tests=str(len(verdicts)), failures=str(failures))
    for verdict in verdicts:
        case = ElementTree.SubElement(
            suite,
            "testcase",
            classname=f"vm.{verdict.variant.kernel}",
            name=verdict.variant.conditions.name,
            time=f"{verdict.seconds:.1f}",
        )
        if verdict.wrong:
            # XML has no control characters
            text = "".join(
                character for character in "\n".join(verdict.wrong) if character.isprintable() or character == "\n"
            )
            ElementTree.SubElement(case, "failure", message=text.split("\n")[0]).text = text
    ElementTree.ElementTree(suite).write(path, encoding="utf-8", xml_declaration=True)
