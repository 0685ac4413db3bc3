"""Providers that the configuration names: OpenFeature's in-memory one, and flagd's own over loopback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
from google.protobuf.json_format import MessageToDict
from openfeature.contrib.tools.flagd.core.flagd_core import FlagdCore
from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import OpenFeatureError
from openfeature.schemas.protobuf.flagd.evaluation.v2 import evaluation_pb2, evaluation_pb2_grpc
from rollout.files import document, flag, members, share

from nsbuild.rollout import choose, provider

MEMORY = """
import os, sys, threading, time
from openfeature.provider.in_memory_provider import InMemoryFlag, InMemoryProvider

def made():
    print("noise")
    threading.Thread(target=time.sleep, args=(600,)).start()
    return InMemoryProvider({
        "nsbuild-deny": InMemoryFlag("no", {"no": "", "yes": "direct"}),
        "nsbuild-percentage": InMemoryFlag("all", {"all": "shadow"}),
    })

def odd():
    return InMemoryProvider({"nsbuild-allow": InMemoryFlag("a", {"a": "upwards"})})

def fails():
    raise RuntimeError("no\\nway")

def waits():
    time.sleep(600)

def dies():
    os._exit(3)
"""


@pytest.fixture(autouse=True)
def configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("NSBUILD_ROLLOUT_KILL", raising=False)
    (tmp_path / "memory.py").write_text(MEMORY)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(provider, "LONGEST", 60.0)  # a busy host takes its time to start a Python
    (tmp_path / "config/nsbuild").mkdir(parents=True)
    return tmp_path / "config/nsbuild/nsbuild.toml"


def test_another_provider_can_be_named(tmp_path: Path, configuration: Path) -> None:
    configuration.write_text('[rollout]\nprovider = "memory:made"\n')
    decision = choose(str(tmp_path / "unused.json"), "shop", {})
    assert (decision.path, decision.reason, decision.problem, decision.bucket) == ("shadow", "percentage", "", 8097)
    assert [step.why for step in decision.steps if step.name == "allow"] == ["there is no flag nsbuild-allow"]


def test_its_threads_are_not_ours(tmp_path: Path, configuration: Path) -> None:
    """A launch cannot be cloned with threads alive. In a process of its own: gRPC's come and go in this one."""
    configuration.write_text('[rollout]\nprovider = "memory:made"\n')
    code = (
        "import os, sys; from nsbuild.rollout import choose;"
        "print(choose(sys.argv[1], 'shop', {}).path, len(os.listdir('/proc/self/task')))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "unused.json")],
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout == "shadow 1\n"


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ('"memory:fails"', "memory:fails of nsbuild.toml: no way."),
        ('"memory:dies"', "it ended with 3"),
        ('"memory:waits"', "has not answered for"),
        ('"memory:odd"', "its variant 'a' is no path"),
        ('"nowhere_at_all:x"', "No module named"),
        ('"memory"', "the provider memory of nsbuild.toml"),
        ("3", "is not a text"),
    ],
)
def test_a_provider_that_cannot_be_asked_is_direct_and_said(
    tmp_path: Path, configuration: Path, monkeypatch: pytest.MonkeyPatch, name: str, sentence: str
) -> None:
    if "waits" in name:
        monkeypatch.setattr(provider, "LONGEST", 1.0)
    configuration.write_text(f"[rollout]\nprovider = {name}\n")
    decision = choose(str(tmp_path / "unused.json"), "shop", {})
    assert (decision.path, decision.reason) == ("direct", "trouble")
    assert sentence in decision.problem and "\n" not in decision.problem


class Flagd(evaluation_pb2_grpc.ServiceServicer):
    """What flagd's provider asks of a flagd: the stream of events, and a string."""

    def __init__(self, flags: dict[str, Any]) -> None:
        self._core = FlagdCore()
        self._core.set_flags(json.dumps(flags))

    def EventStream(self, request: Any, context: Any) -> Iterator[Any]:  # noqa: N802
        ended = threading.Event()
        context.add_callback(ended.set)
        yield evaluation_pb2.EventStreamResponse(type="provider_ready")
        ended.wait()

    def ResolveString(self, request: Any, context: Any) -> Any:  # noqa: N802
        attributes = MessageToDict(request.context)
        key = attributes.pop("targetingKey", None)
        try:
            found = self._core.resolve_string_value(request.flag_key, "", EvaluationContext(key, attributes))
        except OpenFeatureError as error:
            context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        return evaluation_pb2.ResolveStringResponse(
            value=found.value, variant=found.variant or "", reason=str(found.reason)
        )


@pytest.fixture
def flagd(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    content = document(deny=members(["bad"], "denied"), percentage=share(9000, 10_000))
    content["flags"]["nsbuild-rules"] = flag({"if": [{"in": ["py", {"var": "buildpacks"}]}, "direct", "none"]})
    server = grpc.server(ThreadPoolExecutor(max_workers=4))
    evaluation_pb2_grpc.add_ServiceServicer_to_server(cast(Any, Flagd)(content), server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("FLAGD_HOST", "127.0.0.1")
    monkeypatch.setenv("FLAGD_PORT", str(port))
    monkeypatch.setenv("FLAGD_DEADLINE_MS", "30000")
    yield
    server.stop(0).wait()


def test_flagd_itself_is_asked_over_loopback(tmp_path: Path, configuration: Path, flagd: None) -> None:
    configuration.write_text('[rollout]\nprovider = "openfeature.contrib.provider.flagd:FlagdProvider"\n')
    asked = {
        app: choose(str(tmp_path / "unused.json"), app, {"buildpacks": buildpacks})
        for app, buildpacks in [("shop", ()), ("bad", ()), ("snake", ("py",))]
    }
    assert {app: (decision.path, decision.reason, decision.problem) for app, decision in asked.items()} == {
        "shop": ("namespace", "percentage", ""),
        "bad": ("direct", "deny", ""),
        "snake": ("direct", "rule", ""),
    }
    assert "openfeature.contrib.provider.flagd" not in sys.modules, "its threads would be this process's"


def test_a_flagd_that_is_not_there_is_direct_and_said(
    tmp_path: Path, configuration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLAGD_HOST", "127.0.0.1")
    monkeypatch.setenv("FLAGD_PORT", "1")
    configuration.write_text('[rollout]\nprovider = "openfeature.contrib.provider.flagd:FlagdProvider"\n')
    decision = choose(str(tmp_path / "unused.json"), "shop", {})
    assert (decision.path, decision.reason) == ("direct", "trouble")
    assert "Blocking init finished before data synced" in decision.problem
