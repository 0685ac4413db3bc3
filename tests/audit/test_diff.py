"""Two slugs: what differs, and what that means."""

from __future__ import annotations

import json
import os
import py_compile
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from nsbuild.audit.diff import Diff, DiffOptions, diff
from nsbuild.audit.normal import Difference

PATH, TIMESTAMP, BYTECODE, ORDER, REAL = Difference
CLASSIC_DIR = "/tmp/build_0a1b2c3d"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    return tmp_path / "a", tmp_path / "b"


def kinds(result: Diff) -> dict[str, tuple[str, Difference]]:
    return {change.path: (change.what, change.kind) for change in result.counted}


def contents(pair: tuple[Path, Path], name: str, a: str | bytes, b: str | bytes) -> Difference | None:
    for directory, content in zip(pair, (a, b), strict=True):
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    found = kinds(diff(*pair))
    assert found.keys() <= {name}
    return found[name][1] if found else None


@pytest.mark.parametrize(
    ("name", "a", "b", "kind"),
    [
        ("same", "x", "x", None),
        ("shebang", f"#!{CLASSIC_DIR}/venv/bin/python\n", "#!/app/venv/bin/python\n", PATH),
        ("encoded", "file:///tmp/build_0a1b2c3d/x", "file:///app/x", PATH),
        ("two-builds", "/tmp/build_0a1b2c3d/x", "/tmp/build_ffff/x", PATH),
        ("beside", "PATH=/x/1:/srv/.workspaces/a/app", "PATH=/y/2:/srv/.workspaces/a/app", REAL),
        ("cut", "/tmp/build_0a1b2c3d/x", "/app/y", REAL),
        ("longer", "/application/x", "/tmp/build_0alication/x", REAL),
        ("date", "made 2026-01-02T03:04:05Z", "made 2027-11-12T13:14:15.5+01:00", TIMESTAMP),
        ("epoch", "t=1700000000", "t=1790000000.25", TIMESTAMP),
        ("mail", "Mon, 02 Jan 2026 03:04:05 GMT", "Tue, 13 Oct 2027 13:14:15 +0200", TIMESTAMP),
        ("ctime", "Mon Jan  2 03:04:05 2026", "Tue Oct 13 13:14:15 UTC 2027", TIMESTAMP),
        ("both", "/tmp/build_0a1b2c3d at 2026-01-02", "/app at 2027-01-02", TIMESTAMP),
        ("number", "v=1234567890", "v=1234567891", REAL),
        ("lines", "a\nb\nc\n", "c\na\nb\n", ORDER),
        ("keys.json", '{"a": 1, "b": [1, 2]}', '{"b": [2, 1], "a": 1}', ORDER),
        ("truth.json", '{"a": 1}', '{"a": true}', REAL),
        ("deep.json", "[" * 300 + '"a", "b"' + "]" * 300, "[" * 300 + '"b", "a"' + "]" * 300, ORDER),
        ("value.json", '{"a": 1}', '{"a": 2}', REAL),
        ("p.dist-info/RECORD", "bin/x,sha256=AAA-_1,23\nm.py,,\n", "m.py,,\nbin/x,sha256=BBB,17\n", ORDER),
        ("p.dist-info/RECORD", "bin/x,sha256=AAA-_1,23\n", "bin/y,sha256=AAA-_1,23\n", REAL),
        ("binary", b"\0\1/tmp/build_0a1b2c3d\0", b"\0\1/app\0", PATH),
    ],
)
def test_contents(
    pair: tuple[Path, Path], name: str, a: str | bytes, b: str | bytes, kind: Difference | None
) -> None:
    assert contents(pair, name, a, b) == kind


def compiled(directory: Path, source: str, name: str, *, mode: str = "TIMESTAMP", time: int = 1_700_000_000) -> None:
    directory.mkdir(exist_ok=True)
    (directory / "m.py").write_text(source)
    os.utime(directory / "m.py", (time, time))
    invalidation = py_compile.PycInvalidationMode[mode]
    cached = directory / f"__pycache__/m.{sys.implementation.cache_tag}.pyc"
    py_compile.compile(str(directory / "m.py"), str(cached), name, doraise=True, invalidation_mode=invalidation)


@pytest.mark.parametrize(
    ("b", "kind"),
    [
        (lambda side: compiled(side, "X = 1\n", "/app/m.py"), PATH),
        (lambda side: compiled(side, "X = 1\n", "/app/m.py", time=1_800_000_000), TIMESTAMP),
        (lambda side: compiled(side, "X = 1\n", "/app/m.py", mode="CHECKED_HASH"), TIMESTAMP),
        (lambda side: compiled(side, "X = 1\n", "/srv/other.py"), BYTECODE),
    ],
    ids=["path", "time", "hash", "compiler"],
)
def test_bytecode(pair: tuple[Path, Path], b: Callable[[Path], None], kind: Difference) -> None:
    compiled(pair[0], "X = 1\n", f"{CLASSIC_DIR}/m.py")
    b(pair[1])
    assert set(kinds(diff(*pair)).values()) == {("content", kind)}


def test_bytecode_of_another_source_is_real(pair: tuple[Path, Path]) -> None:
    compiled(pair[0], "X = 1\n", "/app/m.py")
    compiled(pair[1], "X = 2\n", "/app/m.py")
    assert set(kinds(diff(*pair)).values()) == {("content", REAL)}


def test_bytecode_differs_as_its_source_does(pair: tuple[Path, Path]) -> None:
    """A longer path in it moves columns, and changes the hash that is in its head."""
    for side, place in zip(pair, ("/app", CLASSIC_DIR), strict=True):
        compiled(side, f"X = '{place}/x'; Y = print(1)\n", "/app/m.py", mode="CHECKED_HASH")
    assert set(kinds(diff(*pair)).values()) == {("content", PATH)}
    (pair[0] / "m.py").unlink()
    assert REAL in {kind for _, kind in kinds(diff(*pair)).values()}


def zipped(path: Path, members: dict[str, str], year: int = 2020) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name, (year, 1, 1, 0, 0, 0)), content)


@pytest.mark.parametrize(
    ("a", "b", "year", "kind"),
    [
        ({"x": "1", "y": "2"}, {"x": "1", "y": "2"}, 2021, TIMESTAMP),
        ({"x": "/app/1"}, {"x": f"{CLASSIC_DIR}/1"}, 2020, PATH),
        ({"x": "/app/1"}, {"x": f"{CLASSIC_DIR}/1"}, 2021, TIMESTAMP),
        ({"x": "1", "y": "2"}, {"y": "2", "x": "1"}, 2020, ORDER),
        ({"x": "1"}, {"x": "2"}, 2020, REAL),
        ({"x": "1"}, {"y": "1"}, 2020, REAL),
    ],
)
def test_archives(pair: tuple[Path, Path], a: dict[str, str], b: dict[str, str], year: int, kind: Difference) -> None:
    zipped(pair[0] / "lib.jar", a)
    zipped(pair[1] / "lib.jar", b, year)
    assert kinds(diff(*pair)) == {"lib.jar": ("content", kind)}


def test_entries(pair: tuple[Path, Path]) -> None:
    a, b = pair
    (a / "here").write_text("")
    (b / "there").mkdir()
    (a / "kind").write_text("")
    (b / "kind").mkdir()
    for side, mode, target in ((a, 0o644, f"{CLASSIC_DIR}/x"), (b, 0o755, "/app/x")):
        (side / "tool").write_text("same")
        (side / "tool").chmod(mode)
        (side / "link").symlink_to(target)
    (a / "other-link").symlink_to("one")
    (b / "other-link").symlink_to("two")
    assert kinds(diff(a, b)) == {
        "here": ("only in A", REAL),
        "there": ("only in B", REAL),
        "kind": ("type", REAL),
        "tool": ("mode", REAL),
        "link": ("link", PATH),
        "other-link": ("link", REAL),
    }


def test_two_owners(pair: tuple[Path, Path]) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root gives files away")
    for side in pair:
        for name in ("x", "y"):
            (side / name).write_text("")
            os.chown(side / name, 1234, 1234)
    os.chown(pair[1] / "x", 4321, 1234)
    assert kinds(diff(*pair)) == {"x": ("owner", REAL)}


def test_what_is_ignored_is_told_apart(pair: tuple[Path, Path]) -> None:
    (pair[0] / ".nsbuild-slug").write_text('{"layout": "app"}')
    (pair[1] / ".nsbuild-slug").write_text('{"layout": "classic"}')
    (pair[0] / "x.log").write_text("")
    result = diff(*pair, DiffOptions(ignored=[("*.log", "logs")]))
    assert result.counted == [] and len(result.changes) == 2


def test_hostile_trees(pair: tuple[Path, Path]) -> None:
    for side in pair:
        os.mkfifo(side / "fifo")
        (side / "loop").symlink_to("loop")
        (side / os.fsdecode(b"odd\xff")).write_text("x")
        (side / "broken.zip").write_bytes(b"PK\x03\x04" + side.name.encode())
        (side / "deep.json").write_text("[" * 100_000 + side.name)
    assert kinds(diff(*pair)) == {"broken.zip": ("content", REAL), "deep.json": ("content", REAL)}


def test_a_file_that_grows_ends(pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    (pair[0] / "log").write_text("a")
    (pair[1] / "log").write_text("b")
    monkeypatch.setattr("nsbuild.audit.diff.LARGEST", 1 << 20)
    real = os.read

    def growing(fd: int, size: int) -> bytes:
        assert size <= 1 << 20
        return real(fd, size) or b"x" * size

    monkeypatch.setattr("nsbuild.audit.diff._same_bytes", lambda a, b: False)
    monkeypatch.setattr("nsbuild.audit.diff.os.read", growing)
    assert kinds(diff(*pair)) == {"log": ("content", REAL)}


def test_what_cannot_be_read_is_one_sentence(pair: tuple[Path, Path]) -> None:
    if os.geteuid() == 0:
        pytest.skip("root reads everything")
    for side in pair:
        (side / "d").mkdir()
        (side / "d/closed").write_text(side.name)
        (side / "d/closed").chmod(0)
    done = command(*pair)
    assert done.returncode == 2 and "closed cannot be read: Permission denied" in done.stderr
    assert done.stderr.count("\n") == 1


def command(*words: str | Path) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "nsbuild", "diff", *map(str, words)]
    return subprocess.run(argv, capture_output=True, text=True, timeout=60)


def test_the_command(pair: tuple[Path, Path]) -> None:
    assert command(*pair).returncode == 0
    (pair[0] / "run").write_text(CLASSIC_DIR)
    (pair[1] / "run").write_text("/app")
    done = command(*pair)
    assert done.returncode == 1
    assert done.stdout.splitlines() == [
        "path only (1)",
        "    content   run: 19 bytes | 4 bytes",
        "1 difference, 0 entries the same",
    ]
    assert json.loads(command(*pair, "--json").stdout)["totals"] == [
        {"what": "content", "kind": "path only", "count": 1}
    ]
    assert command(*pair, "--ignore", "run").returncode == 0


def test_trouble(pair: tuple[Path, Path]) -> None:
    done = command(pair[0], "nowhere")
    assert done.returncode == 2 and done.stdout == ""
    assert "nowhere cannot be read: No such file" in done.stderr and done.stderr.count("\n") == 1
