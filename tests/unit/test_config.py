"""nsbuild.toml: what is read, what is refused, and what wins."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from nsbuild import config
from nsbuild.cli.configured import AppOption, Settings, options_of_build, read_settings
from nsbuild.errors import ExitCode, UsageError

Write = Callable[..., str]


def user_file() -> Path:
    path = config.user_file()
    assert path is not None
    return path


WIDENING = ("bind", "pass-env", "output", "cache", "workspace-dir", "user", "app", "env-file", "env-dir", "network")


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes the app's file (and the user's); returns the app."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    app = tmp_path / "app"
    app.mkdir()
    user_file().parent.mkdir(parents=True)

    def written(of_app: str = "", of_user: str = "") -> str:
        (app / "nsbuild.toml").write_text(of_app)
        user_file().write_text(of_user)
        return str(app)

    return written


def refusal(app: str) -> str:
    with pytest.raises(UsageError) as error:
        read_settings(app)
    assert error.value.code == ExitCode.USAGE
    return str(error.value)


def value(settings: Settings, name: str) -> object:
    return settings.options[name].value


def test_without_files_nothing_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "nosuch"))
    assert read_settings(str(tmp_path)) == Settings()
    assert read_settings(str(tmp_path / "nosuch")) == Settings()


def test_the_app_goes_before_the_user(write: Write) -> None:
    app = write('stack = "a"\n[env]\nA = "app"\n', 'stack = "u"\nnetwork = "none"\n[env]\nA = "user"\nB = "user"\n')
    settings = read_settings(app)
    assert (value(settings, "stack"), value(settings, "network")) == ("a", "none")
    assert settings.table("env") == {"A": "app", "B": "user"}
    assert settings.options["stack"].file.path == f"{app}/nsbuild.toml"
    assert settings.options["network"].file.path == str(user_file())
    assert value(read_settings(None), "stack") == "u"


def test_paths_are_relative_to_the_file(write: Write, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    app = write('buildpack = ["./vendor/pack", "heroku/python"]', 'bind = ["./data:/data"]\ncache = "~/c"')
    settings = read_settings(app)
    assert value(settings, "buildpack") == [f"{os.path.realpath(app)}/vendor/pack", "heroku/python"]
    # It does not exist, so the colon divides it, as on the command line.
    assert value(settings, "bind") == [f"{user_file().parent}/data:/data"]
    assert value(settings, "cache") == f"{tmp_path}/home/c"


@pytest.mark.parametrize("name", WIDENING)
def test_an_app_cannot_widen_what_a_build_sees_or_writes(write: Write, name: str) -> None:
    said = refusal(write(f'{name} = "x"\n'))
    assert f"app/nsbuild.toml: `{name}` " in said and str(user_file()) in said


def test_what_an_app_may_set_is_a_short_list() -> None:
    """A new option is the user's only, until somebody has thought about it."""
    allowed = {name for name, option in options_of_build().items() if isinstance(option, AppOption)}
    assert allowed == {"buildpack", "stack", "layout", "run-path", "timeout", "reproducible"}
    assert set(WIDENING) < set(options_of_build())


@pytest.mark.parametrize(
    "place",
    [
        "/home/me/pack",
        "~/pack",
        "../pack",
        "./vendor/../../pack",
        "./link/pack",
        "link",
        "file:///home/me/pack",
        "git@github.com:me/private",
        "ssh://git@github.com/me/private",
        "ext::sh -c touch% x",
    ],
)
def test_an_app_names_no_buildpack_elsewhere(write: Write, tmp_path: Path, place: str) -> None:
    app = write(f'buildpack = ["{place}"]')
    Path(app, "link").symlink_to(tmp_path)
    assert f"`buildpack` names {place}" in refusal(app)
    write(f'[env]\nBUILDPACK_URL = "{place}"')
    assert f"`env.BUILDPACK_URL` names {place}" in refusal(app)
    assert read_settings(write("", f'[env]\nBUILDPACK_URL = "{place}"')).table("env") == {"BUILDPACK_URL": place}


def test_what_an_app_names_is_no_directory_where_its_user_happens_to_be(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    app = write('buildpack = ["vendor/pack"]')
    (tmp_path / "vendor/pack").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert "`buildpack` names vendor/pack, which is not in the app" in refusal(app)
    (Path(app) / "vendor/pack").mkdir(parents=True)
    assert value(read_settings(app), "buildpack") == [f"{os.path.realpath(app)}/vendor/pack"]


@pytest.mark.parametrize("place", ["https://github.com/x/y#v1", "heroku/python", "./vendor/pack", "."])
def test_an_app_names_a_buildpack_of_its_own_or_of_the_web(write: Write, place: str) -> None:
    assert "buildpack" in read_settings(write(f'buildpack = ["{place}"]')).options


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("buildpacks = []", "no setting `buildpacks`. Did you mean `buildpack`?"),
        ("pass_env = []", "no setting `pass_env`. Did you mean `pass-env`?"),
        ("zzz = 1", "no setting `zzz`. `nsbuild config` lists"),
        ("help = true", "no setting `help`"),
        ("source = 'x'", "no setting `source`"),
        ("buildpack = 'x'", "`buildpack` is not a list of texts"),
        ("buildpack = [1]", "`buildpack` is not a list of texts"),
        ("stack = 24", "`stack` is not a text"),
        ("stack = ['a']", "`stack` is not a text"),
        ("no-userns = 1", "`no-userns` is not true or false"),
        ("timeout = true", "`timeout` is not a text or number"),
        ("timeout = 'soon'", "`timeout`: 'soon' is not a time"),
        ("timeout = 2024-01-01", "`timeout` is not a text or number"),
        ("network = 'lan'", "`network`: 'lan' is not one of"),
        ("bind = ['/etc:relative']", "`bind`: 'relative' is not an absolute path"),
        ("env = ['A=hunter2']", "`env` is not a table"),
        ("[env]\nA = 1", "`env.A` is not a text"),
        ("[env]\nA = ['hunter2']", "`env.A` is not a text"),
        ("a = 1\nb = hunter2", "line 2"),
        ("stack = 'a'\nstack = 'b'\n", "line 2"),
        ("a = " + "[" * 5000, "nested too deeply"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_file(write: Write, text: str, words: str) -> None:
    said = refusal(write("", text))
    assert said.startswith(f"{user_file()}: ") and words in said
    assert "hunter2" not in said


def test_what_is_not_utf8_names_its_line(write: Write) -> None:
    write()
    user_file().write_bytes(b"stack = 'a'\n# caf\xe9\n")
    with pytest.raises(UsageError, match="line 2 is not UTF-8"):
        read_settings(None)


def a_link(path: Path) -> None:
    path.symlink_to("/etc/passwd")


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(str(path))


def too_much(path: Path) -> None:
    path.write_bytes(b"#" * (2 << 20))


@pytest.mark.parametrize("make", [a_link, a_socket, too_much, os.mkfifo, Path.mkdir])
def test_an_apps_file_that_is_none_is_refused_at_once(write: Write, make: Callable[[Path], None]) -> None:
    path = Path(write(), "nsbuild.toml")
    path.unlink()
    make(path)
    assert "app/nsbuild.toml cannot be read: " in refusal(str(path.parent))


def test_what_is_set_is_said_without_values(write: Write) -> None:
    settings = read_settings(write("timeout = 60\n[env]\nTOKEN = 'hunter2'\n", "network = 'none'\n"))
    assert sorted(settings.sentences()) == sorted(
        [f"{user_file()} sets network.", f"{user_file().parents[2]}/app/nsbuild.toml sets env.TOKEN, timeout."]
    )


def test_every_option_has_one_name() -> None:
    names = list(options_of_build())
    assert {"buildpack", "pass-env", "run-path", "keep-credentials", "report"} < set(names)
    assert all(isinstance(option, click.Option) for option in options_of_build().values())
