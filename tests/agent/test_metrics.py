from __future__ import annotations

import threading

import prometheus_client
from prometheus_client.parser import text_string_to_metric_families

from agent.errors import OriginMisbehaved, StoreFull
from agent.metrics import Metrics, metrics_table

PROMISED = {
    "headrace_read_bytes_total",
    "headrace_reads_total",
    "headrace_origin_bytes_total",
    "headrace_origin_requests_total",
    "headrace_fills_total",
    "headrace_fill_seconds",
    "headrace_errors_total",
    "headrace_store_bytes",
    "headrace_store_chunks",
    "headrace_holder_connected",
    "headrace_mounts",
    "headrace_opens_total",
    "headrace_waiting_reads",
    "headrace_fuse_requests_total",
    "headrace_prefetch_bytes_total",
    "headrace_build_info",
}


def test_every_promised_metric_is_declared() -> None:
    assert {metric.name for metric in Metrics("1").declared} >= PROMISED


def test_what_is_declared_is_what_is_registered_and_rendered() -> None:
    metrics = Metrics("1")
    families = {metric.name: metric for metric in metrics.registry.collect()}
    for declared in metrics.declared:
        family = families[declared.name.removesuffix("_total").removesuffix("_info")]
        assert family.documentation == declared.help
    assert len(families) == len(metrics.declared)


def test_what_is_counted_is_rendered_for_prometheus() -> None:
    metrics = Metrics("1.2.3")
    metrics.read_bytes_origin.inc(4096)
    metrics.missed()
    metrics.hit(512)
    metrics.origin_fetches("s3://").requests.inc()
    metrics.origin_metadata_requests("s3://").inc(3)
    metrics.store_bytes.labels("/var/lib/headrace").set(1 << 30)
    metrics.fill_seconds.observe(0.2)
    counters = metrics.counters()
    assert counters['headrace_read_bytes_total{source="origin"}'] == 4096
    assert counters['headrace_read_bytes_total{source="store"}'] == 512
    assert counters['headrace_reads_total{result="miss"}'] == 1
    assert counters['headrace_reads_total{result="hit"}'] == 1
    assert counters['headrace_fuse_requests_total{opcode="read"}'] == 2
    assert counters['headrace_origin_requests_total{kind="metadata",origin="s3://"}'] == 3
    assert counters['headrace_store_bytes{directory="/var/lib/headrace"}'] == 1 << 30
    assert counters['headrace_build_info{version="1.2.3"}'] == 1
    parsed = {
        sample.name: sample.value
        for family in text_string_to_metric_families(metrics.render().decode())
        for sample in family.samples
    }
    assert parsed["headrace_fill_seconds_count"] == 1


def test_errors_are_counted_by_their_class() -> None:
    metrics = Metrics("1")
    metrics.count_error(OriginMisbehaved("short"))
    metrics.count_error(OriginMisbehaved("short again"))
    metrics.count_error(StoreFull("full"))
    assert metrics.counters()['headrace_errors_total{class="OriginMisbehaved"}'] == 2
    assert metrics.counters()['headrace_errors_total{class="StoreFull"}'] == 1


def test_two_agents_in_one_process_do_not_mix_and_leave_the_global_registry_alone() -> None:
    first, second = Metrics("1"), Metrics("1")
    first.mounts.set(3)
    assert second.counters()["headrace_mounts"] == 0
    assert not [m for m in prometheus_client.REGISTRY.collect() if m.name.startswith("headrace")]


def test_counting_in_threads_loses_nothing() -> None:
    metrics = Metrics("1")

    def count() -> None:
        for _ in range(5000):
            metrics.hit(2)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert metrics.counters()['headrace_read_bytes_total{source="store"}'] == 40_000


def test_the_table_has_one_line_for_each_metric() -> None:
    lines = metrics_table().splitlines()[2:]
    assert len(lines) == len(Metrics("1").declared)
    assert any("`headrace_read_bytes_total` | counter | `source` (origin, store)" in line for line in lines)
