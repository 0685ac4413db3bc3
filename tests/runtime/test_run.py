"""`nsbuild run`: a slug as a dyno has it, never written to."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import tarfile
import urllib.request
from pathlib import Path

import pytest
from support.processes import eventually
from support.sites import PERSON, App, Result, Site, as_root, free_port, ordinary, snapshot

pytest_plugins = ["support.site_fixtures"]

ANSWERS = {
    "issue-1006": ("answer", b"setuptools"),
    "flask-web": ("check", b"flask-web: 200 OK ok\n"),
    "editable-root": ("answer", b"editable-root 1.0 runs from /app/src/editable_root\n"),
    "plain": ("hello", b"Hello from plain, build "),
}


def slug(site: Site, *, release: str = "echo '--- {}'", **files: str | bytes) -> Path:
    site.build(site.app("app", **{"Procfile": "web: x\n", **files}), site.buildpack(release=release)).ok()
    return site.out


# -- the real apps


@pytest.fixture(params=ANSWERS)
def app(request: pytest.FixtureRequest, apps: dict[str, App]) -> App:
    found: App = apps[request.param]
    found.first.ok()
    found.second.ok()
    return found


@pytest.mark.parametrize(("form", "read_only"), [("directory", False), ("directory", True), ("archive", False)])
def test_a_real_app_runs(app: App, form: str, read_only: bool) -> None:
    process, expected = ANSWERS[app.name]
    path = app.directory if form == "directory" else app.archive
    result = app.site.run(path, process, *(["--read-only"] if read_only else [])).ok()
    assert expected in result.out
    assert not result.err


@pytest.mark.parametrize("name", ["issue-1006", "flask-web", "plain"])
@pytest.mark.parametrize("read_only", [False, True])
def test_web_answers_on_its_port_until_sigterm(apps: dict[str, App], name: str, read_only: bool) -> None:
    app, port = apps[name], free_port()
    before = snapshot(app.directory)
    words = ["run", str(app.directory), "--port", str(port), *(["--read-only"] if read_only else [])]
    process = app.site.start(*words, stderr=subprocess.STDOUT)
    try:
        answer = b""

        def answers() -> bool:
            nonlocal answer
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as response:
                    answer = response.read()
            except OSError:
                return process.poll() is not None
            return True

        assert eventually(answers, 30) and answer, process.communicate()[0]
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=50)
    finally:
        process.kill()
        process.communicate()
    # gunicorn ends in peace, the others by the signal.
    assert process.returncode in (0, 143), out
    assert b"Traceback" not in out
    assert snapshot(app.directory) == before
    assert {"issue-1006": b"hatchling", "flask-web": b"flask-web", "plain": b"Procfile"}[name] in answer


def test_the_process_types_of_a_real_app(apps: dict[str, App]) -> None:
    """Those of the Procfile, and the defaults of the last buildpack where it is silent."""
    app = apps["plain"]
    for path in (app.directory, app.archive):
        assert sorted(app.site.run(path, "--list").ok().text.splitlines()) == [
            'goodbye: echo "Goodbye, it\'s been plain"',
            "hello: sh hello.sh",
            "web: python3 -m http.server $PORT",
        ]
    assert app.site.run(app.archive, "goodbye", "--read-only").ok().text == "Goodbye, it's been plain\n"


# -- the environment and the boot order


def test_the_environment_of_a_process(site: Site) -> None:
    path = slug(
        site,
        release="printf 'config_vars: {FROM_RELEASE: a, BOTH: release}\\n'",
        Procfile="web: env\nworker: env\n",
    )
    env = {"GIT_DIR": "/x", "PYTHONPATH": "/x", "SECRET": "x", "PORT": "1"}
    words = ("--env", "BOTH=option", "--env", "MULTI=a\nb", "--env", "HOME=/elsewhere", "--network", "none")

    def environment(result: Result) -> dict[str, str]:
        lines = result.ok().text.replace("a\nb", "a b").splitlines()
        found = dict(line.split("=", 1) for line in lines)
        return {name: value for name, value in found.items() if name not in ("PWD", "SHLVL", "_", "OLDPWD")}

    common = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/app", "LANG": "C.UTF-8"}
    common |= {"FROM_RELEASE": "a", "BOTH": "option", "MULTI": "a b"}
    assert environment(site.run(path, *words, env=env)) == {**common, "DYNO": "web.1", "PORT": "5000"}
    assert environment(site.run(path, "worker", *words, env=env)) == {**common, "DYNO": "worker.1"}
    assert environment(site.run(path, *words, "--", "env", env=env)) == {**common, "DYNO": "run.1"}


def test_profile_scripts_are_sourced_in_order_with_config_vars_set(site: Site) -> None:
    """Never executed, so they need no x bit; HOME and the working directory are the app's."""
    files = {
        ".profile.d/b.sh": 'ORDER="$ORDER b"; export SAW="$CONFIG/$PORT/$DYNO/$HOME/$PWD"\n',
        ".profile.d/a.sh": 'export ORDER="a"; set -- other words; cd /\n',
        ".profile.d/B.sh": 'export ORDER="B"\n',
        ".profile.d/c.txt": "echo never\n",
        ".profile.d/d/d.sh": "echo never\n",
        ".profile": 'export ORDER="$ORDER profile"; array=(x); unexported=1\n',
    }
    path = slug(site, **files, Procfile='web: echo "$ORDER|$SAW|$unexported|$1"; env | grep -c nsbuild\n')
    lines = site.run(path, "--env", "CONFIG=1").text.splitlines()
    assert lines == ["a b profile|1/5000/web.1//app//||", "0"]


def test_a_command_after_two_dashes_has_the_same_boot(site: Site) -> None:
    path = slug(site, **{".profile.d/a.sh": "export BOOTED=yes\n"})
    words = ["sh", "-c", 'echo "$BOOTED|$0|$1|$2|$(pwd)"', "--list", "a  b", "*"]
    assert site.run(path, "--", *words).ok().out == b"yes|--list|a  b|*|/app\n"


def test_a_config_var_of_the_slug_is_a_default(site: Site) -> None:
    path = slug(site, release="printf 'config_vars: {A: release, B: release}\\n'")
    site.write("file.env", "A=file\nB=file\n")
    words = ("--env-file", str(site.path / "file.env"), "--env", "B=option", "--", "sh", "-c", "echo $A $B")
    assert site.run(path, *words).ok().out == b"file option\n"


def test_stdin_stdout_and_stderr_are_the_commands(site: Site) -> None:
    path = slug(site)
    process = site.start("run", path, "--", "sh", "-c", "cat; echo err >&2", stdin=subprocess.PIPE)
    out, err = process.communicate(b"\x00\xff in\r\n", timeout=30)
    assert (process.returncode, out, err) == (0, b"\x00\xff in\r\n", b"err\n")


def test_another_run_path_is_where_it_was_built(site: Site) -> None:
    site.build(site.app(), site.buildpack(), "--run-path", "/home/vcap/app", output=site.path / "slug.tgz").ok()
    assert site.run(site.path / "slug.tgz", "--", "pwd").ok().out == b"/home/vcap/app\n"


# -- exit codes


@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 17"], 17),
        (["sh", "-c", "exit 255"], 255),
        (["sh", "-c", "kill -9 $$"], 137),
        (["sh", "-c", "kill -TERM $$"], 143),
        (["nonexistent-command"], 127),
        (["/etc/passwd"], 126),
        (["/app"], 126),
    ],
)
def test_the_exit_code_is_the_commands(site: Site, command: list[str], code: int) -> None:
    path = site.app()
    assert site.run(path, "--", *command).code == code
    assert site.run(path, "--read-only", "--", *command).code == code


def test_misuse_is_125(site: Site) -> None:
    path = site.app()
    site.run(site.path / "nowhere").refused(125, "nowhere", "does not exist")
    site.run(path, "absent").refused(125, "absent", "hello, web")
    site.run(path, "hello", "word").refused(125, "word")
    site.run(path, "--no-such-option").refused(125, "--no-such-option")
    site.run(path, "--port", "70000").refused(125, "--port")
    site.run(path, "--env", "secret-without-a-name").refused(125, "--env")
    assert "secret-without" not in site.run(path, "--env", "secret-without-a-name").err
    site.run(path, "--env-file", "nowhere").refused(125, "nowhere")
    site.write("nul.env", b"SECRET=hunter\0two\n")
    result = site.run(path, "hello", "--env-file", "nul.env").refused(125, "'SECRET'", "NUL")
    assert "hunter" not in result.err
    assert site.nsbuild("run").code == 125
    site.write("app/Procfile", "web: x\nnonsense\n")
    site.run(path).refused(125, "line 2")
    site.run(site.app("empty", x="")).refused(125, "web", "none")


def test_an_option_of_a_command_belongs_after_two_dashes(site: Site) -> None:
    site.build(site.app(), site.buildpack()).ok()
    site.run(site.out, "python", "-c", "x").refused(125, "'-c'", "goes after --")
    site.run(site.out, "--prot", "1", "--", "true").refused(125, "--prot", "--port")


# -- archives


def test_what_is_no_archive_is_refused(site: Site) -> None:
    text = site.write("text.tgz", "not an archive\n" * 100)
    site.run(text, "--", "true").refused(125, str(text), "not a slug")
    good = site.path / "good.tgz"
    site.build(
        site.app(data="x" * 50_000), site.buildpack('head -c 100000 /dev/urandom > "$1/random"'), output=good
    ).ok()
    cut = site.write("cut.tgz", good.read_bytes()[:60_000])
    site.run(cut, "--", "true").refused(125, str(cut), "not a slug")
    site.run(site.write("empty.tgz"), "--", "true").refused(125, "empty.tgz")


@pytest.mark.parametrize(
    ("name", "kind", "target"),
    [
        ("../../outside", tarfile.REGTYPE, ""),
        ("/var/tmp/outside", tarfile.REGTYPE, ""),
        ("link", tarfile.SYMTYPE, "/etc"),
        ("hard", tarfile.LNKTYPE, "../../../../etc/passwd"),
    ],
)
def test_members_that_lead_outside_stay_inside(site: Site, name: str, kind: bytes, target: str) -> None:
    path = site.path / "hostile.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for number, member in enumerate((tarfile.TarInfo(name), tarfile.TarInfo("link/evil"), tarfile.TarInfo("x"))):
            member.type, member.linkname = (kind, target) if number == 0 else (tarfile.REGTYPE, "")
            archive.addfile(member, io.BytesIO())
    site.own(path)
    before = snapshot(site.path)
    result = site.run(path, "--", "true")
    assert result.code in (0, 125) and "Traceback" not in result.err
    assert {name for name in snapshot(site.path) if "home/.cache" not in name} == set(before)
    assert not Path("/var/tmp/outside").exists() and not Path("/etc/evil").exists()


def test_modes_and_links_survive_the_archive_and_times_are_one(site: Site) -> None:
    site.app(Procfile="web: x\n", data="1")
    for mode in (0o777, 0o664, 0o400, 0o755):
        site.write(f"app/{mode:o}", "x", mode)
    os.link(site.path / "app/data", site.path / "app/again")
    os.utime(site.path / "app/777", (1_000_000_000, 1_000_000_000))
    site.build(site.path / "app", site.buildpack(), output=site.path / "slug.tgz").ok()
    look = "stat -c '%a %h %Y' 777 664 400 755 data"
    lines = site.run(site.path / "slug.tgz", "--", "sh", "-c", look).ok().text.splitlines()
    assert [line.split()[0] for line in lines] == ["777", "664", "400", "755", "644"]
    assert lines[0] == "777 1 315532801" and lines[4].split()[1] == "2"


# -- never written to

SPOIL = ["sh", "-c", "echo spoilt >> data; rm Procfile; mkdir new; chmod 777 data; mv sub moved; cat data; ls; id -u"]


def spoilt(result: Result, uid: int) -> None:
    lines = result.ok().text.splitlines()
    assert lines[:2] == ["good", "spoilt"] and "new" in lines and "moved" in lines and "Procfile" not in lines
    assert lines[-1] == str(uid)


@pytest.fixture
def kept(site: Site) -> Site:
    """A slug with a few things to spoil."""
    site.build(site.app(Procfile="web: x\n", data="good\n"), site.buildpack('mkdir "$1/sub"; touch "$1/sub/x"')).ok()
    return site


def test_what_a_process_writes_is_thrown_away(kept: Site) -> None:
    before = snapshot(kept.out)
    spoilt(kept.run(kept.out, "--", *SPOIL), PERSON or 12000)
    assert snapshot(kept.out) == before
    spoilt(kept.run(kept.out, "--", *SPOIL), PERSON or 12000)


def test_a_read_only_slug_cannot_be_written(kept: Site) -> None:
    before = snapshot(kept.out)
    result = kept.run(kept.out, "--read-only", "--", "sh", "-c", "touch /app/x || touch /tmp/y && ls -A /tmp")
    assert result.ok().out == b"y\n"
    assert b"Read-only" in result.err.encode()
    assert snapshot(kept.out) == before


@as_root
@pytest.mark.parametrize("mixed", [False, True])
def test_root_runs_a_slug_that_root_owns(kept: Site, mixed: bool) -> None:
    """As nobody in particular, over a copy: the overlay could not copy root's files up."""
    for path in [kept.out, *kept.out.rglob("*")]:
        if not (mixed and path.name == "data"):
            os.chown(path, 0, 0, follow_symlinks=False)
    before = snapshot(kept.out)
    spoilt(kept.run(kept.out, "--", *SPOIL, root=True), 12000)
    assert snapshot(kept.out) == before
    assert kept.run(kept.out, "--read-only", "--", "cat", "data", root=True).ok().out == b"good\n"


@as_root
@ordinary
@as_root
@pytest.mark.parametrize("name", ["slug.squashfs", "slug.tgz", "oci:image"])
def test_root_runs_an_archive_that_only_root_can_read(site: Site, name: str) -> None:
    slug = site.path / name.removeprefix("oci:")
    site.build(site.app(Procfile="web: ls -A /tmp; echo ran\n"), site.buildpack(), output=name).ok()
    for path in [slug, *slug.rglob("*")]:
        os.chown(path, 0, 0)
        path.chmod(0o700 if path.is_dir() else 0o600)
    assert site.run(slug, root=True).ok().out == b"ran\n"


@as_root
def test_a_user_runs_a_slug_of_somebody_elses(kept: Site) -> None:
    for path in [kept.out, *kept.out.rglob("*")]:
        os.chown(path, 0, 0, follow_symlinks=False)
    before = snapshot(kept.out)
    spoilt(kept.run(kept.out, "--", *SPOIL), PERSON)
    assert snapshot(kept.out) == before
    (kept.out / "data").chmod(0o600)
    kept.run(kept.out, "--", "true").refused(125, "data", "Permission denied")


def test_a_directory_that_no_build_has_made_runs(site: Site) -> None:
    """The platforms' own slugs carry no marker."""
    assert site.run(site.app(), "hello").ok().out == b"hello\n"


def test_list_prints_name_and_command(site: Site) -> None:
    path = slug(
        site,
        release="printf 'default_process_types:\\n  console: irb\\n  web: other\\n'",
        Procfile="web: a: b | c\nwörker: x\n".replace("ö", "o"),
    )
    lines = site.run(path, "--list").ok().text.splitlines()
    assert sorted(lines) == ["console: irb", "web: a: b | c", "worker: x"]


def test_list_prints_any_bytes(site: Site) -> None:
    app = site.app(Procfile=b"web: echo \xff h\xc3\xb6he\n")
    for locale in ("C", "C.UTF-8", "POSIX"):
        assert site.run(app, "--list", env={"LC_ALL": locale}).ok().out == b"web: echo \xff h\xc3\xb6he\n"
