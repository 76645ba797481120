"""What reports a run to the outside: pings, a metrics file, OpenTelemetry."""
