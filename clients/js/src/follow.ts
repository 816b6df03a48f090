// Reading a stream of Headwater as it grows, in a loop: `for await (const { data } of follow(url))`.
import { ServerSentEvents, type StreamEvent } from "./events.js"
import { Attempts, Line, outcomeOf, type ResumeOptions, resumed, runOutcome } from "./resuming.js"
import { clock } from "./service.js"

export interface FollowOptions extends ResumeOptions {
  /** Go on behind the event with this id; else the stream is read from its first. */
  lastEventId?: string
  headers?: HeadersInit
  credentials?: RequestCredentials
  /** Parse `data` as JSON. */
  json?: boolean
}

export interface Followed<Data> extends AsyncIterable<Omit<StreamEvent, "data"> & { data: Data }> {
  /** Once all has been read, how the run or the stream ended: "completed", "failed", "cancelled"; undefined where
   * nobody said. */
  readonly outcome?: string
}

/**
 * The events of a run (`/v1/runs/{id}/events`) or a stream (`/v1/stream/{name}`) until it is closed, over as many
 * connections as it takes. Throws HeadwaterError where the server refuses, also later: 410 means that what comes next is
 * no longer kept.
 */
export function follow<Data = any>(url: string | URL, options: FollowOptions & { json: true }): Followed<Data>
export function follow(url: string | URL, options?: FollowOptions): Followed<string>
export function follow(url: string | URL, options: FollowOptions = {}): Followed<unknown> {
  const { fetch: fetching = fetch, lastEventId, credentials, json } = options
  const at = new URL(url, globalThis.location?.href)
  if (at.searchParams.has("live")) at.searchParams.set("format", "sse") // the same messages, each with its id
  at.searchParams.delete("live")

  const followed: { outcome?: string } & Followed<unknown> = {
    async *[Symbol.asyncIterator]() {
      const line = new Line(options.signal)
      const headers = new Headers(options.headers)
      headers.set("accept", "text/event-stream")
      const ask = async (lastId: string, signal: AbortSignal) => {
        if (lastId) headers.set("last-event-id", lastId)
        const response = await fetching(at, { headers, signal, credentials })
        followed.outcome = response.headers.get("stream-outcome") ?? undefined
        return response
      }
      const reader = ({ headers }: Response, lastId: string) =>
        /^text\/event-stream\b/i.test(headers.get("content-type") ?? "") ? new ServerSentEvents(lastId) : undefined
      const { signal } = line
      try {
        const going = { url: at, headers, since: clock(), ask, reader, options, signal, attempts: new Attempts(options, signal) }
        for await (const pieces of resumed(going, lastEventId)) {
          for (const { event } of pieces) {
            if (!event) continue
            const outcome = outcomeOf(event)
            followed.outcome = outcome ?? runOutcome(event) ?? followed.outcome
            if (!outcome) yield { ...event, data: json ? JSON.parse(event.data) : event.data }
          }
        }
      } finally {
        line.letGo()
      }
    },
  }
  return followed
}
