"""A planted leak for every place that remembers a path, made by the tools that make them; and look-alikes."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import py_compile
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from support.archives import tarred, zipped

from nsbuild.audit.audit import AuditOptions, audit
from nsbuild.audit.finding import Finding, Report, Severity

BREAKS, STALE, COSMETIC = Severity


def run(*argv: str | Path, cwd: Path | None = None) -> None:
    done = subprocess.run([str(word) for word in argv], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A build directory, as a platform's."""
    directory = tmp_path_factory.mktemp("platform") / "build_4f2a9c3d"
    directory.mkdir()
    return directory


def text(path: Path, content: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    path.chmod(mode)


def found(build: Path, **options: object) -> Report:
    return audit(build, AuditOptions(paths=[str(build)], **options), on_stack=lambda path: True)  # type: ignore[arg-type]


def only(build: Path, file: str) -> list[tuple[str, Severity]]:
    """(kind, severity) of everything found in one file."""
    findings = [one for one in found(build).findings if one.file == file]
    assert all(one.place == str(build) for one in findings)
    return sorted({(one.kind, one.severity) for one in findings})


TEXTS = {
    "pyvenv.cfg": ("pyvenv", BREAKS),
    "venv/pyvenv.cfg": ("pyvenv", BREAKS),
    "lib/site-packages/easy-install.pth": ("pth", BREAKS),
    "lib/site-packages/old.egg-link": ("pth", BREAKS),
    "lib/site-packages/__editable___pkg_1_0_finder.py": ("finder", BREAKS),
    "lib/site-packages/_mesonpy_editable_loader.py": ("finder", BREAKS),
    "lib/site-packages/_skbuild_pkg_editable.py": ("finder", BREAKS),
    "lib/site-packages/_editable_impl_pkg.pth": ("pth", BREAKS),
    "lib/site-packages/pkg-1.0.dist-info/direct_url.json": ("direct-url", STALE),
    "lib/site-packages/pkg-1.0.dist-info/RECORD": ("record", STALE),
    "lib/site-packages/pkg.egg-info/SOURCES.txt": ("record", STALE),
    "lib/python3.11/_sysconfigdata__linux_.py": ("sysconfig", STALE),
    "lib/pkgconfig/ssl.pc": ("build-config", STALE),
    "lib/libffi.la": ("build-config", STALE),
    "lib/cmake/Foo.cmake": ("build-config", STALE),
    ".profile.d/python.sh": ("boot", BREAKS),
    ".profile": ("boot", BREAKS),
    "export": ("boot", BREAKS),
    "Procfile": ("boot", BREAKS),
    "bin/activate": ("script", BREAKS),
    "tool.sh": ("script", BREAKS),
    "config.json": ("text", STALE),
}


@pytest.mark.parametrize("path", TEXTS)
def test_texts(build: Path, path: str) -> None:
    text(build / path, f"first\nsomething = {build}/lib\n")
    assert only(build, path) == [TEXTS[path]]


def test_a_percent_encoded_url(build: Path) -> None:
    text(build / "url.txt", "file%3A%2F%2F" + str(build).replace("/", "%2F"))
    assert only(build, "url.txt") == [("text", STALE)]


def test_a_symlink(build: Path) -> None:
    (build / "current").symlink_to(f"{build}/releases/1")
    assert only(build, "current") == [("symlink", BREAKS)]


def test_the_shebang_and_the_body_of_a_script(build: Path) -> None:
    text(build / "run", f"#!{build}/venv/bin/python\nprint('{build}')\n", 0o755)
    assert only(build, "run") == [("script", BREAKS), ("shebang", BREAKS)]


def test_bytecode(build: Path) -> None:
    text(build / "m.py", "def f():\n    return 1\n")
    py_compile.compile(str(build / "m.py"), cfile=str(build / "plain.pyc"), doraise=True)
    text(build / "c.py", f"HERE = {str(build)!r}\n")
    py_compile.compile(str(build / "c.py"), cfile=str(build / "constant.pyc"), dfile="/app/c.py", doraise=True)
    assert only(build, "plain.pyc") == [("bytecode-filename", COSMETIC)]
    assert only(build, "constant.pyc") == [("bytecode-constant", STALE)]


@pytest.mark.parametrize(
    ("option", "kind", "severity"),
    [
        ("-Wl,--enable-new-dtags,-rpath,{}/lib", "rpath", BREAKS),
        ("-Wl,--disable-new-dtags,-rpath,{}/lib", "rpath", BREAKS),
        ("-Wl,--dynamic-linker={}/ld.so", "elf-interpreter", BREAKS),
        ('-DHERE="{}"', "binary", COSMETIC),
    ],
    ids=["runpath", "rpath", "interpreter", "constant"],
)
def test_programs(build: Path, tmp_path: Path, option: str, kind: str, severity: Severity) -> None:
    (tmp_path / "a.c").write_text(
        '#ifndef HERE\n#define HERE ""\n#endif\nconst char *here = HERE; int main(void) { return 0; }\n'
    )
    run("gcc", "-o", build / kind, option.format(build), "a.c", cwd=tmp_path)
    assert only(build, kind) == [(kind, severity)]


def test_debug_information(build: Path) -> None:
    text(build / "src" / "d.c", "int main(void) { return 0; }\n")
    run("gcc", "-g", "-o", build / "debug", build / "src" / "d.c")
    assert only(build, "debug") == [("binary", COSMETIC)]


def test_what_pip_and_venv_leave(build: Path) -> None:
    """venv, console scripts, an editable install with a finder, one from a local directory."""
    for name, layout in (("flat", "packages = ['flat', 'flat.sub']"), ("plain", "py-modules = ['plain']")):
        package = build / "packages" / name
        text(
            package / "pyproject.toml",
            "[build-system]\nrequires = ['setuptools']\nbuild-backend = 'setuptools.build_meta'\n"
            f"[project]\nname = '{name}'\nversion = '1'\n[project.scripts]\n{name} = '{name}:main'\n"
            f"[tool.setuptools]\n{layout}\n",
        )
    text(build / "packages/flat/flat/__init__.py", "def main(): pass\n")
    text(build / "packages/flat/flat/sub/__init__.py", "")
    text(build / "packages/plain/plain.py", f"HERE = '{build}'\ndef main(): pass\n")
    run(sys.executable, "-m", "venv", build / "env")
    pip: list[str | Path] = [
        build / "env/bin/python",
        "-m",
        "pip",
        "install",
        "--no-index",
        "--find-links",
        Path(sys.prefix) / "wheelhouse",
    ]
    run(*pip, "setuptools", "wheel")
    run(*pip, "--no-build-isolation", "--config-settings", "editable_mode=strict", "-e", build / "packages/flat")
    run(*pip, "--no-build-isolation", build / "packages/plain")
    build_wheel: list[str | Path] = [*pip[:3], "wheel", *pip[4:], "--no-build-isolation", "-w", build / "wheels"]
    run(*build_wheel, build / "packages/plain")
    setup = ("-c", "import setuptools; setuptools.setup()", "bdist_egg", "--dist-dir", build / "eggs")
    run(build / "env/bin/python", *setup, cwd=build / "packages/plain")
    report = found(build)
    packed = {(Path(one.file).suffix, one.member, one.kind) for one in report.findings if one.member}
    assert {(".whl", "plain.py", "text"), (".egg", "plain.py", "text")} <= packed
    by_kind = {
        kind: [one.file for one in report.findings if one.kind == kind and one.file.startswith("env/")]
        for kind in ("shebang", "pyvenv", "direct-url", "pth", "finder", "symlink")
    }
    assert {"env/bin/flat", "env/bin/plain"} <= set(by_kind["shebang"])
    assert by_kind["pyvenv"] == ["env/pyvenv.cfg"]
    assert len(by_kind["direct-url"]) == 2
    assert by_kind["pth"] or by_kind["finder"], "an editable install remembers where it is"
    assert any(one.kind == "bytecode-filename" for one in report.findings if one.file.startswith("env/"))


PACKED: dict[str, Callable[[dict[str, bytes]], bytes]] = {
    "a.zip": zipped,
    "a.whl": zipped,
    "a.jar": zipped,
    "a.egg": zipped,
    "a.tar": tarred,
    "a.tar.gz": lambda members: gzip.compress(tarred(members)),
    "a.tgz": lambda members: gzip.compress(tarred(members)),
    "a.tar.bz2": lambda members: bz2.compress(tarred(members)),
    "a.tar.xz": lambda members: lzma.compress(tarred(members)),
    "a.tar.zst": lambda members: zstandard.compress(tarred(members)),
}


@pytest.mark.parametrize("name", PACKED)
def test_members_of_archives(build: Path, name: str) -> None:
    (build / name).write_bytes(PACKED[name]({"x/pkg.pth": f"{build}\n".encode(), "clean.txt": b"nothing here"}))
    findings = [one for one in found(build).findings if one.file == name]
    assert [(one.kind, one.severity, one.member.rpartition("!")[2], one.offset) for one in findings] == [
        ("pth", BREAKS, "x/pkg.pth", 0)
    ]


TOOLS = {
    "a.zip": ["zip", "-qr", "a.zip", "x"],
    "a.jar": ["jar", "-cf", "a.jar", "x"],
    "a.tar": ["tar", "-cf", "a.tar", "x"],
    "a.tar.gz": ["tar", "-czf", "a.tar.gz", "x"],
    "a.tar.xz": ["tar", "-cJf", "a.tar.xz", "x"],
    "a.tar.zst": ["tar", "--zstd", "-cf", "a.tar.zst", "x"],
    "long.tar.zst": ["tar", "-I", "zstd --long=27 -19", "-cf", "long.tar.zst", "x"],
}


@pytest.mark.parametrize("name", TOOLS)
def test_what_the_tools_pack(build: Path, tmp_path: Path, name: str) -> None:
    if shutil.which(TOOLS[name][0]) is None:
        assert TOOLS[name][0] == "jar", f"scripts/setup installs {TOOLS[name][0]}"
        pytest.skip("there is no jar: install a JDK")
    text(tmp_path / "x/lib/pkg.pth", f"{build}\n")
    text(tmp_path / "x/with space and \u00e9/run.sh", f"echo {build}\n", 0o755)
    run(*TOOLS[name], cwd=tmp_path)
    shutil.move(tmp_path / name, build / name)
    report = found(build)
    findings = {(one.member.rpartition("!")[2], one.kind) for one in report.findings if one.file == name}
    assert findings == {("x/lib/pkg.pth", "pth"), ("x/with space and \u00e9/run.sh", "script")}
    assert [problem for problem in report.problems if problem.file.startswith(name)] == []


def test_a_zipapp(build: Path, tmp_path: Path) -> None:
    text(tmp_path / "tool/__main__.py", f"HERE = '{build}'\n")
    pack = (sys.executable, "-m", "zipapp", "--compress", tmp_path / "tool")
    run(*pack, "--python", f"{build}/bin/python", "--output", build / "tool.pyz")
    report = found(build)
    findings = {(one.member, one.kind, one.severity) for one in report.findings if one.file == "tool.pyz"}
    assert findings == {("", "shebang", BREAKS), ("__main__.py", "text", STALE)}
    assert [problem for problem in report.problems if problem.file == "tool.pyz"] == []


def test_an_executable_jar_after_a_long_script(build: Path) -> None:
    script = b"#!/bin/sh\n" + b"# what Spring Boot has here\n" * 370 + b"exit 0\n"
    (build / "app.jar").write_bytes(script + zipped({"BOOT-INF/classes/a.properties": f"dir={build}\n".encode()}))
    findings = [one for one in found(build).findings if one.file == "app.jar"]
    assert [(one.member, one.kind) for one in findings] == [("BOOT-INF/classes/a.properties", "text")]


def test_a_compressed_file(build: Path) -> None:
    (build / "notes.txt.gz").write_bytes(gzip.compress(f"made in {build}\n".encode()))
    assert only(build, "notes.txt.gz") == [("text", STALE)]


def test_archives_in_archives_are_opened_to_a_depth_that_is_said(build: Path) -> None:
    inner = zipped({"pkg.pth": str(build).encode()})
    for depth in range(2, 6):
        inner = zipped({f"{depth}.zip": inner})
        (build / f"depth-{depth}.zip").write_bytes(inner)
    report = found(build)
    deep = {one.file: one.member for one in report.findings if one.file.startswith("depth-")}
    assert deep == {
        "depth-2.zip": "2.zip!pkg.pth",
        "depth-3.zip": "3.zip!2.zip!pkg.pth",
        "depth-4.zip": "4.zip!3.zip!2.zip!pkg.pth",
    }
    (unread,) = [problem for problem in report.problems if problem.file.startswith("depth-5")]
    assert "4 deep" in unread.reason


LOOK_ALIKES = {
    "other-build.txt": "/tmp/build_4f2a9c3e and /tmp/build_",
    "longer-name.txt": "{}extra",
    "split.txt": "/tmp/build_\n4f2a9c3d",
    "upper.txt": "/TMP/BUILD_4F2A9C3D",
    "bin/clean": "#!/bin/sh\necho /app\n",
    "lib/clean.pth": "/app/src\n",
}


@pytest.mark.parametrize("path", LOOK_ALIKES)
def test_look_alikes(build: Path, path: str) -> None:
    text(build / path, LOOK_ALIKES[path].format(build), 0o755)
    assert only(build, path) == []


class TestInterpreters:
    """Whether a script's interpreter will be there."""

    @pytest.fixture
    def slug(self, tmp_path: Path) -> Path:
        directory = tmp_path / "slug"
        text(directory / "venv/bin/python3.11", "", 0o755)
        (directory / "venv/bin/python").symlink_to("python3.11")
        (directory / "abs").symlink_to("/app/venv")
        (directory / "out").symlink_to("/usr/bin")
        return directory

    def kinds(self, slug: Path, line: str, mode: int = 0o755) -> list[str]:
        text(slug / "script", f"{line}\n", mode)
        on_stack = {"/bin/sh", "/usr/bin/env"}.__contains__
        findings = audit(slug, AuditOptions(paths=["/tmp/build_x"]), on_stack=on_stack).findings
        assert {one.file for one in findings} <= {"script"}
        return [one.kind for one in findings]

    def test_they_are(self, slug: Path) -> None:
        for path in (
            "/bin/sh",
            "/usr/bin/env python",
            "/app/venv/bin/python",
            "/app/abs/bin/python3.11",
            "/app/out/x",
        ):
            assert self.kinds(slug, f"#!{path}") == [], path

    def test_they_are_not(self, slug: Path) -> None:
        assert self.kinds(slug, "#!/app/venv/bin/ruby") == ["interpreter-missing"]
        assert self.kinds(slug, "#!python") == ["interpreter-missing"]
        assert self.kinds(slug, "#! /usr/local/bin/perl -w") == ["interpreter-foreign"]

    def test_nobody_starts_it(self, slug: Path) -> None:
        assert self.kinds(slug, "#!/app/venv/bin/ruby", 0o644) == []

    def test_links_that_turn_in_a_circle(self, slug: Path) -> None:
        (slug / "a").symlink_to("b")
        (slug / "b").symlink_to("/app/a")
        assert self.kinds(slug, "#!/app/a/python") == ["interpreter-missing"]

    def test_a_line_that_the_kernel_cuts(self, slug: Path) -> None:
        long = "/app/venv/bin/" + "x" * 120
        text(slug / long.removeprefix("/app/"), "", 0o755)
        assert self.kinds(slug, f"#!{long}") == ["shebang-too-long"]


def test_who_wrote_it(build: Path) -> None:
    from nsbuild.audit import Auditor, Matcher, audit_directory, needles_for

    text(build / "by/somebody", str(build))
    auditor = Auditor("x", Matcher(needles_for([str(build)])))
    audit_directory(auditor, str(build), lambda path, changed: "heroku/python" if path.startswith("by/") else "")
    written: list[Finding] = [one for one in auditor.finish().findings if one.file == "by/somebody"]
    assert [one.writer for one in written] == ["heroku/python"]


def test_hard_links_are_searched_once(tmp_path: Path) -> None:
    text(tmp_path / "a", "/tmp/build_x/1")
    os.link(tmp_path / "a", tmp_path / "b")
    report = audit(tmp_path, AuditOptions(paths=["/tmp/build_x"]))
    assert [one.file for one in report.findings] == ["a"]


def test_hard_links_are_told_under_the_worst_name(tmp_path: Path) -> None:
    for name in ("a.txt", "lib/b.pth", "lib/c.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
    text(tmp_path / "a.txt", "/tmp/build_x/1")
    for name in ("lib/b.pth", "lib/c.txt"):
        os.link(tmp_path / "a.txt", tmp_path / name)
    report = audit(tmp_path, AuditOptions(paths=["/tmp/build_x"]))
    assert [(one.file, one.kind, one.severity) for one in report.findings] == [("lib/b.pth", "pth", BREAKS)]
