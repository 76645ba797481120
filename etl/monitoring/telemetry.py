"""Whether OpenTelemetry is asked for; without that, nothing of it is imported."""

import os
from collections.abc import Mapping
from importlib.util import find_spec
from typing import TYPE_CHECKING, Final

from etl import log

if TYPE_CHECKING:
    from etl.monitoring.otel import Telemetry

_ENDPOINT: Final = "OTEL_EXPORTER_OTLP_ENDPOINT"
PROTOCOL: Final = "http/protobuf"


def start_telemetry(command: str) -> "Telemetry | None":
    """Telemetry of a command, if the standard variables ask for it and the extra is installed."""
    signals = wanted_signals(os.environ)
    if not signals or not is_installed():
        return None
    if problem := problem_of(os.environ):
        log.warning("telemetry_off", reason=problem)
        return None
    try:
        from etl.monitoring.otel import Telemetry  # noqa: PLC0415  # slow, and optional

        return Telemetry(command, signals)
    except Exception as error:  # noqa: BLE001  # whatever it is, it does not concern the run
        log.warning("telemetry_off", reason=log.name_of(error))
        return None


def is_installed() -> bool:
    """Whether the extra `otel` is installed."""
    try:
        return bool(
            find_spec("opentelemetry.sdk") and find_spec("opentelemetry.exporter.otlp.proto.http")
        )
    except ModuleNotFoundError:
        return False


def wanted_signals(environ: Mapping[str, str]) -> frozenset[str]:
    """`traces` and `metrics`, as far as the variables ask for them to be exported by OTLP."""
    if environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return frozenset()
    return frozenset(each for each in ("traces", "metrics") if _is_wanted(each.upper(), environ))


def problem_of(environ: Mapping[str, str]) -> str | None:
    """What the variables ask for and cannot have; None if all is well."""
    names = ("OTEL_EXPORTER_OTLP_PROTOCOL", *map(_protocol_of, ("TRACES", "METRICS")))
    wrong = (name for name in names if environ.get(name, PROTOCOL).strip() != PROTOCOL)
    return next((f"${name}: only {PROTOCOL} is supported" for name in wrong), None)


def _is_wanted(signal: str, environ: Mapping[str, str]) -> bool:
    exporters = environ.get(f"OTEL_{signal}_EXPORTER", "").lower().replace(" ", "").split(",")
    if exporters == [""]:
        # By default it is `otlp`, to this machine; but then every run would export.
        return bool(environ.get(_ENDPOINT) or environ.get(f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"))
    return "otlp" in exporters


def _protocol_of(signal: str) -> str:
    return f"OTEL_EXPORTER_OTLP_{signal}_PROTOCOL"
