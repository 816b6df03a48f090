"""How a request about subscriptions can be refused: codes and statuses as Durable Streams (6, 7) has them.

Each is an error of the one tree (`headwater.errors`), so what holds there holds here: the message is for clients.
"""

from __future__ import annotations

from headwater.errors import BadRequest, Conflict, NotFound, Unauthorized


class InvalidRequest(BadRequest):
    code = "INVALID_REQUEST"


class WebhookUrlRejected(BadRequest):
    """The address is not one this server may send to."""

    code = "WEBHOOK_URL_REJECTED"


class TokenInvalid(Unauthorized):
    code = "TOKEN_INVALID"


class TokenExpired(Unauthorized):
    code = "TOKEN_EXPIRED"


class SubscriptionNotFound(NotFound):
    code = "SUBSCRIPTION_NOT_FOUND"


class SubscriptionExists(Conflict):
    code = "SUBSCRIPTION_ALREADY_EXISTS"


class Fenced(Conflict):
    """A later wake has been made, or this one is done with (7.3)."""

    code = "FENCED"


class AlreadyClaimed(Conflict):
    """Detail: `current_holder` and `generation`."""

    code, retry = "ALREADY_CLAIMED", True


class NoPendingWork(Conflict):
    code, retry = "NO_PENDING_WORK", True


class InvalidOffset(Conflict):
    """An ack that goes back, lies beyond the tail, or is of a stream that is not subscribed to."""

    code = "INVALID_OFFSET"
