"""HOME is the slug: what a build leaves there."""

from __future__ import annotations

import stat

from support.sites import Site

pytest_plugins = ["support.site_fixtures"]

LEAVE = """
cd "$HOME"
mkdir -p .ssh .gnupg/private .aws .docker .cache/pip .npm .local/share
for f in .ssh/id_rsa .netrc .git-credentials .gnupg/private/key .aws/credentials .docker/config.json .pypirc; do
    echo leaked > $f
done
echo '//registry.example.org/:_authToken=leaked' > .npmrc
head -c 100000 /dev/zero > .cache/pip/wheel
touch .npm/x
"""


def leaked(site: Site) -> list[str]:
    files = [path for path in site.out.rglob("*") if path.is_file()]
    return sorted(str(path.relative_to(site.out)) for path in files if b"leaked" in path.read_bytes())


def test_credentials_that_a_build_leaves_are_removed_and_said(site: Site) -> None:
    result = site.build(site.app(), site.buildpack(LEAVE)).ok()
    assert leaked(site) == []
    removed = {entry["path"] for entry in result.record["sweep"] if entry["action"] == "removed"}
    assert removed == {".ssh", ".netrc", ".git-credentials", ".gnupg", ".aws", ".docker", ".pypirc", ".npmrc"}
    for path in removed:
        assert f"~/{path} was removed" in result.err


def test_they_are_there_for_later_buildpacks(site: Site) -> None:
    """ssh-key buildpacks exist for the buildpacks behind them."""
    later = site.buildpack('cat "$HOME/.ssh/id_rsa"', "later")
    assert site.build(site.app(), site.buildpack(LEAVE), later).ok().out == b"leaked\n"


def test_keep_credentials_keeps_them(site: Site) -> None:
    result = site.build(site.app(), site.buildpack(LEAVE), "--keep-credentials").ok()
    assert ".ssh/id_rsa" in leaked(site) and ".npmrc" in leaked(site)
    assert "credentials" not in result.err


def test_what_the_source_has_is_restored(site: Site) -> None:
    app = site.app(Procfile="web: x\n")
    site.write("app/.netrc", "machine of the source\n", 0o600)
    site.write("app/.ssh/config", "Host of the source\n", 0o640)
    site.write("app/.ssh/keys/public", "key of the source\n")
    site.symlink("app/.pypirc", "config/pypirc")
    site.write("app/.npmrc", "//r/:_authToken=${NPM_TOKEN}\n")
    spoil = LEAVE + "echo leaked >> .ssh/config; echo leaked > .ssh/keys/private; ln -sf .netrc .aws/link\n"
    result = site.build(app, site.buildpack(spoil)).ok()
    assert leaked(site) == []
    assert (site.out / ".netrc").read_text() == "machine of the source\n"
    assert stat.S_IMODE((site.out / ".netrc").stat().st_mode) == 0o600
    assert (site.out / ".ssh/config").read_text() == "Host of the source\n"
    assert stat.S_IMODE((site.out / ".ssh/config").stat().st_mode) == 0o640
    assert sorted(path.name for path in (site.out / ".ssh").iterdir()) == ["config", "keys"]
    assert (site.out / ".npmrc").read_text() == "//r/:_authToken=${NPM_TOKEN}\n"
    assert (site.out / ".pypirc").is_symlink()
    actions = {entry["path"]: entry["action"] for entry in result.record["sweep"]}
    assert actions[".netrc"] == actions[".ssh"] == actions[".npmrc"] == "restored"


def test_a_secret_below_a_directory_of_the_source_is_found(site: Site) -> None:
    app = site.app(Procfile="web: x\n")
    site.write("app/.gnupg/private/of-the-source", "x")
    site.build(app, site.buildpack('echo leaked > "$HOME/.gnupg/private/key"')).ok()
    assert leaked(site) == []
    assert (site.out / ".gnupg/private/of-the-source").exists()


def test_what_has_not_changed_is_left_alone(site: Site) -> None:
    app = site.app(Procfile="web: x\n")
    site.write("app/.ssh/known_hosts", "github.com\n")
    site.write("app/.npmrc", "registry=https://example.org\n_auth=from-the-source\n")
    site.write("app/.cache/shipped", "x")
    result = site.build(app, site.buildpack()).ok()
    assert result.record["sweep"] == []
    assert (site.out / ".npmrc").read_text().endswith("_auth=from-the-source\n")


def test_an_npmrc_without_a_token_is_no_credential(site: Site) -> None:
    result = site.build(site.app(), site.buildpack('echo "registry=https://example.org" > "$HOME/.npmrc"')).ok()
    assert (site.out / ".npmrc").exists()
    assert result.record["sweep"] == []


def test_litter_is_told_with_its_size_and_kept(site: Site) -> None:
    result = site.build(site.app(), site.buildpack(LEAVE)).ok()
    kept = {entry["path"]: entry["bytes"] for entry in result.record["sweep"] if entry["action"] == "kept"}
    assert set(kept) == {".cache", ".npm", ".local"}
    assert kept[".cache"] == 100_000
    assert (site.out / ".cache/pip/wheel").exists()
    assert "~/.cache was left in the slug (0.1 MB)" in result.err


def test_caches_of_tools_that_obey_xdg_are_no_litter(site: Site) -> None:
    pack = site.buildpack('mkdir -p "$XDG_CACHE_HOME/pip"; touch "$XDG_CACHE_HOME/pip/x"')
    result = site.build(site.app(), pack).ok()
    assert result.record["sweep"] == []
    assert not (site.out / ".cache").exists()


def test_no_credential_goes_by_way_of_a_directory_in_its_place(site: Site) -> None:
    """Files where directories are expected, unreadable ones, links to elsewhere in the slug."""
    spoil = """
        cd "$HOME"; echo leaked > .ssh; mkdir .netrc; echo leaked > .netrc/x; echo leaked > plain-name
        mkdir .aws; echo leaked > .aws/credentials; chmod 000 .aws/credentials .aws; ln -s plain-name .git-credentials
        """
    site.build(site.app(), site.buildpack(spoil)).ok()
    assert leaked(site) == ["plain-name"]
    assert sorted(path.name for path in site.out.iterdir()) == [".nsbuild-slug", "Procfile", "plain-name"]
