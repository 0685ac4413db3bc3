"""What of a directory, a git work tree or an archive becomes the app. Real git makes the repositories."""

from __future__ import annotations

import os
import resource
import stat
import subprocess
import tempfile
from pathlib import Path

import pytest

from nsbuild.build.source import Source, Staged, open_source, stage
from nsbuild.errors import Refused, UsageError

ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_AUTHOR_NAME": "a",
    "GIT_AUTHOR_EMAIL": "a@b",
    "GIT_COMMITTER_NAME": "a",
    "GIT_COMMITTER_EMAIL": "a@b",
    "GIT_AUTHOR_DATE": "1000000000 +0000",
    "GIT_COMMITTER_DATE": "1000000000 +0000",
}


def git(where: Path, *arguments: str | Path) -> str:
    done = subprocess.run(
        ["git", "-c", "init.defaultBranch=main", "-c", "protocol.file.allow=always", *arguments],
        cwd=where,
        env=ENVIRONMENT,
        capture_output=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    return os.fsdecode(done.stdout).strip()


def files(root: Path, **contents: str | bytes) -> Path:
    for name, content in contents.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def repository(root: Path, **contents: str | bytes) -> Path:
    """A repository whose one commit has these files."""
    root.mkdir(parents=True, exist_ok=True)
    git(root, "init", "-q")
    files(root, **contents)
    git(root, "add", "-A", "-f")
    git(root, "commit", "-q", "--allow-empty", "-m", "one")
    return root


def staged(reference: Path, out: Path, *, dirty: bool = False) -> tuple[dict[str, bytes], Staged, Source]:
    """Every file of the app with its content (a link's is `-> target`), and what was said."""
    source = open_source(reference, dirty=dirty)
    found = stage(source, str(out), None, lambda path, directory: False)
    content = {}
    for path in out.rglob("*"):
        if path.is_symlink():
            content[str(path.relative_to(out))] = f"-> {os.readlink(path)}".encode()
        elif path.is_file():
            content[str(path.relative_to(out))] = path.read_bytes()
    assert len(content) == found.files + found.symlinks
    assert not list(out.parent.glob(f"{out.name}.*"))
    return content, found, source


def snapshot(root: Path) -> dict[str, tuple[int, int, bytes]]:
    return {
        str(path): (path.lstat().st_mtime_ns, path.lstat().st_ino, path.read_bytes() if path.is_file() else b"")
        for path in [root, *root.rglob("*")]
    }


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


# -- a directory


def test_a_directory_is_taken_as_it_is(tmp_path: Path, out: Path) -> None:
    app = files(tmp_path / "app", Procfile="x", hidden=b"", lib__a="1")
    (app / "one").symlink_to("two")
    (app / "two").symlink_to("one")
    (app / os.fsdecode(b"\xff")).write_text("bytes")
    content, found, source = staged(app, out)
    assert content == {
        "Procfile": b"x",
        "hidden": b"",
        "lib/a": b"1",
        "one": b"-> two",
        "two": b"-> one",
        "\udcff": b"bytes",
    }
    assert (source.kind, source.version, source.name) == ("directory", "", "app")
    assert (found.notes, found.warnings) == ((), ())


def test_slugignore_is_applied_before_anything_is_built(tmp_path: Path, out: Path) -> None:
    app = files(tmp_path / "app", Procfile="x", spec__a="1", lib__spec__b="2", lib__c="3", x__y="4")
    files(app, **{".slugignore": "# tests\r\nspec\r\n/x/*\r\n!lib\r\n"})
    content, found, _ = staged(app, out)
    assert set(content) == {"Procfile", "lib/c", ".slugignore"}
    assert sorted(found.ignored) == ["lib/spec", "spec", "x/y"]
    assert len(found.warnings) == 1 and "line 4" in found.warnings[0]


@pytest.mark.parametrize("what", ["link", "directory"])
def test_a_slugignore_that_is_no_file_is_an_error(tmp_path: Path, out: Path, what: str) -> None:
    app = files(tmp_path / "app", Procfile="x")
    if what == "link":
        (app / ".slugignore").symlink_to("/etc/passwd")
    else:
        (app / ".slugignore").mkdir()
    with pytest.raises(UsageError, match=r"\.slugignore cannot be read"):
        staged(app, out)


def test_a_hundred_thousand_files() -> None:
    """In memory that does not grow with their number by more than their names take."""
    memory = "/dev/shm"  # a disk takes minutes over as many files
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None) as ground:
        app, out = Path(ground, "app"), Path(ground, "out")
        for directory in range(100):
            (app / str(directory)).mkdir(parents=True)
            for number in range(1000):
                os.mknod(app / str(directory) / str(number))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        found = stage(open_source(app), str(out), None, lambda path, directory: False)
        assert found.files == 100_000
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # KiB
        assert sum(len(names) for _, _, names in os.walk(out)) == 100_000


# -- a git work tree


def test_a_work_tree_is_its_head(tmp_path: Path, out: Path) -> None:
    app = repository(tmp_path / "app", Procfile="committed", lib__a="1", gone="x", **{".gitignore": "*.log\n"})
    files(app, Procfile="modified", untracked="x", noise__log="x", **{"x.log": "x"})
    (app / "gone").unlink()
    before = snapshot(app)
    content, found, source = staged(app, out)
    assert content == {"Procfile": b"committed", "lib/a": b"1", "gone": b"x", ".gitignore": b"*.log\n"}
    assert source.version == git(app, "rev-parse", "HEAD")
    assert (source.kind, source.name) == ("git", "app")
    assert len(found.warnings) == 1 and found.warnings[0].startswith("4 files differ from HEAD")
    assert "--dirty" in found.warnings[0]
    assert snapshot(app) == before, "the repository was written to"


def test_a_clean_work_tree_gives_no_warning(tmp_path: Path, out: Path) -> None:
    app = repository(tmp_path / "app", Procfile="x")
    (app / "Procfile").touch()  # git's index is out of date, the file is not
    before = snapshot(app)
    assert staged(app, out)[1].warnings == ()
    assert snapshot(app) == before


def test_dirty_is_the_work_tree_without_what_git_ignores(tmp_path: Path, out: Path) -> None:
    app = repository(
        tmp_path / "app", Procfile="committed", gone="x", tracked__log="x", **{".gitignore": "*log\nd/\n"}
    )
    files(app, Procfile="modified", untracked="u", lib__new="n", d__x="ignored", other_log="ignored")
    files(app, **{".git/info/exclude": "excluded\n", "excluded": "x"})
    repository(app / "nested", inner="i")
    (app / "gone").unlink()
    content, found, source = staged(app, out, dirty=True)
    assert content == {
        "Procfile": b"modified",
        "untracked": b"u",
        "lib/new": b"n",
        "tracked/log": b"x",
        ".gitignore": b"*log\nd/\n",
        "nested/inner": b"i",
    }
    assert source.version == git(app, "rev-parse", "HEAD") and found.warnings == ()


def test_modes_links_times_and_names_are_those_of_the_commit(tmp_path: Path, out: Path) -> None:
    app = repository(tmp_path / "app", run="x", plain="x", **{os.fsdecode(b"\xff\n"): "y"})
    (app / "run").chmod(0o755)
    (app / "plain").chmod(0o600)
    (app / "link").symlink_to("../outside")
    (app / "circle").symlink_to("circle")
    git(app, "add", "-A")
    git(app, "commit", "-q", "-m", "two")
    content, _, _ = staged(app, out)
    assert content["link"] == b"-> ../outside" and content["circle"] == b"-> circle"
    assert content["\udcff\n"] == b"y"
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (out / "run", out / "plain")}
    assert modes == {"run": 0o755, "plain": 0o644}
    assert {path.lstat().st_mtime for path in out.iterdir()} == {1_000_000_000}


def test_contents_are_those_of_the_objects(tmp_path: Path, out: Path) -> None:
    """A push applies no attribute: not export-ignore, not line endings, not keywords."""
    attributes = "hidden export-ignore\n*.txt text eol=crlf\nsubst export-subst\nident ident\n"
    attributes += "utf working-tree-encoding=UTF-16\n"
    contents: dict[str, str | bytes] = {
        "hidden": "h",
        "a.txt": "1\n2\n",
        "subst": "$Format:%H$",
        "ident": "$Id$",
        "utf": "x".encode("utf-16"),
    }
    app = repository(tmp_path / "app", **{".gitattributes": attributes, **contents})
    content, found, _ = staged(app, out)
    expected = {**contents, "utf": "x", ".gitattributes": attributes}
    assert content == {name: text.encode() for name, text in expected.items() if isinstance(text, str)}
    assert found.warnings == ()


def test_slugignore_is_that_of_head(tmp_path: Path, out: Path) -> None:
    app = repository(tmp_path / "app", Procfile="x", spec__a="1", **{".slugignore": "spec\n"})
    (app / ".slugignore").write_text("Procfile\n")
    content, found, _ = staged(app, out)
    assert set(content) == {"Procfile", ".slugignore"} and found.ignored == ("spec",)


def test_a_directory_below_the_top_is_that_part_of_head(tmp_path: Path, out: Path) -> None:
    top = repository(tmp_path / "top", apps__one__Procfile="1", apps__one__lib__x="x", apps__two__Procfile="2")
    files(top, apps__one__new="n", apps__two__new="n")
    content, found, source = staged(top / "apps/one", out)
    assert content == {"Procfile": b"1", "lib/x": b"x"}
    assert source.name == "one" and "apps/one" in found.notes[0]
    assert found.warnings[0].startswith("1 file differs from HEAD, new for one")
    content, _, _ = staged(top / "apps/one", tmp_path / "dirty", dirty=True)
    assert set(content) == {"Procfile", "lib/x", "new"}


@pytest.mark.parametrize("ignored", [False, True])
def test_a_directory_that_head_does_not_have_is_no_part_of_it(tmp_path: Path, out: Path, ignored: bool) -> None:
    """A home that is a repository of dotfiles, a build directory."""
    top = repository(tmp_path / "top", **{".gitignore": "*\n" if ignored else ""})
    files(top / "app", Procfile="x")
    content, _, source = staged(top / "app", out)
    assert content == {"Procfile": b"x"} and source.kind == "directory"


def test_a_repository_of_somebody_else_above_the_source_is_passed_over(tmp_path: Path, out: Path) -> None:
    """Anybody can make /tmp/.git, with a commit that has your app's directory and another app in it."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a repository to somebody else")
    top = repository(tmp_path / "top", app__Procfile="theirs")
    (top / "app/Procfile").write_text("mine")
    subprocess.run(["chown", "-R", "12345", top / ".git"], check=True)
    content, _, source = staged(top / "app", out)
    assert content == {"Procfile": b"mine"} and source.kind == "directory"


def test_a_worktree_and_a_detached_head(tmp_path: Path, out: Path) -> None:
    main = repository(tmp_path / "main", Procfile="1")
    git(main, "worktree", "add", "-q", "--detach", tmp_path / "other")
    files(tmp_path / "other", Procfile="2")
    git(tmp_path / "other", "commit", "-q", "-a", "-m", "two")
    content, found, _ = staged(tmp_path / "other", out)
    assert content == {"Procfile": b"2"} and found.warnings == ()
    assert staged(main, tmp_path / "out2")[0] == {"Procfile": b"1"}


def test_packed_shallow_split_and_sha256_repositories(tmp_path: Path) -> None:
    app = repository(tmp_path / "app", Procfile="1")
    git(app, "gc", "-q")
    git(app, "update-index", "--split-index")
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{app}", "shallow")
    (tmp_path / "new").mkdir()
    git(tmp_path / "new", "init", "-q", "--object-format=sha256")
    files(tmp_path / "new", Procfile="1")
    git(tmp_path / "new", "add", "-A")
    git(tmp_path / "new", "commit", "-q", "-m", "one")
    git(tmp_path, "clone", "-q", "--shared", app, "shared")
    for name in ("app", "shallow", "new", "shared"):
        content, found, source = staged(tmp_path / name, tmp_path / f"out-{name}")
        assert content == {"Procfile": b"1"} and found.warnings == ()
    assert len(source.version) == 40 and len(open_source(tmp_path / "new").version) == 64


def test_a_repository_that_says_modes_do_not_count(tmp_path: Path, out: Path) -> None:
    app = repository(tmp_path / "app", Procfile="1")
    git(app, "config", "core.fileMode", "false")
    (app / "Procfile").chmod(0o755)
    assert staged(app, out)[1].warnings == ()


def test_before_the_first_commit(tmp_path: Path, out: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    git(app, "init", "-q")
    files(app, Procfile="x")
    with pytest.raises(UsageError, match="without a commit"):
        open_source(app)
    content, _, source = staged(app, out, dirty=True)
    assert content == {"Procfile": b"x"} and source.version == ""


def test_a_bare_repository(tmp_path: Path) -> None:
    repository(tmp_path / "app", Procfile="x")
    git(tmp_path, "clone", "-q", "--bare", "app", "bare")
    with pytest.raises(UsageError, match="bare git repository"):
        open_source(tmp_path / "bare")


def test_a_gitdir_that_is_gone(tmp_path: Path) -> None:
    app = files(tmp_path / "app", Procfile="x", **{".git": "gitdir: /nonexistent/x\n"})
    with pytest.raises(UsageError, match="/nonexistent/x, which is not there"):
        open_source(app)


def test_damage_is_one_sentence(tmp_path: Path, out: Path) -> None:
    app = repository(tmp_path / "app", Procfile="x" * 1000)
    blob = git(app, "rev-parse", "HEAD:Procfile")
    path = app / ".git/objects" / blob[:2] / blob[2:]
    path.unlink()
    with pytest.raises(Refused, match="Procfile is in the commit"):
        staged(app, out)
    path.write_bytes(b"garbage")
    with pytest.raises(Refused):
        staged(app, tmp_path / "out2")
    (app / ".git/config").write_text("[core\n")
    with pytest.raises(Refused, match="git cannot read"):
        open_source(app)


def test_nothing_that_the_repository_names_is_run(tmp_path: Path, out: Path) -> None:
    """Every setting by which a repository could have git start a program, and the hooks."""
    app = repository(tmp_path / "app", a="1", b="2", **{".gitattributes": "* filter=evil diff=evil merge=evil\n"})
    other = repository(tmp_path / "lib", x="1")
    git(app, "submodule", "--quiet", "add", other, "lib")
    git(app, "commit", "-q", "-m", "two")
    marker = tmp_path / "ran"
    evil = tmp_path / "evil"
    evil.write_text(f"#!/bin/sh\necho $0 $* >> {marker}\ncat\n")
    evil.chmod(0o755)
    for name in ("core.fsmonitor", "core.sshCommand", "core.editor", "core.pager", "core.askPass", "diff.external"):
        git(app, "config", name, str(evil))
    for name in ("filter.evil.clean", "filter.evil.smudge", "filter.evil.process", "diff.evil.textconv"):
        git(app, "config", name, str(evil))
    for name in ("core.alternateRefsCommand", "credential.helper", "gpg.program", "diff.evil.command"):
        git(app, "config", name, str(evil))
    git(app, "config", "filter.evil.required", "true")
    git(app, "config", "core.hooksPath", str(tmp_path / "hooks"))
    git(app / "lib", "config", "core.fsmonitor", str(evil))
    for hook in ("post-index-change", "fsmonitor-watchman", "post-checkout", "pre-auto-gc"):
        files(tmp_path / "hooks", **{hook: evil.read_text()})
        (tmp_path / "hooks" / hook).chmod(0o755)
    for path in (app / "a", app / "lib/x"):
        os.utime(path, (1, 1))  # git must look into it
    files(app, b="changed")
    git_dir = app / ".git"
    subprocess.run(["git", "-C", app, "status"], env=ENVIRONMENT, capture_output=True, check=False)
    assert marker.exists(), "git itself is expected to run something here"
    marker.unlink()
    content, found, _ = staged(app, out)
    assert content["a"] == b"1" and content["lib/x"] == b"1" and found.warnings[0].startswith("1 file differs")
    assert staged(app, tmp_path / "out2", dirty=True)[0]["b"] == b"changed"
    assert not marker.exists(), marker.read_text()
    assert git_dir.is_dir()


def test_a_partial_clone_fetches_nothing(tmp_path: Path, out: Path) -> None:
    app = repository(tmp_path / "app", Procfile="x" * 1000)
    git(app, "config", "uploadpack.allowFilter", "true")
    git(tmp_path, "clone", "-q", "--filter=blob:none", "--no-checkout", f"file://{app}", "partial")
    marker = tmp_path / "ran"
    git(tmp_path / "partial", "config", "remote.origin.url", f"ext::sh -c 'touch {marker}'")
    git(tmp_path / "partial", "config", "protocol.ext.allow", "always")
    with pytest.raises(Refused, match=r"Procfile is in the commit .* partial clone"):
        staged(tmp_path / "partial", out)
    assert not marker.exists()


def test_a_commit_whose_names_lead_out(tmp_path: Path, out: Path) -> None:
    app = repository(tmp_path / "app", Procfile="x")
    blob = git(app, "rev-parse", "HEAD:Procfile")
    for number, name in enumerate(("..", ".git", "x/../../evil")):
        entry = b"100644 " + name.encode() + b"\0" + bytes.fromhex(blob)
        made = subprocess.run(
            ["git", "hash-object", "-t", "tree", "-w", "--literally", "--stdin"],
            input=entry,
            cwd=app,
            env=ENVIRONMENT,
            capture_output=True,
            check=True,
        )
        commit = git(app, "commit-tree", "-m", "evil", made.stdout.decode().strip())
        git(app, "update-ref", "HEAD", commit)
        where = tmp_path / f"{number}/out"
        where.parent.mkdir()
        if name == ".git":
            assert staged(app, where)[0] == {}
            continue
        with pytest.raises(Refused, match=r"leads out of the tree|cannot read"):
            staged(app, where)
        assert not (tmp_path / "evil").exists() and not (tmp_path / f"{number}/evil").exists()


# -- submodules


@pytest.fixture
def with_submodules(tmp_path: Path) -> Path:
    """`app` with `vendor/lib`, which has `deep`."""
    repository(tmp_path / "deep", d="deep")
    lib = repository(tmp_path / "lib", l="recorded")
    git(lib, "submodule", "--quiet", "add", tmp_path / "deep", "deep")
    git(lib, "commit", "-q", "-m", "deep")
    app = repository(tmp_path / "app", Procfile="x")
    git(app, "submodule", "--quiet", "add", "--name", "the lib", lib, "vendor/lib")
    git(app, "submodule", "--quiet", "update", "--init", "--recursive")
    git(app, "commit", "-q", "-m", "lib")
    return app


RECORDED = {"Procfile": b"x", "vendor/lib/l": b"recorded", "vendor/lib/deep/d": b"deep"}


def without_gitmodules(content: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in content.items() if not name.endswith(".gitmodules")}


def test_submodules_are_at_the_commit_that_head_records(with_submodules: Path, out: Path) -> None:
    lib = with_submodules / "vendor/lib"
    files(lib, l="newer")
    git(lib, "commit", "-q", "-a", "-m", "newer")
    files(lib, untracked="u")
    content, found, _ = staged(with_submodules, out)
    assert without_gitmodules(content) == RECORDED
    assert found.warnings[0].startswith("1 file differs from HEAD, vendor/lib for one")
    content, _, _ = staged(with_submodules, out.with_name("dirty"), dirty=True)
    assert without_gitmodules(content) == {**RECORDED, "vendor/lib/l": b"newer", "vendor/lib/untracked": b"u"}


def test_a_submodule_that_is_not_checked_out_is_in_the_repository(with_submodules: Path, out: Path) -> None:
    git(with_submodules, "submodule", "--quiet", "deinit", "-f", "--all")
    assert without_gitmodules(staged(with_submodules, out)[0]) == RECORDED
    content, _, _ = staged(with_submodules / "vendor", out.with_name("below"))
    assert without_gitmodules(content) == {"lib/l": b"recorded", "lib/deep/d": b"deep"}


@pytest.mark.parametrize("dirty", [False, True])
def test_a_submodule_that_is_not_here(with_submodules: Path, out: Path, dirty: bool) -> None:
    clone = with_submodules.with_name("clone")
    git(with_submodules.parent, "clone", "-q", with_submodules, clone)
    with pytest.raises(UsageError, match=r"submodule vendor/lib is not here.*git submodule update --init"):
        staged(clone, out, dirty=dirty)


def test_slugignore_reaches_into_submodules(with_submodules: Path, out: Path) -> None:
    files(with_submodules, **{".slugignore": "/vendor/lib/l\ndeep\n"})
    git(with_submodules, "add", "-A")
    git(with_submodules, "commit", "-q", "-m", "ignore")
    assert "vendor/lib/l" not in (content := staged(with_submodules, out)[0])
    assert "vendor/lib/deep/d" not in content and "vendor/lib/.gitmodules" in content


# -- an archive


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("app.tar", ["tar", "-cf"]),
        ("app.tgz", ["tar", "-czf"]),
        ("app.tar.gz", ["tar", "-czf"]),
        ("app.tar.xz", ["tar", "-cJf"]),
        ("app.tar.zst", ["tar", "--zstd", "-cf"]),
    ],
)
def test_an_archive(tmp_path: Path, out: Path, name: str, pack: list[str]) -> None:
    app = files(tmp_path / "tree", Procfile="x", bin__run="#!/bin/sh\n", spec__x="x", **{".slugignore": "spec\n"})
    files(app, **{".git/HEAD": "x"})
    (app / "bin/run").chmod(0o755)
    (app / "storage").symlink_to("/app/data")
    subprocess.run([*pack, tmp_path / name, "-C", app, "."], check=True)
    content, found, source = staged(tmp_path / name, out)
    assert content == {
        "Procfile": b"x",
        "bin/run": b"#!/bin/sh\n",
        ".slugignore": b"spec\n",
        "storage": b"-> /app/data",
    }
    assert stat.S_IMODE((out / "bin/run").stat().st_mode) == 0o755
    assert (source.kind, source.name, found.notes, found.ignored) == ("archive", "app", (), ("spec",))


def test_one_directory_at_the_root_and_nothing_else_is_the_app(tmp_path: Path, out: Path) -> None:
    app = repository(tmp_path / "app", Procfile="x", lib__a="1")
    git(app, "archive", "--prefix=app-1.0/", "-o", tmp_path / "app-1.0.zip", "HEAD")
    content, found, source = staged(tmp_path / "app-1.0.zip", out)
    assert content == {"Procfile": b"x", "lib/a": b"1"}
    assert source.name == "app-1.0" and "app-1.0/" in found.notes[0]


@pytest.mark.parametrize("name", ["app.tgz", "app.zip"])
def test_an_archive_that_is_none_leaves_nothing(tmp_path: Path, out: Path, name: str) -> None:
    (tmp_path / name).write_text("<html>404</html>")
    with pytest.raises(UsageError, match=f"{name} is a web page"):
        staged(tmp_path / name, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


@pytest.mark.parametrize("what", ["", "nowhere", "file.txt", "fifo"])
def test_what_is_no_source(tmp_path: Path, what: str) -> None:
    files(tmp_path, **{"file.txt": "x"})
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(UsageError, match="The source"):
        open_source(str(tmp_path / what) if what else "")
