"""What a reference means, and what of it is shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from nsbuild.buildpack import parse_reference
from nsbuild.errors import UsageError

HEROKU = "https://buildpack-registry.s3.amazonaws.com/buildpacks/heroku/python.tgz"


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("heroku/python", ("url", HEROKU, "")),
        ("urn:buildpack:heroku/python", ("url", HEROKU, "")),
        ("https://github.com/a/b", ("git", "https://github.com/a/b", "")),
        ("https://github.com/a/b.git#v1", ("git", "https://github.com/a/b.git", "v1")),
        ("https://github.com/a/b/archive/main.zip", ("url", "https://github.com/a/b/archive/main.zip", "")),
        ("https://x.example/p.tar.gz?token=t", ("url", "https://x.example/p.tar.gz?token=t", "")),
        ("http://x.example/P.TGZ", ("url", "http://x.example/P.TGZ", "")),
        ("git@github.com:a/b.git#main", ("git", "git@github.com:a/b.git", "main")),
        ("ssh://git@host:22/a/b#feature/x", ("git", "ssh://git@host:22/a/b", "feature/x")),
        ("git://host/a", ("git", "git://host/a", "")),
        ("file:///srv/a#v2", ("git", "file:///srv/a", "v2")),
        ("file:///srv/a%20b.tgz", ("archive", "/srv/a b.tgz", "")),
    ],
)
def test_what_is_no_path(text: str, meant: tuple[str, str, str], tmp_path: Path) -> None:
    found = parse_reference(text, base=str(tmp_path))
    assert (found.kind, found.location, found.ref) == meant


def test_what_is_there_comes_before_a_name(tmp_path: Path) -> None:
    for name in ("heroku/python", "bare.git", "work.git/bin", "git"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "work.git/bin/compile").touch()
    (tmp_path / "a.tgz").touch()
    (tmp_path / "link").symlink_to("heroku")
    kinds = {
        "heroku/python": ("directory", "heroku/python", ""),
        "./heroku/python": ("directory", "heroku/python", ""),
        "link/python": ("directory", "heroku/python", ""),
        "bare.git": ("git", "bare.git", ""),
        "bare.git#v1": ("git", "bare.git", "v1"),
        "work.git": ("directory", "work.git", ""),
        "git#main": ("git", "git", "main"),
        "a.tgz": ("archive", "a.tgz", ""),
    }
    for text, (kind, place, ref) in kinds.items():
        found = parse_reference(text, base=str(tmp_path))
        assert (found.kind, found.location, found.ref) == (kind, str(tmp_path / place), ref), text
    assert parse_reference("heroku/ruby", base=str(tmp_path)).kind == "url"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no reference"),
        ("-x", "no reference"),
        ("./nowhere", "does not exist"),
        ("/nowhere/x.tgz", "does not exist"),
        ("nowhere", "does not exist"),
        ("~nobody-of-that-name/x", "does not exist"),
        ("x" * 5000, "does not exist"),
        ("file", "is not a directory"),
        ("ftp://host/x.tgz", "no URL"),
        ("https://", "no URL"),
        ("https://host", "no URL"),
        ("https://[bad/x", "no URL"),
        ("https://host/a#--upload-pack=x", "no branch, tag or commit"),
        ("https://host/a#a b", "no branch, tag or commit"),
    ],
)
def test_what_means_nothing(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=words) as caught:
        parse_reference(text, base=str(tmp_path))
    assert "heroku/python" in caught.value.fix or "#" in caught.value.fix


def test_a_registry_of_ones_own(tmp_path: Path) -> None:
    (tmp_path / "packs/python/bin").mkdir(parents=True)
    registry = {
        "heroku/python": "./packs/python",
        "acme/*": "https://git.acme.example/{name}.git#stable",
        "*/*": "https://mirror.example/{name}.tgz",
    }
    meant = {
        "heroku/python": str(tmp_path / "packs/python"),
        "acme/php": "https://git.acme.example/acme/php.git",
        "heroku/ruby": "https://mirror.example/heroku/ruby.tgz",
    }
    for name, place in meant.items():
        assert parse_reference(name, registry=registry, base=str(tmp_path)).location == place
    assert parse_reference("acme/php", registry=registry, base=str(tmp_path)).ref == "stable"
    with pytest.raises(UsageError, match="a name again"):
        parse_reference("loop/x", registry={"loop/*": "heroku/x"}, base=str(tmp_path))


def test_secrets_are_not_shown() -> None:
    found = parse_reference("https://me:hunter2@host.example/p.tgz?sig=hunter2")
    assert found.secret
    assert found.location == "https://me:hunter2@host.example/p.tgz?sig=hunter2"
    assert "hunter2" not in found.shown + found.url + found.key
    assert found.shown == found.url == "https://host.example/p.tgz?..."
    token = parse_reference("https://hunter2@host.example/p.git#v1")
    assert token.secret and token.shown == "https://host.example/p.git#v1"
    assert not parse_reference("ssh://git@host.example/p.git").secret


def test_one_place_has_one_key() -> None:
    """Whoever asks for it; but not two files that a query tells apart."""
    keys = {
        name: parse_reference(f"https://{name}").key
        for name in ("h/p.tgz", "a:b@h/p.tgz", "h/p.tgz?x=1", "h/p.tgz?x=2", "h/p.git", "h/p.git#v1")
    }
    assert keys["h/p.tgz"] == keys["a:b@h/p.tgz"]
    assert len(set(keys.values())) == len(keys) - 1
