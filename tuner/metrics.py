"""Prometheus metrics of a running driver, over HTTP at ``/metrics``.

The driver hands over a frozen :class:`~tuner.snapshot.Measured` some times a second, which is all that
it costs; text is made of it when somebody asks. Nothing in it is a parameter or a secret.
"""

from __future__ import annotations

from collections.abc import Iterable

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from storage.latency import BOUNDS
from tuner.errors import BadInput
from tuner.outcome import Reason
from tuner.snapshot import Measured

__all__ = ["Endpoint", "families"]

LOOPBACK = "127.0.0.1"


class Endpoint(Collector):
    """Serves what was last published, from a thread of its own.

    Args:
        host: address to listen on.
        port: 0 for one that is free.

    Attributes:
        port: where it listens.
        url: of the metrics.

    Raises:
        BadInput: the port is taken, or the address is none of this machine.

    Example:
        >>> endpoint = Endpoint("127.0.0.1", 0)
        >>> endpoint.url == f"http://127.0.0.1:{endpoint.port}/metrics"
        True
        >>> endpoint.close()
    """

    def __init__(self, host: str, port: int) -> None:
        if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port < 2**16:
            raise BadInput(f"metrics_port={port!r}: give a port from 0 (one that is free) to 65535")
        self._now: Measured | None = None
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise BadInput(
                f"metrics cannot be served at {host}:{port} ({error.strerror or error}): name another "
                "--metrics-port, 0 for one that is free, or another --metrics-host"
            ) from error
        shown = f"[{host}]" if ":" in host else host
        self.port = self._server.server_port
        self.url = f"http://{shown}:{self.port}/metrics"

    def publish(self, measured: Measured) -> None:
        """This is how the run is now."""
        self._now = measured

    def collect(self) -> Iterable[Metric]:
        """For the registry: the metrics, none before the run has begun."""
        return () if self._now is None else families(self._now)

    def close(self) -> None:
        """Stop to listen. Safe to call twice."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(timeout=5)


def families(now: Measured) -> Iterable[Metric]:
    """A run as Prometheus has it: names end in their unit, counters in ``_total``."""
    from tuner import __version__

    build = InfoMetricFamily("tuner_build", "The version of Tuner that drives the study", labels=["study"])
    build.add_metric([now.study], {"version": __version__})
    yield build
    states = _gauge("tuner_trials", "Trials of the study by state", "state")
    for state, count in now.states.items():
        states.add_metric([now.study, state.lower()], count)
    yield states
    outcomes = CounterMetricFamily(
        "tuner_attempts", "Attempts that ended in this run, by reason code", labels=["study", "outcome"]
    )
    for reason in Reason:
        outcomes.add_metric([now.study, reason], now.outcomes.get(reason, 0))
    yield outcomes
    reports = CounterMetricFamily("tuner_reports", "Reports received in this run", labels=["study"])
    reports.add_metric([now.study], now.reports)
    yield reports
    yield _commits(now)
    queues = _gauge(
        "tuner_queue_length",
        "What waits: writes (rows to be committed), retries (attempts whose moment has not come), "
        "resources (attempts without a place on the cluster), enqueued (trials that people asked for)",
        "queue",
    )
    for name, length in now.queues.items():
        queues.add_metric([now.study, name], length)
    yield queues
    plain = {
        "tuner_slots": ("Attempts that can run at once", now.slots),
        "tuner_slots_busy": ("Attempts that run", now.busy),
        "tuner_ranks_busy": ("Processes of the attempts that run", now.ranks),
        "tuner_gpus_busy": ("GPUs that the attempts that run hold", now.devices),
        "tuner_store_up": ("1 while the database can be reached, else 0", int(not now.away)),
        "tuner_trials_budget": ("Trials that were asked for", now.n_trials),
        "tuner_best_value": ("The best value of the single objective", now.best),
        "tuner_run_start_timestamp_seconds": ("When this run began", now.began),
        "tuner_driver_turn_timestamp_seconds": ("When the driver's loop last turned", now.at),
        "tuner_last_commit_timestamp_seconds": ("When the newest commit was", now.commits.last or None),
    }
    for name, (text, value) in plain.items():
        gauge = _gauge(name, text)
        if value is not None:
            gauge.add_metric([now.study], value)
            yield gauge


def _gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=["study", *labels])


def _commits(now: Measured) -> HistogramMetricFamily:
    family = HistogramMetricFamily(
        "tuner_commit_duration_seconds", "How long the commits of this run took", labels=["study"]
    )
    buckets, total = [], 0
    for bound, count in zip((*map(str, BOUNDS), "+Inf"), now.commits.counts, strict=True):
        total += count
        buckets.append((bound, float(total)))
    family.add_metric([now.study], buckets, sum_value=now.commits.seconds)
    return family
