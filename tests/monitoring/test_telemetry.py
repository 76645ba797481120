"""OpenTelemetry: what a collector gets, that nothing private is in it, and what it costs."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import (
    ExportMetricsServiceRequest,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from etl.cli.monitor import SECONDS
from etl.monitoring.otel import template_of
from etl.monitoring.telemetry import problem_of, wanted_signals
from etl.sandbox import Sandbox, build_world
from etl.sandbox.faults import Faults
from tests.support.command import (
    CLOSED_PORT,
    A,
    B,
    HoldingSandbox,
    call,
    ended,
    environment,
    linq_etl,
    running,
    wait_until,
)
from tests.support.receiver import Receiver, Reply

pytestmark = pytest.mark.slow  # Each test starts a process.

URL = "sqlite:///linq.db"
SECRET = "collector-key-4f9a"
Span = dict[str, Any]


def exporting(api: Sandbox | str, collector: str, **others: str) -> dict[str, str]:
    variables = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector,
        "OTEL_EXPORTER_OTLP_HEADERS": f"api-key={SECRET}",
    }
    return environment(api, URL, **variables | others)


def spans_of(collector: Receiver) -> list[Span]:
    """Every span, with its attributes as a dictionary."""
    return [
        {**span, "attributes": _attributes(span)}
        for request in collector.received
        if request.target.endswith("/v1/traces")
        for resource in _decoded(ExportTraceServiceRequest(), request.body)["resourceSpans"]
        for scope in resource["scopeSpans"]
        for span in scope["spans"]
    ]


def points_of(collector: Receiver) -> dict[str, list[tuple[dict[str, Any], Any]]]:
    """Every point of every metric: its attributes, and its value or how many values it sums up."""
    found: dict[str, list[tuple[dict[str, Any], Any]]] = {}
    for request in collector.received:
        if not request.target.endswith("/v1/metrics"):
            continue
        for resource in _decoded(ExportMetricsServiceRequest(), request.body)["resourceMetrics"]:
            for scope in resource["scopeMetrics"]:
                for metric in scope["metrics"]:
                    data = next(metric[k] for k in ("sum", "gauge", "histogram") if k in metric)
                    for point in data["dataPoints"]:
                        value = next(
                            float(point[k]) for k in ("asInt", "asDouble", "count") if k in point
                        )
                        found.setdefault(metric["name"], []).append((_attributes(point), value))
    return found


def _decoded(message: Any, body: bytes) -> dict[str, Any]:
    message.ParseFromString(body)
    decoded: dict[str, Any] = MessageToDict(message)
    return decoded


def _attributes(owner: Mapping[str, Any]) -> dict[str, Any]:
    return {
        each["key"]: next(iter(each["value"].values()), None)
        for each in owner.get("attributes", ())
    }


def sums(points: list[tuple[dict[str, Any], Any]], key: str) -> dict[str, float]:
    """The values added up by one attribute."""
    found: dict[str, float] = {}
    for attributes, value in points:
        found[attributes[key]] = found.get(attributes[key], 0) + value
    return found


# What is sent


def test_a_sync_is_a_trace() -> None:
    """The run holds its numbers, and a number its requests, named by the conventions."""
    with Receiver() as collector, Sandbox(build_world(chats_per_number=20)) as sandbox:
        done = linq_etl("sync", env=exporting(sandbox, collector.url, LINQ_ETL_API__PER_PAGE="5"))
        port = sandbox.url.rpartition(":")[2]
    assert (done.code, "telemetry" in done.stderr) == (0, False)
    spans = spans_of(collector)
    (run,) = [span for span in spans if "parentSpanId" not in span]
    numbers = [span for span in spans if span.get("parentSpanId") == run["spanId"]]
    requests = [span for span in spans if span["kind"] == "SPAN_KIND_CLIENT"]
    assert (run["name"], run["attributes"]["linq_etl.status"]) == ("sync", "succeeded")
    assert {span["attributes"]["linq_etl.number"] for span in numbers} == {"…4472", "…0100"}
    assert {span["attributes"]["linq_etl.completeness"] for span in numbers} == {"consistent"}
    assert {span["parentSpanId"] for span in requests} == {span["spanId"] for span in numbers}
    assert len({span["traceId"] for span in spans}) == 1
    assert len(requests) >= 8
    first = requests[0]
    assert first["name"] == "GET /api/partner/v2/chats"
    assert first["attributes"] == {
        "http.request.method": "GET",
        "server.address": "127.0.0.1",
        "server.port": port,
        "url.template": "/api/partner/v2/chats",
        "http.response.status_code": "200",
    }


def test_a_sync_has_metrics() -> None:
    """Requests, throttles, chats and durations; numbers by label or last digits."""
    faults = Faults(rate_limit=3)
    with (
        Receiver() as collector,
        Sandbox(build_world(chats_per_number=20), faults=faults) as sandbox,
    ):
        env = exporting(sandbox, collector.url, LINQ_ETL_API__PER_PAGE="4")
        done = linq_etl("sync", "--json", env=env)
    points = points_of(collector)
    assert done.code == 0
    assert (
        sum(sums(points["linq_etl.requests"], "linq_etl.number").values()) == done.data["requests"]
    )
    throttled = sums(points.get("linq_etl.throttled", []), "linq_etl.number")
    assert sum(throttled.values()) == done.data["throttled"] > 0
    chats = sums(points["linq_etl.chats"], "linq_etl.change")
    assert chats["inserted"] == done.data["chats_inserted"]
    assert [
        attributes["linq_etl.command"] for attributes, _ in points["linq_etl.run.duration"]
    ] == ["sync"]
    durations = sums(points["http.client.request.duration"], "http.request.method")
    assert durations["GET"] == done.data["requests"]


def test_a_run_that_fails() -> None:
    """Its span has the kind of error, and so has that of the request."""
    with Receiver() as collector, Sandbox(build_world(chats_per_number=5)) as sandbox:
        env = exporting(sandbox, collector.url, LINQ_INTEGRATION_TOKEN="stale")
        assert linq_etl("sync", env=env).code == 4
    spans = {span["name"]: span for span in spans_of(collector)}
    for name, error in (("sync", "token"), ("GET /api/partner/v2/chats", "401")):
        assert spans[name]["status"]["code"] == "STATUS_CODE_ERROR"
        assert spans[name]["attributes"]["error.type"] == error


def test_a_run_without_a_database() -> None:
    """The run has a span although it has no row."""
    with Receiver() as collector:
        env = exporting(CLOSED_PORT, collector.url)
        env["LINQ_ETL_DATABASE__URL"] = "sqlite:////no/such/folder/linq.db"
        assert linq_etl("sync", env=env).code == 6
    (span,) = spans_of(collector)
    assert (span["name"], span["attributes"]["error.type"]) == ("sync", "database")


def test_an_interrupted_run() -> None:
    """Its spans are sent before the process ends."""
    holding = HoldingSandbox(build_world(chats_per_number=5), answers=0)
    with (
        Receiver() as collector,
        holding as sandbox,
        running("sync", env=exporting(sandbox, collector.url)) as process,
    ):
        wait_until(sandbox.holding.is_set, process)
        process.terminate()
        assert ended(process).code == 143
    spans = {span["name"]: span["attributes"] for span in spans_of(collector)}
    assert spans["sync"]["error.type"] == "interrupted"
    assert "sync number" in spans


def test_nothing_private_is_sent() -> None:
    """No full number, no chat's id or name, no token, also not in a second sync that confirms."""
    with Receiver() as collector, Sandbox(build_world(chats_per_number=20)) as sandbox:
        env = exporting(sandbox, collector.url)
        assert linq_etl("sync", env=env).code == 0
        with sandbox.lock:
            gone = max(sandbox.world.listing(A))  # An id of few digits can occur by chance.
            sandbox.world.delete(gone)
        assert linq_etl("sync", env=env).code == 0
        names = [sandbox.world.chat(chat).get("display_name") for chat in sandbox.world.listing(A)]
    spans = spans_of(collector)
    assert "GET /api/partner/v2/chats/{id}" in {span["name"] for span in spans}
    sent = b"".join(request.body for request in collector.received)
    for private in (A[1:], B[1:], "sandbox-token", "linq.db", str(gone), SECRET, *names):
        assert not private or private.encode() not in sent


def test_the_standard_variables_apply() -> None:
    """The name of the service, the headers, and each signal's own endpoint."""
    with Receiver() as collector, Receiver() as other, Sandbox(build_world()) as sandbox:
        env = exporting(
            sandbox,
            collector.url,
            OTEL_SERVICE_NAME="chats",
            OTEL_EXPORTER_OTLP_METRICS_ENDPOINT=f"{other.url}/here/v1/metrics",
        )
        assert linq_etl("sync", env=env).code == 0
    assert set(collector.targets) == {"/v1/traces"}
    assert set(other.targets) == {"/here/v1/metrics"}
    assert {request.headers["api-key"] for request in collector.received} == {SECRET}
    assert b"chats" in collector.received[0].body


# Collectors that are broken


@pytest.fixture(params=["dead", "hanging", "refusing"])
def broken(request: pytest.FixtureRequest) -> Iterator[str]:
    """A collector's URL."""
    if request.param == "dead":
        yield CLOSED_PORT
        return
    reply = Reply(after=threading.Event()) if request.param == "hanging" else Reply(400)
    with Receiver(reply) as collector:
        yield collector.url


def test_a_broken_collector(broken: str) -> None:
    """The run succeeds, ends within seconds, and warns without a stack, an address or a secret."""
    with Sandbox(build_world(chats_per_number=5)) as sandbox:
        began = time.monotonic()
        done = linq_etl("sync", env=exporting(sandbox, broken))
        seconds = time.monotonic() - began
    assert (done.code, done.stdout) == (0, "")
    assert seconds < SECONDS + 15  # of which the sync, on a busy machine, has most
    assert done.stderr.count("warning telemetry_not_sent") == 2
    assert all(line[:4].isdigit() for line in done.stderr.splitlines())
    for private in (SECRET, "127.0.0.1", "http:", "File"):
        assert private not in done.stderr


# Whether it is asked for


@pytest.mark.parametrize(
    ("variables", "signals"),
    [
        ({}, set()),
        ({"OTEL_SERVICE_NAME": "x"}, set()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, {"traces", "metrics"}),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://c:4318/v1/traces"}, {"traces"}),
        ({"OTEL_METRICS_EXPORTER": "otlp"}, {"metrics"}),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, {"metrics"}),
        ({"OTEL_TRACES_EXPORTER": "console, otlp"}, {"traces"}),
        ({"OTEL_TRACES_EXPORTER": "console"}, set()),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "true"}, set()),
    ],
)
def test_which_signals_are_asked_for(variables: dict[str, str], signals: set[str]) -> None:
    """An endpoint asks for both, an exporter for its own, and OTEL_SDK_DISABLED for none."""
    assert wanted_signals(variables) == signals


def test_without_variables_nothing_is_imported() -> None:
    """Nor is what pings and metrics need, without their settings."""
    script = (
        "import sys; from etl.cli.main import run; code = run(['sync']);"
        "heavy = [m for m in sys.modules if m.startswith(('opentelemetry', 'prometheus_client'))];"
        "sys.exit(heavy or code)"
    )
    with Sandbox(build_world(chats_per_number=1)) as sandbox:
        ran = subprocess.run(
            [sys.executable, "-c", script], env=environment(sandbox, URL), check=False
        )
    assert ran.returncode == 0


def test_another_protocol_is_not_supported() -> None:
    """A warning, and the run goes on; check says the same."""
    with Sandbox(build_world(chats_per_number=1)) as sandbox:
        env = exporting(sandbox, CLOSED_PORT, OTEL_EXPORTER_OTLP_PROTOCOL="grpc")
        done, checked = call("sync", env=env), call("check", env=env)
    reason = "$OTEL_EXPORTER_OTLP_PROTOCOL: only http/protobuf is supported"
    assert (done.code, checked.code) == (0, 2)
    assert f'warning telemetry_off reason="{reason}"' in done.stderr
    assert checked.stdout.splitlines()[-1] == f"FAIL  telemetry {reason}"
    assert problem_of({}) is None


def test_check_names_the_signals() -> None:
    """It sends nothing."""
    with Receiver() as collector, Sandbox(build_world(chats_per_number=1)) as sandbox:
        checked = call("check", env=exporting(sandbox, collector.url))
    assert (checked.code, collector.received) == (0, [])
    assert checked.stdout.splitlines()[-1] == (
        "ok    telemetry metrics and traces go to the collector; nothing was sent"
    )


@pytest.mark.parametrize(
    ("target", "template"),
    [
        ("/chats?phone_number=13343284472&page=2", "/api/partner/v2/chats"),
        ("/chats/1234567", "/api/partner/v2/chats/{id}"),
        ("/phone_numbers", "/api/partner/v2/phone_numbers"),
    ],
)
def test_a_template_has_neither_number_nor_id(target: str, template: str) -> None:
    """It is what traces and metrics are grouped by."""
    assert template_of(target) == template
