"""What a server counts, in the form that Prometheus reads."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from emu.serving.admission import Admission

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class ServingMetrics:
    """Counters of one server.

    Args:
        admission: whose numbers are read when somebody asks.
    """

    def __init__(self, admission: Admission) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "emu_requests", "Requests by route and status of the reply.", ("route", "status"), registry=self._registry
        )
        self.seconds = Histogram(
            "emu_request_seconds",
            "From the first byte of a request to the last of its reply.",
            ("route",),
            buckets=SECONDS,
            registry=self._registry,
        )
        self.first_seconds = Histogram(
            "emu_first_row_seconds",
            "From the start of drawing to the first row of a picture.",
            buckets=SECONDS,
            registry=self._registry,
        )
        self.tokens = Counter(
            "emu_tokens", "Tokens of finished sequences, by kind.", ("kind",), registry=self._registry
        )
        self.cancelled = Counter(
            "emu_cancelled", "Requests whose client left or whose time was over.", registry=self._registry
        )
        for name, told, read in (
            ("emu_slots", "Sequences that are drawn at a time.", lambda: admission.slots),
            ("emu_sequences_inside", "Sequences that are drawn or wait.", lambda: admission.taken),
            ("emu_sequences_waiting", "Sequences that wait for a slot.", lambda: admission.waiting),
        ):
            Gauge(name, told, registry=self._registry).set_function(read)

    def text(self) -> bytes:
        """The page of all counters."""
        return generate_latest(self._registry)
