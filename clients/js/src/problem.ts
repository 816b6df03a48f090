// What a server answers that refuses.
import { parsed } from "./events.js"

/** A refusal. `code` is for programs, `message` for people; `retry`: whether the same may succeed later. */
export class HeadwaterError extends Error {
  override name = "HeadwaterError"

  constructor(
    message: string,
    readonly status: number,
    readonly code: string,
    readonly retry = false,
    /** Milliseconds to wait before that, at least. */
    readonly retryAfter = 0,
  ) {
    super(message)
  }
}

/** The error that `response` is, by what it says of itself; else (a proxy speaks) by its status. */
export async function problem(response: Response): Promise<HeadwaterError> {
  const { status, statusText, headers } = response
  const error = Object(parsed(await response.text().catch(() => "")).error)
  const passes = status === 408 || status === 429 || status >= 500
  const message = `${status}: ${error.message ?? (statusText || "refused")}`
  const after = headers.get("retry-after") ?? ""
  const wait = /^\d+$/.test(after) ? Number(after) * 1000 : Date.parse(after) - Date.now()
  return new HeadwaterError(message, status, String(error.code ?? ""), error.retry ?? passes, Math.max(0, wait || 0))
}
