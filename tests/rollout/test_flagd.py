"""The flags file is flagd's: its own JavaScript library takes it by its published schemas, and answers as we do."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
from support.sites import TESTS

from nsbuild.rollout.decide import decide
from nsbuild.rollout.edit import Change, apply
from nsbuild.rollout.flags import FLAGS
from nsbuild.rollout.forms import percentage
from nsbuild.rollout.source import source_of

FLAGD = ("@openfeature/flagd-core@4.0.1", "@openfeature/core@1")
SCRIPT = """
const { FlagdCore, MemoryStorage } = require("@openfeature/flagd-core");
const asked = JSON.parse(require("fs").readFileSync(0));
const storage = new MemoryStorage();
try {
    storage.setConfigurations(asked.file, true);  // strictly: by the schemas of flags and of targeting
} catch (error) {
    console.log(JSON.stringify({ problem: error.message }));
    process.exit();
}
const core = new FlagdCore(storage);
const answers = asked.contexts.map(context => asked.flags.map(
    flag => storage.getFlag(flag) ? core.resolveStringEvaluation(flag, "", context).value : ""));
console.log(JSON.stringify({ problem: "", answers }));
"""


@pytest.fixture(scope="module")
def flagd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with flagd's library, from npm."""
    made = tmp_path_factory.mktemp("flagd")
    words = ["npm", "install", "--silent", "--no-audit", "--no-fund", "--ignore-scripts", *FLAGD]
    subprocess.run(words, cwd=made, check=True)
    return made


def told(flagd: Path, file: str, contexts: list[dict[str, Any]] | None = None) -> Any:
    asked = json.dumps({"file": file, "flags": list(FLAGS), "contexts": contexts or []})
    done = subprocess.run(["node", "-e", SCRIPT], cwd=flagd, input=asked, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


CHANGES = [
    Change(namespace=0),
    Change(namespace=500, shadow=2500, deny=["a", "b"], allow={"c": "namespace", "d": "shadow", "e": "direct"}),
    Change(forget=["a", "c"], expires="2100-01-01T00:00:00+01:00"),
    Change(namespace=10000, deny=["f"]),
]


def rules_of_the_docs() -> dict[str, Any]:
    text = (TESTS.parent / "docs/rollout.md").read_text()
    (found,) = re.findall(r'```json\n("nsbuild-rules".*?)```', text, re.DOTALL)
    rules: dict[str, Any] = json.loads("{" + found + "}")
    return rules


def test_what_set_writes_and_what_the_docs_show_is_flagds_and_answered_alike(flagd: Path, tmp_path: Path) -> None:
    file = tmp_path / "flags.json"
    apps = ["a", "b", "c", "d", "e", "f", *(f"app-{number}" for number in range(40))]
    attributes: list[dict[str, str | tuple[str, ...]]] = [
        {"stack": "heroku-20"},
        {"team": "red", "buildpacks": ("heroku/python",)},
        {"team": "red"},
        {},
    ]
    for number, change in enumerate(CHANGES):
        apply(str(file), change, "a test")
        if number == 2:
            document = json.loads(file.read_text())
            document["flags"] |= rules_of_the_docs()
            file.write_text(json.dumps(document))
        source = source_of(str(file), None)
        assert not source.problem
        contexts: list[dict[str, Any]] = []
        paths = []
        for app in apps:
            given = attributes[len(contexts) % len(attributes)]
            decision = decide(app, given, source)
            paths.append(decision.path)
            plain = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
            contexts.append({**plain, "app": app, "bucket": decision.bucket, "targetingKey": app})
        found = told(flagd, file.read_text(), contexts)
        assert found["problem"] == ""
        assert [next(filter(None, answers), "direct") for answers in found["answers"]] == paths
        assert len(set(paths)) > (1 if number else 0)


@pytest.mark.parametrize(
    "flag",
    [
        {**percentage(1, 2), "state": "ON"},
        {**percentage(1, 2), "targeting": {"starts_with": ["one argument"]}},
        {**percentage(1, 2), "variants": {"none": ["a list"]}},
    ],
)
def test_flagds_library_does_look(flagd: Path, flag: dict[str, Any]) -> None:
    assert told(flagd, json.dumps({"flags": {"nsbuild-percentage": flag}}))["problem"]
