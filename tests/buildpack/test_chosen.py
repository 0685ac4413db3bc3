"""Which buildpacks a build uses, and what malformed files of an app say."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
from support.sites import Site, snapshot

from nsbuild.buildpack import choose
from nsbuild.errors import UsageError

pytest_plugins = ["support.site_fixtures"]

FILES = {
    ".buildpacks": "# first\r\nhttps://h.example/dot.git#v1\r\n\r\n  ./own  \r\n",
    "app.json": '{"buildpacks": [{"url": "heroku/app-json"}, {"url": "urn:buildpack:heroku/two"}]}',
    "project.toml": '[[io.buildpacks.group]]\nuri = "https://h.example/toml.git"\n',
}


def app(directory: Path, files: Mapping[str, str | bytes] = FILES) -> str:
    (directory / "own/bin").mkdir(parents=True)
    (directory / "own/bin/compile").touch()
    for name, content in files.items():
        (directory / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return str(directory)


def test_the_strongest_counts(tmp_path: Path) -> None:
    """One after the other is taken away."""
    place = app(tmp_path / "app")
    packs = tmp_path / "packs"
    for name in ("20-b", "10-a", "not-one"):
        (packs / name / "bin").mkdir(parents=True)
        if name != "not-one":
            (packs / name / "bin/compile").touch()

    def shown(given: list[str], env: dict[str, str]) -> tuple[str, list[str]]:
        chosen = choose(given, env, place, defaults=str(packs))
        return chosen.origin, [found.shown for found in chosen.references]

    env = {"BUILDPACK_URL": " https://h.example/env.git\n"}
    assert shown(["heroku/x", "https://h.example/b"], env) == ("--buildpack", ["heroku/x", "https://h.example/b"])
    assert shown([], env) == ("BUILDPACK_URL", ["https://h.example/env.git"])
    assert shown([], {"BUILDPACK_URL": ""}) == (".buildpacks", ["https://h.example/dot.git#v1", "./own"])
    (tmp_path / "app/.buildpacks").write_text("# none\n\n")
    assert shown([], {}) == ("app.json", ["heroku/app-json", "urn:buildpack:heroku/two"])
    (tmp_path / "app/app.json").write_text('{"name": "x"}')
    assert shown([], {}) == ("project.toml", ["https://h.example/toml.git"])
    (tmp_path / "app/project.toml").write_text('[_]\nschema-version = "0.2"\n')
    origin, references = shown([], {})
    assert origin == f"--default-buildpacks {packs}"
    assert references == [str(packs / "10-a"), str(packs / "20-b")]
    with pytest.raises(UsageError, match="No buildpack was given"):
        choose([], {}, place)


def test_project_toml_names_cloud_native_ones_too(tmp_path: Path) -> None:
    text = """
        [[io.buildpacks.group]]
        id = "heroku/procfile"
        [[io.buildpacks.group]]
        uri = "docker://example.org/pack"
        [[build.buildpacks]]
        uri = "./own"
    """
    chosen = choose([], {}, app(tmp_path, {"project.toml": text}))
    assert [found.location for found in chosen.references] == [str(tmp_path / "own")]
    (warning,) = chosen.warnings
    assert "heroku/procfile" in warning and "docker://example.org/pack" in warning


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        (".buildpacks", "https://h.example/a\n\nnowhere/at/all\n", ("line 3", "nowhere/at/all")),
        (".buildpacks", "../outside\n", ("line 1", "neither on the web nor in the app")),
        (".buildpacks", "/etc\n", ("line 1", "neither on the web nor in the app")),
        (".buildpacks", "git@h.example:private\n", ("line 1", "neither on the web nor in the app", "--buildpack")),
        (".buildpacks", "file:///etc\n", ("line 1", "neither")),
        (".buildpacks", "https://h.example/a#\xff\n".encode("latin-1"), ("line 1", "UTF-8")),
        ("app.json", '{"buildpacks":\n[}', ("app.json", "line 2", "JSON")),
        ("app.json", "[]", ("app.json", "object")),
        ("app.json", '{"buildpacks": {}}', ("app.json", "buildpacks", "no list")),
        ("app.json", '{"buildpacks": [{"url": "heroku/a"}, "heroku/b"]}', ("buildpacks[1]", "has no url")),
        ("app.json", '{"buildpacks": [{"url": 3}]}', ("buildpacks[0]", "has no url")),
        ("app.json", "[" * 100000, ("app.json", "deeply")),
        ("project.toml", "[io\n", ("project.toml", "line 1")),
        ("project.toml", "[io.buildpacks]\ngroup = 1\n", ("io.buildpacks.group", "no list")),
        ("project.toml", "[[io.buildpacks.group]]\nuri = 1\n", ("io.buildpacks.group[0]", "has no uri")),
    ],
)
def test_a_malformed_file(name: str, content: str | bytes, words: tuple[str, ...], tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        choose([], {}, app(tmp_path, {name: content}))
    assert name in str(caught.value)
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_no_file_of_an_app_leads_out_of_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text(FILES[name])
    place = app(tmp_path / "app", {})
    (tmp_path / "app" / name).symlink_to("../secret")
    with pytest.raises(UsageError, match=f"{name} of the app cannot be read: it is a symbolic link"):
        choose([], {}, place)
    (tmp_path / "app" / name).unlink()
    (tmp_path / "app/.buildpacks").write_text("./link\n")
    (tmp_path / "app/link").symlink_to("../secret")
    with pytest.raises(UsageError, match="neither on the web nor in the app"):
        choose([], {}, place)


# -- in a build


def test_buildpacks_of_the_app(site: Site) -> None:
    site.buildpack("echo first", "app/packs/one")
    site.buildpack("echo second", "app/packs/two", detect="echo Two")
    result = site.build(site.app(**{".buildpacks": "# both\r\n./packs/one\r\npacks/two\r\n"})).ok()
    assert result.text == "first\nsecond\n"
    assert "Buildpacks of .buildpacks: ./packs/one, packs/two." in result.err
    assert [found["reference"] for found in result.record["buildpacks"]] == ["./packs/one", "packs/two"]


def test_a_config_var_names_the_buildpack(site: Site) -> None:
    site.buildpack("echo of the app", "app/own")
    app = site.app(**{".buildpacks": "./own\n"})
    result = site.build(app, "--env", f"BUILDPACK_URL={site.buildpack('echo of the variable')}").ok()
    assert result.text == "of the variable\n"


def test_the_first_of_a_default_set_that_matches(site: Site) -> None:
    for name, detect in (("10-no", "exit 1"), ("20-yes", "echo Yes"), ("30-too", "echo Too")):
        site.buildpack(f"echo compiled by {name}", f"packs/{name}", detect=detect, release=f"echo '# {name}'")
    before = snapshot(site.path / "packs")
    result = site.build(site.app(), "--default-buildpacks", "packs").ok()
    assert result.text == "compiled by 20-yes\n"
    assert "Several buildpacks match this app (20-yes, 30-too)" in result.err
    (used,) = result.record["buildpacks"]
    assert (used["reference"], used["name"]) == (str(site.path / "packs/20-yes"), "Yes")
    assert (site.out / ".release").read_text() == "# 20-yes\n"
    assert snapshot(site.path / "packs") == before
    (site.path / "packs/30-too/bin/detect").write_text("#!/bin/sh\nexit 1\n")
    assert "Several" not in site.build("app", "--default-buildpacks", "packs").ok().err


def test_none_of_a_default_set_matches(site: Site) -> None:
    for name in ("a", "b"):
        site.buildpack("echo compiled", f"packs/{name}", detect="echo not mine; exit 1")
    result = site.build(site.app(), "--default-buildpacks", "packs").refused(10, "No buildpack matches", "a, b")
    assert result.text == "" and not site.out.exists()
    site.mkdir("empty")
    site.build("app", "--default-buildpacks", "empty").refused(2, "empty", "holds no buildpack")
    site.build("app", "--default-buildpacks", "nowhere").refused(2, "nowhere", "No such file")


def test_the_registry_is_the_users(site: Site) -> None:
    site.buildpack("echo ours")
    site.write("home/.config/nsbuild/nsbuild.toml", f'[registry]\n"acme/*" = "{site.path}/pack"\n')
    app = site.app(**{"app.json": '{"buildpacks": [{"url": "acme/thing"}]}'})
    result = site.build(app).ok()
    assert result.text == "ours\n"
    site.write("app/nsbuild.toml", '[registry]\n"acme/*" = "/etc"\n')
    site.build(app).refused(2, "registry")
