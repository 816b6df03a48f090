"""Errors as OpenAI's APIs tell them, so that the official clients raise what their users expect.

    {"error": {"message": …, "type": …, "param": …, "code": …}}

Knows the error tree. Statuses, headers and what is safe to say are those of every other answer (`headwater.problems`).
"""

from __future__ import annotations

from typing import Final

import msgspec
from starlette.responses import Response

from headwater.errors import BadRequest
from headwater.problems import answer

_TYPES: Final = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
_CODES: Final = {
    "unauthorized": "invalid_api_key",
    "agent_not_found": "model_not_found",
    "run_not_found": "response_not_found",
    "stream_not_found": "response_not_found",
    "too_many_requests": "rate_limit_exceeded",
}
"""Where the API has a word of its own for one of our codes."""

_PARAMS: Final = {"agent_not_found": "model"}

NO_RETRY: Final = ("x-should-retry", "false")
"""Heeded by the official clients, which would else send a request again after 409 and 5xx: where the run has been
started already, that would start another."""


class BadParameter(BadRequest):
    """A parameter of the request cannot be taken."""

    def __init__(self, message: str, param: str, code: str = "invalid_value") -> None:
        super().__init__(message, param=param, api_code=code)


def openai_answer(error: Exception, *, retry: bool = True) -> Response:
    """The response that `error` is. `retry`: whether the client may send the request again by itself."""
    plain = answer(error)
    said = msgspec.json.decode(bytes(plain.body))["error"]
    code = said.get("api_code") or _CODES.get(said["code"], said["code"])
    body = error_body(
        said["message"], status=plain.status_code, code=code, param=said.get("param") or _PARAMS.get(said["code"])
    )
    headers = {name: value for name, value in plain.headers.items() if name != "content-length"}
    if plain.status_code == 409 or not retry:
        headers |= dict([NO_RETRY])
    return Response(body, plain.status_code, headers, "application/json")


def error_body(message: str, *, status: int, code: str | None, param: str | None = None) -> bytes:
    """The JSON of an error."""
    type_ = _TYPES.get(status, "server_error" if status >= 500 else "invalid_request_error")
    return msgspec.json.encode({"error": {"message": message, "type": type_, "param": param, "code": code}})
