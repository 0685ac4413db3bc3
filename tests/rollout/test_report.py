"""The report: its numbers are those of `status --json`, and it is a page for eyes, keyboards and screen readers."""

from __future__ import annotations

import json
import re
import subprocess
from html import escape
from pathlib import Path

import pytest
from support.browsers import chromium, screenshot
from support.fleets import Fleet

from nsbuild.cli import main
from nsbuild.rollout.decision import DIRECT, NAMESPACE, SHADOW, Decision
from nsbuild.rollout.edit import Change, apply
from nsbuild.rollout.history import wilson
from nsbuild.rollout.ledger import Ledger

HOSTILE = "<script>document.title='pwned'</script>\"'&\x1b[31m"
AXE = "axe-core@4.10.3"


@pytest.fixture
def flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Of a rollout with 600 builds on all three paths."""
    monkeypatch.setenv("NSBUILD_ROLLOUT_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "state").mkdir()
    name = str(tmp_path / "flags.json")
    apply(name, Change(namespace=2500, shadow=5000), "a test")
    fleet = Fleet(apps=150, seed=1, refusing=10, rescue=True, bad_fails=0.5)
    paths = {0: NAMESPACE, 1: SHADOW, 2: DIRECT, 3: DIRECT}
    with Ledger(tmp_path / "state") as ledger:
        for _ in range(600):
            decided, built = fleet.build(
                lambda app, _: Decision(app, paths[int(app[-2:]) % 4], "percentage", share=0.25)
            )
            for outcome in built:
                ledger.record(outcome)
            ledger.record(decided)
    return name


def page(flags: str) -> Path:
    made = Path(flags).with_name("report.html")
    assert main(["rollout", "report", "--rollout", flags, "-o", str(made)]) == 0
    return made


def rows(html: str, heading: str) -> list[list[str]]:
    """The cells of the tables below a heading."""
    section = html.split(f">{heading}</h2>")[1].split("</section>")[0]
    found = [
        re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)
        for row in re.findall(r"<tr>(.*?)</tr>", section, re.DOTALL)
    ]
    return [[re.sub(r"<[^>]*>", "", cell).strip() for cell in row] for row in found]


def test_its_numbers_are_those_of_status_json(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    html = chromium(page(flags), "--dump-dom")
    capsys.readouterr()
    assert main(["rollout", "status", "--rollout", flags, "--json"]) == 0
    ledger = json.loads(capsys.readouterr().out)["ledger"]
    for path, *cells in rows(html, "Builds")[1:]:
        row = ledger["shipped"][path]
        counts = [row["builds"], row["apps"], row["failing"], row["results"]["fallback"], row["results"]["rescued"]]
        assert cells[:6] == [str(count) for count in [*counts, row["leaking"]]]
        assert cells[6:8] == [f"{row['seconds_median']:.1f} s", f"{row['seconds_p95']:.1f} s"]
    assert [row[1::2] for row in rows(html, "Share over time")[1:]] == [
        [str(count) for count in stretch["builds"].values()] for stretch in ledger["history"]
    ]
    for path, apps, well, share, low, high in rows(html, "Success by path")[1:]:
        row = ledger["shipped"][path]
        assert (apps, well, share) == (str(row["apps"]), str(row["well"]), f"{row['well'] / row['apps']:.1%}")
        assert [low, high] == [f"{bound:.1%}" for bound in row["well_bounds"]]
    assert rows(html, "Why builds fell back")[1:] == [[why, str(count)] for why, count in ledger["fallbacks"]]
    assert len(rows(html, "Why builds fell back")) > 1
    worst = [[one["app"], str(one["real"]), str(one["others"]), one["decision"]] for one in ledger["worst"]]
    assert rows(html, "Shadows: the worst differences")[1:] == worst != []


def test_the_history_has_every_build_once(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollout", "status", "--rollout", flags, "--json"]) == 0
    ledger = json.loads(capsys.readouterr().out)["ledger"]
    assert len(ledger["history"]) == 40
    for path, row in ledger["shipped"].items():
        assert sum(stretch["builds"][path] for stretch in ledger["history"]) == row["builds"]
        assert sum(stretch["failing"][path] for stretch in ledger["history"]) == row["failing"]


def test_it_is_one_file_that_asks_for_nothing(flags: str) -> None:
    html = page(flags).read_text()
    assert not re.search(r"(src|href|action)\s*=\s*[\"'](?!#)|url\(|@import|<script|<link|<iframe", html)
    assert "default-src 'none'" in html


def test_what_an_app_is_called_stays_text(flags: str) -> None:
    with Ledger(Path(flags).with_name("state")) as ledger:
        fleet = Fleet(apps=1, seed=1)
        _, built = fleet.build(lambda app, _: Decision(HOSTILE, SHADOW, "percentage"))
        for outcome in built:
            object.__setattr__(outcome, "fallback", HOSTILE)
            object.__setattr__(outcome, "result", "different" if outcome.shadow else "fallback")
            object.__setattr__(outcome, "diff", {"real": 999})
            object.__setattr__(outcome, "id", outcome.id + "x")
            object.__setattr__(outcome, "decision", HOSTILE)
            ledger.record(outcome)
    made = page(flags)
    text = made.read_text()
    assert "<script" not in text and "\x1b" not in text
    assert escape(HOSTILE[:-5], quote=False)[:20] in text
    html = chromium(made, "--dump-dom")
    assert "<title>Rollout:" in html and rows(html, "Shadows: the worst differences")[1][0].startswith(
        "&lt;script&gt;"
    )


def test_an_empty_ledger_has_a_page_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NSBUILD_ROLLOUT_STATE", str(tmp_path / "state"))
    html = page(str(tmp_path / "flags.json")).read_text()
    assert "cannot be read" in html and "Inconclusive" in html


def test_a_page_that_cannot_be_written_is_one_sentence(flags: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["rollout", "report", "--rollout", flags, "-o", "/nowhere/at/all.html"]) == 2
    assert "/nowhere/at/all.html cannot be written: No such file or directory." in capsys.readouterr().err


def test_light_and_dark_are_two_pictures(flags: str, tmp_path: Path) -> None:
    made = page(flags)
    screenshot(made, tmp_path / "light.png")
    screenshot(made, tmp_path / "dark.png", "--blink-settings=preferredColorScheme=0")
    light, dark = ((tmp_path / name).read_bytes() for name in ("light.png", "dark.png"))
    assert light[:4] == dark[:4] == b"\x89PNG" and light != dark


@pytest.mark.parametrize("scheme", ["1", "0"])
def test_axe_finds_nothing_to_complain_of(flags: str, tmp_path: Path, scheme: str) -> None:
    """Names, roles, headings, contrast in light and dark: axe-core's rules."""
    subprocess.run(["npm", "pack", "--silent", AXE], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
    archive = next(tmp_path.glob("axe-core-*.tgz"))
    axe = subprocess.run(
        ["tar", "-xOf", archive, "package/axe.min.js"], capture_output=True, text=True, check=True
    ).stdout
    made = page(flags)
    script = (
        "axe.run().then(r => { const e = document.createElement('pre'); e.id = 'axe'; e.textContent = JSON.stringify("
    )
    script += (
        "[r.passes.length, r.violations.map(v => [v.id, v.nodes.map(n => n.html)])]); document.body.append(e) })"
    )
    html = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", made.read_text())
    html = html.replace("<details>", "<details open>").replace(
        "</body>", f"<script>{axe}</script><script>{script}</script></body>"
    )
    made.write_text(html)
    seen = chromium(
        made, "--dump-dom", "--virtual-time-budget=20000", f"--blink-settings=preferredColorScheme={scheme}"
    )
    told = re.search(r'<pre id="axe">(.*?)</pre>', seen, re.DOTALL)
    assert told is not None
    passes, violations = json.loads(told[1])
    assert violations == [] and passes > 15


def test_wilsons_bounds() -> None:
    """Against the table of Newcombe 1998: 81 of 263, 15 of 148, 0 of 20, 1 of 29."""
    known = {
        (81, 263): (0.2553, 0.3662),
        (15, 148): (0.0624, 0.1605),
        (0, 20): (0.0, 0.1611),
        (1, 29): (0.0061, 0.1718),
    }
    for (hit, count), bounds in known.items():
        assert wilson(hit, count) == pytest.approx(bounds, abs=5e-5)
    assert wilson(0, 0) is None
