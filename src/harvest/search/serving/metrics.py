"""What the service counts, for Prometheus. Nothing here tells what was asked."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from harvest.search.results import Stats

_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Metrics:
    """Counters of one service."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "harvest_requests",
            "Requests answered, by route and status",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.seconds = Histogram(
            "harvest_request_seconds",
            "Time to the end of an answer",
            ["route"],
            buckets=_BUCKETS_S,
            registry=self.registry,
        )
        self.searches = Counter(
            "harvest_searches",
            "Searches, by what was asked with and whether it is there",
            ["kind", "is_there"],
            registry=self.registry,
        )
        self.refused = Counter(
            "harvest_refused", "Requests refused because too many waited", ["lane"], registry=self.registry
        )
        self.waiting = Gauge(
            "harvest_waiting", "Requests at work or waiting for it", ["lane"], registry=self.registry
        )
        self._library = {
            "videos": Gauge("harvest_library_videos", "Videos in the library", registry=self.registry),
            "moments": Gauge("harvest_library_moments", "Moments in the library", registry=self.registry),
            "duration_s": Gauge(
                "harvest_library_seconds", "Seconds of video in the library", registry=self.registry
            ),
            "broken": Gauge("harvest_library_broken", "Files in quarantine", registry=self.registry),
        }

    def note(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        known = method if method in ("GET", "HEAD", "POST", "DELETE") else "other"
        self.requests.labels(known, route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def page(self, stats: Stats) -> bytes:
        """All of it in Prometheus' text format."""
        for name, gauge in self._library.items():
            gauge.set(getattr(stats, name))
        return generate_latest(self.registry)
