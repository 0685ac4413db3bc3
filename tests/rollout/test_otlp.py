"""The metrics for an OpenTelemetry collector: one of the test's own, over loopback."""

from __future__ import annotations

import gzip
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from rollout.test_cli import Capture, flags, run
from rollout.test_summary import fill

__all__ = ["flags"]


class Collector(BaseHTTPRequestHandler):
    taken: list[Any]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/v1/metrics":
            self.send_response(404)
        else:
            data = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
            self.taken.append(ExportMetricsServiceRequest.FromString(data))
            self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[tuple[str, list[Any]]]:
    handler = type("Handler", (Collector,), {"taken": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", handler.taken  # type: ignore[attr-defined]
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_collector_gets_the_numbers_of_status(
    flags: str, tmp_path: Path, collector: tuple[str, list[Any]], capsys: Capture
) -> None:
    url, taken = collector
    fill(tmp_path / "state")
    assert run("set", "--rollout", flags, "--namespace", "5", "--why", "x") == 0
    capsys.readouterr()
    assert run("status", "--rollout", flags, "--json") == 0
    told = json.loads(capsys.readouterr().out)["ledger"]
    assert run("metrics", "--rollout", flags, "--otlp", f"{url}/v1/metrics") == 0
    assert capsys.readouterr() == ("", "")
    [request] = taken
    values = {
        (metric.name, *sorted(label.value.string_value for label in point.attributes)): point.as_double
        or point.as_int
        for resource in request.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
        for point in metric.gauge.data_points
    }
    assert values[("nsbuild.rollout.share", "namespace")] == 0.05
    for path, row in told["shipped"].items():
        assert values[("nsbuild.rollout.apps", path)] == row["apps"]
        for result, count in row["results"].items():
            assert values[("nsbuild.rollout.builds", *sorted((path, result)))] == count
    names = {label.key: label.value.string_value for label in request.resource_metrics[0].resource.attributes}
    assert names["service.name"] == "nsbuild"


@pytest.mark.parametrize("where", ["/elsewhere", None])
def test_what_is_no_collector_is_said(
    flags: str, collector: tuple[str, list[Any]], capsys: Capture, where: str | None
) -> None:
    url = f"{collector[0]}{where}" if where else "no-url"
    assert run("metrics", "--rollout", flags, "--otlp", url) == 125
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1
    assert f"{url} has not taken the metrics" in err
