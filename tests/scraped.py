"""What `/metrics` says, read by prometheus-client's own parser: `numbers["headwater_readers", "transport=sse"]`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from prometheus_client.parser import text_string_to_metric_families as plain
from prometheus_client.samples import Sample

from asgi_client import Client


class Scraped:
    """One scrape. What is not in it is 0."""

    def __init__(self, text: str, *, as_openmetrics: bool = False) -> None:
        self.text = text
        self.families: list[Any] = list((openmetrics if as_openmetrics else plain)(text))

    @property
    def samples(self) -> Iterator[Sample]:
        for family in self.families:
            yield from family.samples

    def __getitem__(self, wanted: str | tuple[str, ...]) -> float:
        """The sum of all samples of this name that have these labels, each given as `name=value`."""
        name, *labels = [wanted] if isinstance(wanted, str) else wanted
        return sum(sample.value for sample in self.samples if sample.name == name and _has(sample.labels, labels))


def _has(labels: dict[str, str], wanted: Iterable[str]) -> bool:
    return all(labels.get(name) == value for name, _, value in (one.partition("=") for one in wanted))


async def scrape(client: Client, accept: str = "", **headers: str) -> Scraped:
    call = await client.ask("GET", "/metrics", accept=accept, **headers)
    assert call.status == 200, call.body
    return Scraped(call.text, as_openmetrics=call.headers["content-type"].startswith("application/openmetrics-text"))
