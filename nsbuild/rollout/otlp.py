"""The same gauges for an OpenTelemetry collector, once. Never in a process that launches: it starts threads."""

from __future__ import annotations

import logging
import platform

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader, MetricExportResult
from opentelemetry.sdk.resources import Resource

import nsbuild
from nsbuild.errors import Refused
from nsbuild.rollout.metrics import families
from nsbuild.rollout.status import Status

_TIMEOUT = 10
"""Seconds, its attempts together."""


def send(status: Status, url: str) -> None:
    """Send every gauge to the collector whose metrics are taken at `url` (`http://host:4318/v1/metrics`).

    Raises Refused when it does not take them.
    """
    # What went wrong is said here, in one sentence.
    logging.getLogger("opentelemetry").addHandler(logging.NullHandler())
    reader = InMemoryMetricReader()
    resource = Resource({"service.name": "nsbuild", "host.name": platform.node()})
    provider = MeterProvider([reader], resource=resource, shutdown_on_exit=False)
    meter = provider.get_meter("nsbuild", nsbuild.__version__)
    for name, about, samples in families(status):
        gauge = meter.create_gauge(f"nsbuild.rollout.{name}", description=about)
        for labels, value in samples:
            gauge.set(value, dict(labels))
    data = reader.get_metrics_data()
    exporter = OTLPMetricExporter(endpoint=url, timeout=_TIMEOUT)
    try:
        taken = data is not None and exporter.export(data) is MetricExportResult.SUCCESS
    except Exception as error:  # requests', for a URL that is none
        raise Refused(f"{url} has not taken the metrics: {error}.") from None
    finally:
        exporter.shutdown()
        provider.shutdown()
    if not taken:
        raise Refused(f"{url} has not taken the metrics.", "Is it a collector's http://HOST:4318/v1/metrics?")
