"""Procfile, bin/release, config vars and environment as values, without a kernel."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nsbuild import buildpack as api
from nsbuild.build.cache import CacheUse
from nsbuild.errors import UsageError
from nsbuild.sandbox import app_layout, classic_layout

# -- Procfile


@pytest.mark.parametrize(
    ("text", "types"),
    [
        ("", {}),
        ("\n# comment\n  # indented\n \t\n", {}),
        ("web: run it\n", {"web": "run it"}),
        ("web:run\r\nworker:\tx y  \r\n", {"web": "run", "worker": "x y"}),
        ("a-b_C9: x: y | z\n", {"a-b_C9": "x: y | z"}),
        ("\ufeffweb: x", {"web": "x"}),
        ("web: echo \udcff\n", {"web": "echo \udcff"}),
    ],
)
def test_a_procfile(text: str, types: dict[str, str]) -> None:
    assert api.parse_procfile(text) == (types, [])


@pytest.mark.parametrize(
    ("text", "line"),
    [("web\n", 1), ("\nweb:\n", 2), ("web: x\nwéb: y\n", 2), ("web: x\n  continued\n", 2), (": x", 1), ("a b: c", 1)],
)
def test_a_malformed_procfile_names_the_line(text: str, line: int) -> None:
    with pytest.raises(api.ProcfileError, match=f"Procfile line {line} "):
        api.parse_procfile(text)


def test_the_last_duplicate_wins_with_a_warning() -> None:
    types, warnings = api.parse_procfile("web: one\nworker: x\nweb: two\n")
    assert types == {"web": "two", "worker": "x"}
    assert len(warnings) == 1 and "line 3" in warnings[0] and "web" in warnings[0]


@given(st.text())
def test_any_text_is_a_procfile_or_an_error_of_ours(text: str) -> None:
    try:
        types, _ = api.parse_procfile(text)
    except api.ProcfileError as error:
        assert "\n" not in str(error)
    else:
        assert all(name and command for name, command in types.items())


# -- bin/release


@pytest.mark.parametrize(
    ("text", "release"),
    [
        (b"", api.Release()),
        (b"---\n", api.Release()),
        (b"--- {}\n", api.Release()),
        (b"default_process_types: {}", api.Release()),
        (b"default_process_types:\nconfig_vars:\naddons:\n", api.Release()),
        (
            b"default_process_types:\n  web: x\n  on: yes\n  n: 12\n",
            api.Release({"web": "x", "on": "yes", "n": "12"}),
        ),
        (b"addons:\n- heroku-postgresql\n", api.Release(addons=["heroku-postgresql"])),
        (b"config_vars:\n  A: 01\n  B:\n  C: ''\n", api.Release(config_vars={"A": "01", "B": "", "C": ""})),
        (b"unknown: 1\n", api.Release()),
    ],
)
def test_a_release(text: bytes, release: api.Release) -> None:
    assert api.parse_release(text) == release


@pytest.mark.parametrize(
    "text",
    [b"[]", b"word", b"a: b: c", b"\x80", b"addons: x", b"config_vars: [x]", b"config_vars: {a: [1]}", b"[" * 9999],
)
def test_what_is_no_release(text: bytes) -> None:
    with pytest.raises(api.ReleaseError):
        api.parse_release(text)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_release_or_an_error_of_ours(text: bytes) -> None:
    try:
        api.parse_release(text)
    except api.ReleaseError as error:
        assert str(error)


# -- config vars


@pytest.mark.parametrize("name", ["", "a/b", ".", "..", "/etc/passwd", "x" * 256, "a\0b", "a=b"])
def test_a_name_that_cannot_be_a_file_is_refused(name: str) -> None:
    with pytest.raises(UsageError) as refusal:
        api.check_config_vars({name: "secret"})
    assert "secret" not in str(refusal.value)


def test_names_that_buildpacks_filter_are_told() -> None:
    assert api.check_config_vars(["A", "PATH", "LD_PRELOAD", "a.b", "-x"]) == ["PATH", "LD_PRELOAD"]


@given(st.dictionaries(st.sampled_from(["A", "b c", "-n", "é", ".x"]), st.binary(max_size=50)))
def test_env_dir_holds_values_verbatim(values: dict[str, bytes]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as directory:
        api.write_env_dir(directory, {name: os.fsdecode(value) for name, value in values.items()}, None)
        assert {path.name: path.read_bytes() for path in Path(directory).iterdir()} == values
        assert {stat.S_IMODE(path.stat().st_mode) for path in Path(directory).iterdir()} <= {0o644}


# -- the environment


def test_the_environment_of_a_build() -> None:
    env = api.build_environment(app_layout("/workspace"), stack="s", request_id="r", more={"LANG": "C", "NEW": "1"})
    assert env == {
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/workspace",
        "LANG": "C",
        "STACK": "s",
        "SOURCE_VERSION": "",
        "REQUEST_ID": "r",
        "DYNO": "build.r",
        "BUILDPACK_LOG_FILE": "/dev/null",
        "XDG_CACHE_HOME": "/tmp/.cache",
        "NEW": "1",
    }


def test_network_needs_are_proxies_and_certificates_that_exist(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").touch()
    environ = {
        "HTTP_PROXY": "http://p",
        "all_proxy": "socks://p",
        "https_proxy": "",
        "PIP_CERT": str(tmp_path / "ca.pem"),
        "SSL_CERT_DIR": f"{tmp_path}:/nonexistent",
        "SSL_CERT_FILE": "/nonexistent/ca.pem",
        "CURL_CA_BUNDLE": "ca.pem",
        "PATH": "/x",
    }
    needs = api.network_needs(environ)
    assert dict(needs.variables) == {
        name: environ[name] for name in ("HTTP_PROXY", "all_proxy", "PIP_CERT", "SSL_CERT_DIR")
    }
    assert set(needs.files) == {str(tmp_path / "ca.pem"), str(tmp_path)}


# -- calls


def pack() -> api.Buildpack:
    return api.Buildpack("ref", Path("/nowhere"), "/tmp/buildpacks/3", "sha256:x")


def test_the_calls_of_the_api() -> None:
    layout = classic_layout("4f2a")
    at = "/tmp/buildpacks/3"
    assert api.detect(pack(), layout) == api.Invocation((f"{at}/bin/detect", "/tmp/build_4f2a"), at)
    three = ("/tmp/build_4f2a", "/tmp/codon/tmp/cache", "/tmp/env_4f2a")
    assert api.compile_(pack(), layout, []) == api.Invocation((f"{at}/bin/compile", *three), at)
    assert api.report(pack(), layout) == api.Invocation((f"{at}/bin/report", *three), at)
    assert api.release(pack(), layout) == api.Invocation((f"{at}/bin/release", "/tmp/build_4f2a"), at)


def test_exports_come_before_the_command() -> None:
    call = api.compile_(pack(), app_layout(), ["/a/export", "/b/export"])
    assert call.argv[:2] == ("/bin/bash", "-c")
    assert call.argv[3:] == (
        *("bash", "2", "/a/export", "/b/export"),
        *("/tmp/buildpacks/3/bin/compile", "/app", "/tmp/cache", "/tmp/env"),
    )
    assert call.cwd == "/tmp/buildpacks/3"


# -- a buildpack


def test_installing_copies_and_digests(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "bin").mkdir(parents=True)
    (source / "bin/compile").write_text("x")
    (source / "export").write_text("stale")
    one = api.install(source, "ref", tmp_path / "one", "/p", None)
    assert one.has("compile") and not one.has("detect")
    assert not (one.directory / "export").exists() and (source / "export").exists()
    assert os.access(one.directory / "bin/compile", os.X_OK)
    same = api.install(source, "other", tmp_path / "two", "/q", None)
    assert same.digest == one.digest
    (source / "bin/compile").write_text("y")
    assert api.install(source, "ref", tmp_path / "three", "/p", None).digest != one.digest


@given(st.text(min_size=1), st.text(), st.text())
def test_a_cache_key_is_a_name_and_tells_apart(app: str, stack: str, layout: str) -> None:
    key = CacheUse(app, stack, layout).key
    assert "/" not in key and key not in (".", "..") and len(key) < 100 and key.isascii()
    assert key != CacheUse(app + "x", stack, layout).key
    assert key != CacheUse(app, stack + "x", layout).key
    assert key != CacheUse(app, stack, layout + "x").key
    assert key != CacheUse(app, stack, layout, "test").key
