"""What vm/ decides without a VM: variants, the verdict on their answers, the archive that a kernel starts with."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from nsbuild.sandbox.restrictions import TABLE
from vm import initramfs, kernels, matrix, variants
from vm.errors import Unavailable
from vm.machine import Ended
from vm.matrix import SAID, Verdict, judge
from vm.variants import Finding, Variant

ROOT = Path(__file__).parent.parent.parent
PAGE = (ROOT / "docs/kernels.md").read_text()
SENTENCE = "The limit user.max_user_namespaces leaves no user namespace for this user."
FIX = "echo 'user.max_user_namespaces = 15000' >> /etc/sysctl.d/90-nsbuild.conf"
(PLAIN,) = (variant for variant in variants.load()["plain"] if variant.kernel == "6.12")
(REFUSED,) = (variant for variant in variants.load()["no-user-namespaces"] if variant.kernel == "6.12")
Answer = Callable[..., Path]


@pytest.fixture
def answer(tmp_path: Path) -> Answer:
    """What guest/check leaves, by default where all is well; a file that is None is not there."""

    def make(**changed: str | None) -> Path:
        files: dict[str, str | None] = {
            "doctor.json": json.dumps({"findings": [], "steps": []}),
            "doctor.status": "0",
            "build.status": "0",
            "run.status": "0",
            "run.out": SAID,
            "compile.status": "0",
            "compiled": "",
            **{name.replace("_", "."): text for name, text in changed.items()},
        }
        for name, text in files.items():
            if text is not None:
                (tmp_path / name).write_text(text)
        return tmp_path

    return make


def refusal(fix: str = FIX, severity: str = "refused", code: str = "max-user-namespaces") -> str:
    found = {"code": code, "severity": severity, "restriction": SENTENCE, "fix": fix, "snippet": ""}
    return json.dumps({"findings": [found], "steps": []})


def refused(**changed: str | None) -> dict[str, str | None]:
    return {
        "doctor_json": refusal(),
        "doctor_status": "2",
        "build_status": "125",
        "build_err": f"nsbuild: {SENTENCE.removesuffix('.')} (max_user_namespaces is 0).",
        "compile_err": "nsbuild: running directly, without a sandbox: ...",
        **changed,
    }


def verdict(variant: Variant, results: Path) -> Verdict:
    return judge(variant, results, Ended(0, 12.0, "", memory=850_000_000), "")


def test_all_as_expected(answer: Answer) -> None:
    found = verdict(PLAIN, answer(tests_status="0"))
    assert (found.wrong, found.doctor, found.outcome) == ((), "well", "builds")


def test_a_slug_that_cannot_be_run_as_expected(answer: Answer) -> None:
    variant = replace(PLAIN, doctor=(Finding("max-user-namespaces", "degraded", ""),), run="refused", tests=())
    doctor = {"doctor_json": refusal(severity="degraded"), "doctor_status": "1"}
    refuses = {"run_status": "125", "run_err": f"nsbuild: {SENTENCE.removesuffix('.')} (...)."}
    found = verdict(variant, answer(**doctor, **refuses))
    assert (found.wrong, found.outcome) == ((), "builds, run refuses (125)")
    (wrong,) = verdict(variant, answer(**doctor, run_status="0", run_err=refuses["run_err"])).wrong
    assert wrong.startswith("run exited with 0, and should have been refused")


def test_refused_as_expected(answer: Answer) -> None:
    found = verdict(REFUSED, answer(**refused()))
    assert (found.wrong, found.doctor, found.outcome) == ((), "max-user-namespaces", "refuses (125), falls back")


@pytest.mark.parametrize(
    ("variant", "changed", "words"),
    [
        (PLAIN, {"doctor_json": ""}, "doctor said nothing"),
        (PLAIN, {"doctor_status": "1"}, "doctor exited with 1, not 0"),
        (PLAIN, {"doctor_json": refusal()}, "doctor found max-user-namespaces, not nothing"),
        (PLAIN, {"build_status": "125", "build_err": "no"}, "build exited with 125: no"),
        (PLAIN, {"build_status": None}, "build exited with"),
        (PLAIN, {"run_status": "125", "run_err": "no"}, "run exited with 125: no"),
        (PLAIN, {"run_out": "something"}, "the slug said 'something'"),
        (PLAIN, {"compiled": None, "compile_status": "125"}, "came out as fails, not sandbox"),
        (PLAIN, {"compile_err": "running directly, without a sandbox"}, "came out as direct, not sandbox"),
        (PLAIN, {"tests_status": "1"}, "pytest exited with 1"),
        (REFUSED, refused(doctor_json=refusal(fix="pray")), "without 'user.max_user_namespaces = 15000'"),
        (REFUSED, refused(doctor_json=refusal(severity="degraded")), "calls max-user-namespaces degraded"),
        (REFUSED, refused(doctor_json=refusal(code="seccomp")), "doctor found seccomp, not max-user-namespaces"),
        (REFUSED, refused(build_status="0"), "should have been refused"),
        (REFUSED, refused(build_err="Operation not permitted"), "does not say"),
        (REFUSED, refused(compile_err=""), "came out as sandbox, not direct"),
    ],
)
def test_what_is_not_as_expected_is_said(
    answer: Answer, variant: Variant, changed: dict[str, str | None], words: str
) -> None:
    if "tests_status" not in changed:
        changed = {"tests_status": "0", **changed}
    assert any(words in sentence for sentence in verdict(variant, answer(**changed)).wrong)


def test_a_vm_that_ended_too_early_is_wrong(answer: Answer) -> None:
    died = Ended(None, 1.0, "Kernel panic", "QEMU ended with 0 after 1 seconds.")
    (said,) = judge(PLAIN, answer(tests_status="0"), died, "half a line").wrong
    assert all(words in said for words in ("ended before the check did", "half a line", died.how, "Kernel panic"))


def test_a_vm_that_takes_too_much_memory_is_wrong(answer: Answer) -> None:
    (said,) = judge(PLAIN, answer(tests_status="0"), Ended(0, 1.0, "", memory=1_100_000_000), "").wrong
    assert said == "the VM took 1100 MB, more than 1000"


def test_answers_that_are_cut_off(answer: Answer) -> None:
    results = answer(doctor_json='{"findings": [', tests_status="0")
    (results / "tests.xml").write_text("<testsuites><testsuite ")
    found = verdict(PLAIN, results)
    assert (found.doctor, found.tests) == ("?", "") and "doctor said nothing" in found.wrong[0]


def test_junit_and_table(answer: Answer, tmp_path: Path) -> None:
    verdicts = [
        verdict(PLAIN, answer(tests_status="0")),
        Verdict(REFUSED, ("doctor \x1b[1m found",), "seccomp", "builds", "", 3.4),
    ]
    matrix.junit(verdicts, tmp_path / "junit.xml")
    suite = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    cases = [(case.get("classname"), case.get("name"), case.find("failure") is not None) for case in suite]
    assert cases == [("vm.6.12", "plain", False), ("vm.6.12", "no-user-namespaces", True)]
    rows = matrix.table(verdicts).splitlines()
    assert rows[2] == "| plain | 6.12 | as expected | well | builds |  | 12 | 850 |"
    assert rows[3].startswith("| no-user-namespaces | 6.12 | WRONG | seccomp |")


def test_every_variant_is_of_known_kernels_and_restrictions() -> None:
    codes = {row.code for row in TABLE}
    for group in variants.load().values():
        for variant in group:
            assert variant.kernel in kernels.suites()
            assert {found.code for found in variant.doctor} <= codes
            assert set(variant.notes) <= codes | {"supplementary-groups"}


def test_a_variant_may_differ_on_a_kernel() -> None:
    text = '[[variant]]\nname = "x"\nkernels = ["5.10", "6.12"]\nuser = "root"\non."5.10" = { compile = "direct" }\n'
    old, new = variants.load(text)["x"]
    assert (old.compile, new.compile) == ("direct", "sandbox")
    assert old.conditions == new.conditions


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('sysctl = { "a.b" = 0 }', "has sysctl, which means nothing"),
        ('build = "maybe"', "build is 'maybe'"),
        ('run = "maybe"', "run is 'maybe'"),
        ('compile = "builds"', "compile is 'builds'"),
    ],
)
def test_a_mistake_in_a_variant_is_said(line: str, words: str) -> None:
    with pytest.raises(Unavailable, match=words):
        variants.load(f'[[variant]]\nname = "x"\nkernels = ["6.12"]\n{line}\n')


def test_the_page_has_what_the_matrix_printed_of_every_variant() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:4]] for line in PAGE.splitlines() if line.startswith("| ")]
    shown = [(name, kernel, verdict) for name, kernel, verdict in rows if kernel in kernels.suites()]
    every = [each for group in variants.load().values() for each in group]
    assert shown == [(each.conditions.name, each.kernel, "as expected") for each in every]


def test_the_page_names_tests_and_variants_that_there_are() -> None:
    _, _, shown = PAGE.partition("## Where each restriction is shown")
    names = re.findall(r"`((?:tests|vm)/[a-z_/0-9]+\.py)::(test_[a-z_0-9]+)`", shown)
    assert len(names) > 20
    for path, name in names:
        assert f"\ndef {name}(" in (ROOT / path).read_text(), f"{path}::{name}"
    lines = [line for line in shown.splitlines() if line.startswith("| ")]
    named = {word for line in lines for word in re.findall(r"`([a-z][a-z-]+)`", line)}
    assert named == set(variants.load())


def test_every_kernel_is_locked() -> None:
    locked = kernels.locked()
    assert set(locked) == set(kernels.suites())
    for packages in locked.values():
        assert packages
        assert all(len(package.sha256) == 64 for package in packages)


def test_the_initramfs_is_always_the_same_and_its_modules_are_in_order() -> None:
    modules = {"virtio": b"\x7fELF one", "virtio_blk": b"\x7fELF"}
    content = initramfs.archive(b"busybox", b"#!/bin/sh\n", modules)
    assert content == initramfs.archive(b"busybox", b"#!/bin/sh\n", modules)
    names = [b"bin/busybox\0", b"init\0", b"modules/00-virtio.ko\0", b"modules/01-virtio_blk.ko\0", b"TRAILER!!!\0"]
    assert sorted(names, key=content.index) == names
    # every header begins at a multiple of four, or the kernel reads nonsense
    assert all((content.index(name) - 110) % 4 == 0 for name in names)
