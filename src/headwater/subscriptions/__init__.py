"""Subscriptions (Durable Streams 6, 7): whoever works on streams is woken when there is something to do.

    async with Subscriptions(streams) as subscriptions:
        await subscriptions.make("mails", Terms("webhook", pattern="mail/*", url="https://…"), "https://me/v1/stream")

A subscription remembers, per stream, up to where it was worked on. Where more has come, it makes one *wake*, told by a
signed webhook or by a message in a wake stream, and the next only when that one is done with. All of it is kept in
streams of the server's own, changed by compare-and-append: it survives every process, and several share it without a
coordinator.

`state`, `decisions`, `tokens` and `globs` are pure; `kept` is one subscription in one process, `subscriptions` all of
them, `webhooks` and `addresses` what leaves the server. Knows streams and below; nothing of HTTP resources.
"""

from headwater.subscriptions.state import Terms
from headwater.subscriptions.subscriptions import Subscriptions

__all__ = ["Subscriptions", "Terms"]
