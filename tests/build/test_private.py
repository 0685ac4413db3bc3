"""What a build may use and must not keep: a real ssh agent, and secrets."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.processes import ROOT
from support.sites import PERSON, Site

pytest_plugins = ["support.site_fixtures"]
SECRET = "hunter2-and-more-of-it"


def as_person(*command: str | Path, **env: str) -> str:
    who = {"user": PERSON, "group": PERSON, "extra_groups": []} if ROOT else {}
    done = subprocess.run(  # type: ignore[call-overload]
        command, env={"PATH": os.environ["PATH"], **env}, capture_output=True, check=False, text=True, **who
    )
    return str(done.stdout + done.stderr)


@pytest.fixture
def agent(site: Site) -> Iterator[str]:
    """The socket of an agent of PERSON's, without a key."""
    socket = str(site.path / "agent.sock")
    pid = re.search(r"SSH_AGENT_PID=(\d+)", as_person("ssh-agent", "-s", "-a", socket))
    assert pid is not None
    yield socket
    os.kill(int(pid[1]), 15)


def test_a_compile_can_use_the_agent_and_nothing_else(site: Site, agent: str) -> None:
    """The key is made inside, for ssh-keygen wants an account, and the build has one."""
    pack = site.buildpack(
        'echo "$SSH_AUTH_SOCK"; ssh-keygen -q -t ed25519 -N "" -C "the key" -f /tmp/key && ssh-add -q /tmp/key; '
        "ssh-add -l; ls -A /run ~/.ssh 2>&1 || true"
    )
    result = site.build(site.app(), pack, "--ssh", env={"SSH_AUTH_SOCK": agent}).ok()
    assert result.text.startswith("/run/ssh-agent.sock\n") and "the key (ED25519)" in result.text
    assert agent not in result.text
    assert "the key (ED25519)" in as_person("ssh-add", "-l", SSH_AUTH_SOCK=agent)
    without = site.build(site.path / "app", site.buildpack("ssh-add -l 2>&1 || true"), env={"SSH_AUTH_SOCK": agent})
    assert "Could not open a connection" in without.ok().text


def test_no_agent(site: Site) -> None:
    app, pack = site.app(), site.buildpack()
    site.build(app, pack, "--ssh").refused(2, "--ssh", "SSH_AUTH_SOCK is not set")
    file = site.write("file")
    site.build(app, pack, "--ssh", env={"SSH_AUTH_SOCK": str(file)}).refused(2, "which is no socket")


def everything(*places: Path) -> bytes:
    return b"".join(path.read_bytes() for place in places for path in place.rglob("*") if path.is_file())


def test_a_secret_is_seen_and_stays_outside(site: Site) -> None:
    file = site.write("token", f"{SECRET}\n", 0o600)
    app = site.app(Procfile="web: x\n")
    pack = site.buildpack("wc -c < /run/secrets/token; (echo x > /run/secrets/token) 2>/dev/null || echo read-only")
    result = site.build(app, pack, "--secret", f"token={file}").ok()
    assert result.text.split() == [str(len(SECRET) + 1), "read-only"]
    assert file.read_text() == f"{SECRET}\n"
    assert SECRET not in result.err + result.text + str(result.record)
    assert SECRET.encode() not in everything(site.out, site.home)
    assert not (site.out / "run").exists() and result.record["warnings"] == []


def test_a_secret_that_a_buildpack_has_kept_is_said(site: Site) -> None:
    file = site.write("token", f"{SECRET}\n", 0o600)
    pack = site.buildpack(
        'mkdir -p "$1/a" "$2"; (head -c 1048570 /dev/zero; cat /run/secrets/token) > "$1/a/kept"; '
        'chmod 0 "$1/a/kept"; cp /run/secrets/token "$2/too"; printf short > "$1/short"'
    )
    short = site.write("short", "short")
    result = site.build(site.app(), pack, "--secret", f"token={file}", "--secret", f"s={short}").ok()
    assert sorted(result.record["warnings"]) == [
        "a/kept of the slug holds the secret token: a buildpack has put it there.",
        "too of the cache holds the secret token: a buildpack has put it there.",
    ]
    assert SECRET not in str(result.record)


@pytest.mark.parametrize(
    ("given", "word"), [("../x=token", "an ID has"), ("x=nowhere", "is no file"), ("x=app", "is no file")]
)
def test_secrets_that_are_none(site: Site, given: str, word: str) -> None:
    site.write("token", SECRET)
    site.build(site.app(), site.buildpack(), "--secret", given).refused(2, word)
    result = site.build(site.path / "app", site.path / "pack", "--secret", "a=token", "--secret", "a=token")
    result.refused(2, "twice")


def test_a_step_that_prints_a_secret_or_a_config_var_is_in_the_record_without_it(site: Site) -> None:
    secret = site.write("key", "first line of a key\nsecond line of a key\n", 0o600)
    pack = site.buildpack('echo "-----> Login with $(cat "$3/TOKEN") and $(tail -1 /run/secrets/id)"')
    result = site.build(site.app(), pack, "--env", "TOKEN=hunter2", "--secret", f"id={secret}").ok()
    assert result.text == "-----> Login with hunter2 and second line of a key\n"
    (phase,) = [phase for phase in result.record["phases"] if phase["name"] == "compile"]
    assert [step["text"] for step in phase["steps"]] == ["Login with [TOKEN] and [id]"]
    assert "hunter2" not in result.err
