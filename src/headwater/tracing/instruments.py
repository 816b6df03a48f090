"""OpenTelemetry's metrics of GenAI clients that are recorded here, with the buckets that its conventions ask for.

Source: github.com/open-telemetry/semantic-conventions-genai, docs/gen-ai/gen-ai-metrics.md (status: Development).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from opentelemetry.metrics import Histogram, Meter

_SECONDS: Final = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
_AGENT_SECONDS: Final = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 204.8, 409.6)
_TOKENS: Final = tuple(4**power for power in range(14))


class Instruments:
    """The histograms of one meter."""

    def __init__(self, meter: Meter) -> None:
        def histogram(name: str, unit: str, buckets: Sequence[float], description: str) -> Histogram:
            return meter.create_histogram(name, unit, description, explicit_bucket_boundaries_advisory=buckets)

        self.chat = histogram("gen_ai.client.operation.duration", "s", _SECONDS, "How long a model's answer took.")
        self.first_chunk = histogram(
            "gen_ai.client.operation.time_to_first_chunk", "s", _SECONDS, "From the question to the first token."
        )
        self.tokens = histogram("gen_ai.client.token.usage", "{token}", _TOKENS, "Tokens in and out of models.")
        self.invoke_agent = histogram("gen_ai.invoke_agent.duration", "s", _AGENT_SECONDS, "How long agents ran.")
        self.execute_tool = histogram("gen_ai.execute_tool.duration", "s", _SECONDS, "How long tools ran.")
