"""OpenTelemetry: a span for the run, each number and each request, and metrics of them.

Attributes follow the semantic conventions where there are some. None has a full phone number, an
id or the token. The endpoint, its headers and the like come from the standard variables.
"""

import logging
import re
import time
from collections.abc import Collection, Sequence
from functools import partial
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

from opentelemetry import context as otel_context
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader
from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.util.types import AttributeValue

from etl import __version__
from etl.api.models import Page
from etl.api.retry import TransientError
from etl.api.transport import PATH, Response, Transport
from etl.config import Api, PhoneNumber, Token
from etl.db.run_log import NumberOutcome, Record
from etl.errors import BusyError
from etl.monitoring.bounded import Bounded, ReportError
from etl.phone import shortened
from etl.sync.progress import Progress

Attributes = dict[str, AttributeValue]

_NUMBER = otel_context.create_key("linq-etl number")
_SECONDS = [0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30]
_CHANGES = ("inserted", "updated", "unchanged", "removed")


class Telemetry:
    """The telemetry of one command, from its start to `end`; exports what `signals` names."""

    def __init__(self, command: str, signals: Collection[str]) -> None:
        self._signals = signals
        resource = _resource()
        spans = [BatchSpanProcessor(OTLPSpanExporter())] if "traces" in signals else []
        readers = (
            [PeriodicExportingMetricReader(OTLPMetricExporter())] if "metrics" in signals else []
        )
        # Not the global providers: no library is to be measured.
        self._traces = TracerProvider(resource=resource, shutdown_on_exit=False)
        for each in spans:
            self._traces.add_span_processor(each)
        self._metrics = MeterProvider(readers, resource, shutdown_on_exit=False)
        self._tracer = self._traces.get_tracer("linq-etl", __version__)
        self._create_instruments()
        self._numbers: dict[str, Span] = {}
        self._labels: dict[str, str] = {}
        self._began = time.monotonic()
        self._attributes: Attributes = {"linq_etl.command": command}
        self._span = self._tracer.start_span(command, attributes=self._attributes)
        self._context = set_span_in_context(self._span)

    def _create_instruments(self) -> None:
        meter = self._metrics.get_meter("linq-etl", __version__)
        self._request_seconds = meter.create_histogram(
            "http.client.request.duration",
            "s",
            "Duration of requests to the API.",
            explicit_bucket_boundaries_advisory=_SECONDS,
        )
        self._requests = meter.create_counter("linq_etl.requests", "{request}", "Requests sent.")
        self._throttled = meter.create_counter(
            "linq_etl.throttled", "{request}", "Requests answered with 429."
        )
        self._chats = meter.create_counter("linq_etl.chats", "{chat}", "Chats by what was done.")
        self._run_seconds = meter.create_gauge("linq_etl.run.duration", "s", "Duration of the run.")

    def transport(self, config: Api) -> Transport:
        """A transport whose requests are measured."""
        return _MeasuredTransport(config, self)

    def progress(self, progress: Progress) -> Progress:
        """The progress, and a span for each number."""
        return _MeasuredProgress(progress, self)

    def name_numbers(self, numbers: Sequence[PhoneNumber]) -> None:
        """Note their labels."""
        self._labels = {number.e164: number.label for number in numbers if number.label}

    def start_number(self, phone_number: str) -> None:
        """Begin its span, in whose context the current task and those it starts go on.

        The context is never detached: it ends with the task or is replaced by the next number's,
        and the number may be ended by another task.
        """
        attributes: Attributes = {"linq_etl.number": self._name(phone_number)}
        span = self._tracer.start_span("sync number", self._context, attributes=attributes)
        context = set_span_in_context(span, self._context)
        otel_context.attach(otel_context.set_value(_NUMBER, attributes, context))
        self._numbers[phone_number] = span

    def end_number(self, outcome: NumberOutcome) -> None:
        """End its span, if it has one: a number that another run holds has none."""
        if outcome.phone_number not in self._numbers:
            return
        span = self._numbers.pop(outcome.phone_number)
        total = outcome.evidence.get("total_count")
        span.set_attributes(
            _without_none(
                {
                    "linq_etl.status": outcome.status,
                    "linq_etl.completeness": outcome.completeness,
                    "linq_etl.chats": total,
                    "linq_etl.requests": outcome.usage.requests,
                    "linq_etl.throttled": outcome.usage.throttled,
                    "error.type": outcome.error_kind,
                }
            )
        )
        if outcome.error_kind:
            span.set_status(Status(StatusCode.ERROR, outcome.error_kind))
        span.end()

    def start_request(self, template: str, attributes: Attributes) -> Span:
        """A span of a request, which counts for the current number, else for the run."""
        number = self._number_of_task()
        self._requests.add(1, number)
        context = otel_context.get_current() if number else self._context
        return self._tracer.start_span(
            f"GET {template}", context, kind=SpanKind.CLIENT, attributes=attributes
        )

    def end_request(self, span: Span, attributes: Attributes, seconds: float) -> None:
        """End it, with its status or error among the attributes."""
        span.set_attributes(attributes)
        if error := attributes.get("error.type"):
            span.set_status(Status(StatusCode.ERROR, str(error)))
        span.end()
        self._request_seconds.record(seconds, attributes)
        if attributes.get("http.response.status_code") == 429:
            self._throttled.add(1, self._number_of_task())

    def end(self, exit_code: int, kind: str | None, record: Record | None) -> list[Bounded]:
        """End the run's span and begin to export what has not been exported."""
        for span in self._numbers.values():
            span.set_status(Status(StatusCode.ERROR, kind))
            span.end()
        self._span.set_attribute("linq_etl.exit_code", exit_code)
        for number in (record or {}).get("numbers", ()):
            name = self._name(number["phone_number"])
            for change in _CHANGES:
                counted = {"linq_etl.number": name, "linq_etl.change": change}
                self._chats.add(number[f"chats_{change}"], counted)
        if record:
            self._span.set_attributes(
                {"linq_etl.run": record["id"], "linq_etl.status": record["status"]}
            )
        if exit_code not in {0, BusyError.exit_code}:
            error = kind or (record or {}).get("error_kind") or "partial"
            self._span.set_attribute("error.type", error)
            self._span.set_status(Status(StatusCode.ERROR, error))
        attributes = {**self._attributes, "linq_etl.exit_code": exit_code}
        self._run_seconds.set(time.monotonic() - self._began, attributes)
        self._span.end()
        return [
            Bounded("telemetry_not_sent", partial(_shut_down, provider), signal=signal)
            for signal, provider in (("traces", self._traces), ("metrics", self._metrics))
            if signal in self._signals
        ]

    def _name(self, phone_number: str) -> str:
        return self._labels.get(phone_number) or shortened(phone_number)

    def _number_of_task(self) -> Attributes:
        return otel_context.get_value(_NUMBER) or {}  # type: ignore[return-value]  # set above


class _MeasuredTransport(Transport):
    def __init__(self, config: Api, telemetry: Telemetry) -> None:
        super().__init__(config)
        self._telemetry = telemetry
        url = urlsplit(config.base_url)
        self._attributes: Attributes = {
            "http.request.method": "GET",
            "server.address": url.hostname or "",
            "server.port": url.port or (443 if url.scheme == "https" else 80),
        }

    async def get(self, token: Token, target: str) -> Response:
        template = template_of(target)
        attributes = {**self._attributes, "url.template": template}
        span = self._telemetry.start_request(template, attributes)
        began = time.monotonic()
        try:
            response = await super().get(token, target)
        except BaseException as error:
            kind = "no answer" if isinstance(error, TransientError) else type(error).__name__
            attributes["error.type"] = kind
            raise
        else:
            attributes["http.response.status_code"] = response.status
            if response.status >= 400:
                attributes["error.type"] = str(response.status)
            return response
        finally:
            self._telemetry.end_request(span, attributes, time.monotonic() - began)


# Not a subclass of Progress, so that an event added there is missed here by the type checker.
class _MeasuredProgress:
    def __init__(self, inner: Progress, telemetry: Telemetry) -> None:
        self._inner = inner
        self._telemetry = telemetry

    def __enter__(self) -> Self:
        self._inner.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool | None:
        return self._inner.__exit__(kind, error, trace)

    def run_started(self, run_id: int, numbers: Sequence[PhoneNumber]) -> None:
        self._telemetry.name_numbers(numbers)
        self._inner.run_started(run_id, numbers)

    def number_started(self, phone_number: str) -> None:
        self._telemetry.start_number(phone_number)
        self._inner.number_started(phone_number)

    def page_read(self, phone_number: str, page: Page) -> None:
        self._inner.page_read(phone_number, page)

    def number_ended(self, outcome: NumberOutcome) -> None:
        self._telemetry.end_number(outcome)
        self._inner.number_ended(outcome)

    def waiting(self, numbers: int) -> None:
        self._inner.waiting(numbers)

    def run_ended(self, record: Record) -> None:
        self._inner.run_ended(record)


def template_of(target: str) -> str:
    """The path of a request without phone number and ids."""
    return PATH + re.sub(r"/[0-9]+", "/{id}", target.partition("?")[0])


class _Failures(logging.Handler):
    """Whether the SDK logs a failure, whose text may hold the endpoint and more."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.any = False

    def emit(self, _: logging.LogRecord) -> None:
        self.any = True


def _shut_down(provider: TracerProvider | MeterProvider) -> None:
    """Export the rest. Raises ReportError if the SDK logs that something was not exported."""
    failures, logger = _Failures(), logging.getLogger("opentelemetry")
    logger.addHandler(failures)
    try:
        provider.shutdown()
    finally:
        logger.removeHandler(failures)
    if failures.any:
        raise ReportError("the collector did not take it")


def _resource() -> Resource:
    ours: Attributes = {"service.version": __version__}
    # What OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say goes before.
    if not OTELResourceDetector().detect().attributes.get(SERVICE_NAME):
        ours[SERVICE_NAME] = "linq-etl"
    return Resource.create(ours)


def _without_none(attributes: dict[str, AttributeValue | None]) -> Attributes:
    return {name: value for name, value in attributes.items() if value is not None}
