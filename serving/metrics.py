"""What Prometheus reads at /metrics."""

from __future__ import annotations

import resource

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from ..engine.upscaler import Stats
from .jobs import Job, Jobs

# Seconds of one job: a thumbnail on a GPU to a large picture on a CPU.
_BUCKETS = (0.1, 0.3, 1, 3, 10, 30, 100, 300, 1000)


class Metrics:
    """The counters of one server."""

    def __init__(self) -> None:
        registry = self._registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter("amsa_requests", "HTTP requests", ("method", "path", "status"), registry=registry)
        self._jobs = Counter("amsa_jobs", "Jobs that ended", ("outcome",), registry=registry)
        for outcome in ("done", "failed", "timeout", "cancelled"):
            self._jobs.labels(outcome)  # a rate needs the zero before the first
        self._job_seconds = Histogram("amsa_job_seconds", "Seconds of jobs that were done", buckets=_BUCKETS, registry=registry)
        self._stage_seconds = Counter("amsa_stage_seconds", "Seconds spent in each stage", ("stage",), registry=registry)
        self._pixels = Counter("amsa_result_pixels", "Pixels of the pictures made", registry=registry)
        memory = Gauge("amsa_peak_memory_bytes", "Most memory the server has held", registry=registry)
        memory.set_function(lambda: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)

    def watch(self, jobs: Jobs) -> None:
        """Read from it at every scrape."""
        for name, text, value in (
            ("queue_length", "Jobs that wait", lambda: jobs.waiting),
            ("running", "Jobs that are worked on", lambda: jobs.running),
            ("kept_bytes", "Results that wait to be fetched", lambda: jobs.kept),
        ):
            Gauge(f"amsa_{name}", text, registry=self._registry).set_function(value)

    def request(self, method: str, path: str, status: int) -> None:
        """Count an answer. `path` is a route's, so that there are few."""
        self._requests.labels(method, path, str(status)).inc()

    def job(self, job: Job) -> None:
        """Count a job that ended."""
        self._jobs.labels(job.outcome).inc()
        if job.outcome == "done":
            self._job_seconds.observe(job.seconds())

    def picture(self, stats: Stats, pixels: int) -> None:
        """Count a picture that was made."""
        for stage, seconds in stats.seconds.items():
            self._stage_seconds.labels(stage).inc(seconds)
        self._pixels.inc(pixels)

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self._registry)
