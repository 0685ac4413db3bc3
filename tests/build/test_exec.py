"""`nsbuild exec`: any command where a directory is at the run path, with the caller's environment."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from support.sites import PERSON, Result, Site, as_root, snapshot

pytest_plugins = ["support.site_fixtures"]

TELL = "import json, os; print(json.dumps([dict(os.environ), os.getcwd(), sorted(os.listdir('/app'))]))"


def execute(site: Site, *words: str | Path, directory: str | Path = "app", **options: Any) -> Result:
    return site.nsbuild("exec", "--build-dir", directory, *words, **options)


def tell(site: Site, *words: str, **options: Any) -> tuple[dict[str, str], str, list[str]]:
    result = execute(site, *words, "--", "/usr/bin/python3", "-c", TELL, **options).ok()
    environ, cwd, files = json.loads(result.out)
    return environ, cwd, files


def test_the_directory_is_at_the_run_path_and_what_is_written_stays(site: Site) -> None:
    app = site.app()
    script = "pwd; ls; echo made > made; rm -r sub; touch /app/bin"
    site.write("app/sub/x")
    assert execute(site, "--", "sh", "-c", script).ok().text.split() == ["/app", "Procfile", "sub"]
    assert sorted(path.name for path in app.iterdir()) == ["Procfile", "bin", "made"]
    assert {path.stat().st_uid for path in app.iterdir()} == {PERSON}


def test_the_environment_is_the_callers_with_paths_mapped(site: Site) -> None:
    app = site.app()
    env = {
        "KEPT": "value",
        "BUILD_DIR": str(app),
        "BELOW": f"{app}/sub/dir",
        "BESIDE": f"{app}-other",
        "WITHIN": f"x:{app}",
        "MULTI": "a\nb",
        "TMPDIR": str(site.mkdir("home/tmp")),
    }
    environ, cwd, _ = tell(site, env=env)
    assert environ["KEPT"] == "value" and environ["MULTI"] == "a\nb"
    assert (environ["BUILD_DIR"], environ["BELOW"], environ["HOME"]) == ("/app", "/app/sub/dir", "/app")
    assert environ["BESIDE"] == f"{app}-other" and environ["WITHIN"] == f"x:{app}"
    assert "TMPDIR" not in environ
    assert cwd == "/app"
    assert tell(site, env={"TMPDIR": f"{app}/tmp"})[0]["TMPDIR"] == "/app/tmp"
    assert tell(site, env={"TMPDIR": "/tmp"})[0]["TMPDIR"] == "/tmp"


def test_the_working_directory_is_the_callers_where_it_is_visible(site: Site) -> None:
    app = site.app()
    sub = site.mkdir("app/sub")
    for cwd, expected in ((app, "/app"), (sub, "/app/sub"), (Path("/usr/bin"), "/usr/bin"), (site.home, "/app")):
        assert tell(site, directory=app, cwd=cwd)[1] == expected


@pytest.mark.parametrize(
    "name", ["a b", "new\nline", "comma,colon:", "höhe", os.fsdecode(b"\xff\xfe"), "-rf", "'\"$(x)"]
)
def test_directories_of_any_name(site: Site, name: str) -> None:
    site.write(f"{name}/file", "content")
    result = execute(site, "--", "cat", "/app/file", directory=site.path / name)
    assert result.ok().out == b"content"
    shown = execute(site, "--explain", directory=site.path / name)
    assert os.fsencode(name) in shown.ok().out


@pytest.mark.parametrize("path", ["/app/with space", "/home/vcap/app", "/opt/app", "/workspace"])
def test_another_run_path(site: Site, path: str) -> None:
    site.app()
    result = execute(site, "--run-path", path, "--", "sh", "-c", 'pwd; echo "$HOME"; ls; touch made')
    assert result.ok().text.splitlines() == [path, path, "Procfile"]
    assert (site.path / "app/made").exists()


def test_explain_prints_the_view_and_does_nothing(site: Site) -> None:
    site.app()
    before = snapshot(site.path)
    result = execute(site, "--explain", "--", "touch", "/app/never", env={"SECRET": "hunter2"}).ok()
    assert snapshot(site.path) == before
    assert "hunter2" not in result.text + result.err
    lines = result.text.splitlines()
    assert lines[0].startswith("root ") and any("/app" in line and str(site.path / "app") in line for line in lines)
    for kind, path in (("proc", "/proc"), ("dev", "/dev"), ("file", "/etc/passwd")):
        assert any(line.split()[:2] == [kind, path] for line in lines), path


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 17"], 17),
        (["sh", "-c", "kill -9 $$"], 137),
        (["nonexistent"], 127),
        (["/etc/passwd"], 126),
    ],
)
def test_the_exit_code_is_the_commands(site: Site, command: list[str], code: int) -> None:
    site.app()
    result = execute(site, "--", *command)
    assert result.code == code
    if code in (126, 127):
        result.refused(code, command[0])


def test_a_time_limit_is_124(site: Site) -> None:
    site.app()
    execute(site, "--timeout", "0.5s", "--", "sleep", "60", timeout=30).refused(124, "sleep")


def test_misuse_is_125(site: Site) -> None:
    site.app()
    execute(site, "--", "true", directory="nowhere").refused(125, "nowhere")
    execute(site, "--", "true", directory=site.write("file")).refused(125, "file")
    execute(site).refused(125, "command")
    execute(site, "--no-such-option", "--", "true").refused(125, "--no-such-option")
    execute(site, "--timeout", "soon", "--", "true").refused(125, "--timeout")
    execute(site, "--run-path", "relative", "--", "true").refused(125, "relative")
    execute(site, "--bind", "/nonexistent", "--", "true").refused(125, "/nonexistent")
    site.nsbuild("exec", "--", "true").refused(125, "--build-dir")


def test_the_record_is_as_readable_as_the_umask_says(site: Site) -> None:
    site.app()
    for umask, mode in ((0o077, 0o600), (0o022, 0o644)):
        execute(site, "--report", "record.json", "--", "true", umask=umask).ok()
        assert (site.path / "record.json").stat().st_mode & 0o777 == mode


def test_a_workspace_directory_that_is_not_there(site: Site) -> None:
    site.app()
    execute(site, "--workspace-dir", "nowhere", "--", "true").refused(125, "nowhere", "Give a directory of yours")


def test_bind_and_network(site: Site) -> None:
    site.app()
    shown = site.write("home/shown/file", "content").parent
    script = f"cat {shown}/file; touch {shown}/x 2>/dev/null; ls -A /home /root; cut -d: -f1 -s /proc/net/dev"
    result = execute(site, "--bind", str(shown), "--network", "none", "--", "sh", "-c", script)
    assert result.text.split()[0].startswith("content") and result.text.split()[-1] == "lo"
    assert not (shown / "x").exists()


@as_root
def test_what_belongs_to_root_stays_roots(site: Site) -> None:
    """On disk; inside it is the build's user's, who is not root."""
    app = site.app()
    for path in (app, *app.rglob("*")):
        os.chown(path, 0, 0)
    script = "id -u; stat -c %u Procfile; touch made; mkdir sub; echo >> Procfile"
    result = execute(site, "--", "sh", "-c", script, root=True)
    inside, owner = result.ok().text.split()
    assert inside == owner != "0"
    assert {path.stat().st_uid for path in (app, *app.rglob("*"))} == {0}
    assert (app / "made").exists()


@as_root
def test_root_runs_as_the_owner_of_the_directory(site: Site) -> None:
    site.app()
    result = execute(site, "--", "sh", "-c", "id -u; touch made", root=True).ok()
    assert result.text.strip() == str(PERSON)
    assert (site.path / "app/made").stat().st_uid == PERSON
