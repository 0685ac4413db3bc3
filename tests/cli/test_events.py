"""`--json`: one object a line on stdout, and nothing else."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from support.sites import Result, Site

pytest_plugins = ["support.site_fixtures"]

NOT_UTF8 = "printf 'caf\\351\\n'"


def events(result: Result) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = [json.loads(line) for line in result.out.splitlines()]
    assert all(isinstance(event["time"], float) and event["kind"] for event in found)
    assert [event["time"] for event in found] == sorted(event["time"] for event in found)
    return found


def printed(found: list[dict[str, Any]]) -> bytes:
    return b"".join(
        event["text"].encode() if "text" in event else base64.b64decode(event["base64"])
        for event in found
        if event["kind"] == "output"
    )


def test_the_events_of_a_build(site: Site) -> None:
    pack = site.buildpack("echo '-----> Making it'; echo to stderr >&2; mkfifo \"$1/fifo\"")
    result = site.build(site.app(), pack, "--json").ok()
    assert result.err == ""
    found = events(result)
    order = [(event["kind"], event["phase"]) for event in found if event["kind"] in ("started", "ended")]
    phases = [phase for kind, phase in order if kind == "started"]
    assert order == [(kind, phase) for phase in phases for kind in ("started", "ended")]
    assert phases == [phase["name"] for phase in result.record["phases"]]
    compiled = [event for event in found if event.get("phase") == "compile"]
    assert compiled[0]["kind"] == "started" and compiled[-1]["kind"] == "ended"
    assert {event["buildpack"] for event in compiled} == {str(pack)}
    assert printed(found) == b"-----> Making it\nto stderr\n"
    assert {"kind": "line", "text": "-----> Test app detected"}.items() <= found[
        [e["kind"] for e in found].index("line")
    ].items()
    assert found[-1]["kind"] == "result"
    assert (found[-1]["record"], found[-1]["error"]) == (result.record, None)


def test_every_byte_arrives_also_where_it_is_no_text(site: Site) -> None:
    """A character that is cut in two by a pipe is whole again; what is no UTF-8 is in base64."""
    half = "printf '\\xc3'; sleep 0.3; printf '\\xa9\\n'"
    wait = ">/tmp/here; until [ -e /tmp/go ]; do sleep 0.05; done"
    pack = site.buildpack(f"{half}; {wait}; {NOT_UTF8}; printf '\\xc3'")
    process = site.start(*site.words(site.app(), pack), "--json")
    assert process.stdout is not None
    out = b""
    while "é".encode() not in out and b"\\u00e9" not in out and (line := process.stdout.readline()):
        out += line
    site.appears("tmp/here")
    (here,) = site.inside("tmp/here")
    Path(here).with_name("go").touch()
    rest, err = process.communicate(timeout=50)
    assert process.returncode == 0, err
    found = events(Result(0, out + rest, ""))
    texts = [event.get("text") for event in found if event["kind"] == "output"]
    assert texts[0] == "é\n"
    assert texts[1:] and set(texts[1:]) == {None}
    assert printed(found) == "é\n".encode() + b"caf\xe9\n\xc3"


@pytest.mark.parametrize(
    ("script", "code", "words"), [("echo so far; exit 3", 11, "exited 3"), ('rm -rf "$1"', 11, "left nothing")]
)
def test_a_failure_is_the_last_event(site: Site, script: str, code: int, words: str) -> None:
    result = site.build(site.app(), site.buildpack(script), "--json")
    assert result.code == code
    last = events(result)[-1]
    assert last["kind"] == "result" and last["record"] == result.record
    assert last["error"]["code"] == code and words in last["error"]["sentence"]
    assert result.err == f"nsbuild: {last['error']['sentence']} {last['error']['fix']}".rstrip() + "\n"


def test_a_build_that_never_began_has_no_record(site: Site) -> None:
    last = events(site.build("nosuch", site.buildpack(), "--json").refused(2, "nosuch"))[-1]
    assert last["record"] is None
    assert last["error"]["code"] == 2 and last["error"]["fix"]


def test_no_value_of_a_config_var_is_in_them(site: Site) -> None:
    app = site.app(**{"nsbuild.toml": "[env]\nIN_FILE = 'hunter2'\n"})
    result = site.build(app, site.buildpack("echo made"), "--env", "GIVEN=swordfish", "--json").ok()
    assert b"hunter2" not in result.out and b"swordfish" not in result.out
    assert b"env.IN_FILE" in result.out


def test_a_reader_that_leaves_ends_the_build(site: Site) -> None:
    process = site.start(*site.words(site.app(), site.buildpack("yes")), "--json")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    _, err = process.communicate(timeout=50)
    assert process.returncode == 125
    assert b"stdout cannot be written" in err and b"Traceback" not in err
