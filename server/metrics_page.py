"""The page of `GET /metrics`: what was counted, and what the server holds at this moment."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rwkv_core.cache import CacheStatistics, DiskStatistics, DiskTier
from rwkv_core.engine import EngineLoad
from server.loading.model_manager import LoadedModel
from server.metrics import ServerMetrics


def metrics_page(
    metrics: ServerMetrics, models: Sequence[LoadedModel], disk: DiskTier | None
) -> bytes:
    """In Prometheus's text format. Asks the index on disk, so it may take some milliseconds.

    What an engine has to do is looked at before what waits to be written. So where a model is idle
    and nothing waits, every state of its earlier requests is on disk.
    """
    loads = [(model, model.engine.load) for model in models]
    families = [*_of_models(loads), *_of_states(metrics.caches.statistics(), loads)]
    if disk is not None:
        families += _of_disk(disk.statistics())
    page = CollectorRegistry()
    page.register(_Families([*_counted(metrics), *_merged(families)]))
    return generate_latest(page)


class _Families(Collector):
    def __init__(self, families: Sequence[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def _counted(metrics: ServerMetrics) -> Iterator[Metric]:
    """Without the time at which each series began, which would double the page."""
    for family in metrics.registry.collect():
        family.samples = [each for each in family.samples if not each.name.endswith("_created")]
        yield family


_Loads = Sequence[tuple[LoadedModel, EngineLoad]]


def _of_models(loads: _Loads) -> Iterator[Metric]:
    yield GaugeMetricFamily("anser_loaded_models", "Models in memory.", len(loads))
    gauges: dict[str, tuple[str, Callable[[LoadedModel, EngineLoad], int]]] = {
        "weight_bytes": ("Memory of the weights.", lambda model, _: model.num_bytes),
        "slots": ("Requests that may run at once.", lambda _, load: load.num_slots),
        "slots_in_use": ("Requests that run.", lambda _, load: load.num_running),
        "queue_length": ("Requests that wait for a slot.", lambda _, load: load.num_waiting),
        "read_ahead_queue_length": (
            "Texts that are read when nothing else is to do.",
            lambda _, load: load.num_ahead,
        ),
        "engine_busy": ("1 while there is anything to do.", lambda _, load: not load.is_idle),
    }
    for name, (help, value) in gauges.items():
        family = GaugeMetricFamily(f"anser_{name}", help, labels=("model",))
        for model, load in loads:
            family.add_metric((model.stored.name.shortest,), value(model, load))
        yield family


def _of_states(cache: CacheStatistics, loads: _Loads) -> Iterator[Metric]:
    misses = cache.num_lookups - cache.num_memory_hits - cache.num_disk_hits
    yield _labelled(
        CounterMetricFamily,
        "anser_cache_lookups",
        "Lookups of a state for a text, by the tier that had the longest beginning of it.",
        "result",
        {"memory": cache.num_memory_hits, "disk": cache.num_disk_hits, "miss": misses},
    )
    yield CounterMetricFamily(
        "anser_cache_looked_up_tokens", "Tokens looked up.", value=cache.num_tokens_looked_up
    )
    yield CounterMetricFamily(
        "anser_cache_reused_tokens",
        "Tokens of them that need not be read.",
        value=cache.num_tokens_reused,
    )
    yield _evictions("memory", cache.num_evicted)
    yield _states("memory", cache.num_snapshots)
    in_slots = sum(load.num_running * model.state_bytes for model, load in loads)
    yield _state_bytes({"slots": in_slots, "memory": cache.num_bytes})
    yield _budget("memory", cache.budget)


def _of_disk(disk: DiskStatistics) -> Iterator[Metric]:
    yield _evictions("disk", disk.num_evicted)
    yield _states("disk", disk.num_snapshots)
    yield _state_bytes({"disk_queue": disk.num_queued_bytes, "disk": disk.num_bytes})
    yield _budget("disk", disk.budget)
    yield CounterMetricFamily(
        "anser_states_written", "States written to disk.", value=disk.num_written
    )
    yield CounterMetricFamily(
        "anser_states_dropped",
        "States not written, as too many waited or writing failed.",
        value=disk.num_dropped,
    )


def _evictions(tier: str, value: int) -> Metric:
    help = "States that had to go for others."
    return _labelled(CounterMetricFamily, "anser_cache_evictions", help, "tier", {tier: value})


def _states(tier: str, value: int) -> Metric:
    return _labelled(GaugeMetricFamily, "anser_states", "States kept.", "tier", {tier: value})


def _state_bytes(values: dict[str, int]) -> Metric:
    help = "Bytes of states: in memory for slots, memory and disk_queue, and in files for disk."
    return _labelled(GaugeMetricFamily, "anser_state_bytes", help, "tier", values)


def _budget(tier: str, value: int) -> Metric:
    help = "What the states of a tier may take, all models together."
    return _labelled(GaugeMetricFamily, "anser_state_budget_bytes", help, "tier", {tier: value})


def _labelled(
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily],
    name: str,
    help: str,
    label: str,
    values: dict[str, int],
) -> Metric:
    family = kind(name, help, labels=(label,))
    for label_value, value in values.items():
        family.add_metric((label_value,), value)
    return family


def _merged(families: Iterable[Metric]) -> list[Metric]:
    """One family of each name, with one sample for each of its labels.

    Two models have the same name while the old one is being replaced.
    """
    by_name: dict[str, Metric] = {}
    for family in families:
        by_name.setdefault(family.name, Metric(family.name, family.documentation, family.type))
        target = by_name[family.name]
        for sample in family.samples:
            same = next((each for each in target.samples if each.labels == sample.labels), None)
            if same is None:
                target.samples.append(sample)
            else:
                target.samples[target.samples.index(same)] = same._replace(
                    value=same.value + sample.value
                )
    return list(by_name.values())
