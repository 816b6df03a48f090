// Reading a stream of Headwater as it grows, in a loop: `for await (const { data } of follow(url))`.
import { DurableEvents, parsed, ServerSentEvents, type StreamEvent } from "./events.js"
import { Attempts, Line, type ResumeOptions, resumed } from "./resuming.js"

export interface FollowOptions extends ResumeOptions {
  /** Go on behind the event with this id; else the stream is read from its first. */
  lastEventId?: string
  headers?: HeadersInit
  credentials?: RequestCredentials
  /** Parse `data` as JSON. */
  json?: boolean
}

export interface Followed<Data> extends AsyncIterable<Omit<StreamEvent, "data"> & { data: Data }> {
  /** Once all has been read, how it ended: "completed", "failed", "cancelled", or undefined where nobody said. */
  readonly outcome?: string
}

/**
 * The events of a run (`/v1/runs/{id}/events`) or a stream (`/v1/stream/{name}`, also with `?live=sse`) until it is
 * closed, over as many connections as it takes. Throws HeadwaterError where the server refuses, also later: 410 means
 * that what comes next is no longer kept.
 */
export function follow<Data = any>(url: string | URL, options: FollowOptions & { json: true }): Followed<Data>
export function follow(url: string | URL, options?: FollowOptions): Followed<string>
export function follow(url: string | URL, options: FollowOptions = {}): Followed<unknown> {
  const at = new URL(url, globalThis.location?.href)
  const live = at.searchParams.has("live")
  if (live && !at.searchParams.has("offset")) at.searchParams.set("offset", "-1")
  const headers = new Headers({ accept: "text/event-stream" })
  new Headers(options.headers).forEach((value, name) => headers.set(name, value))

  const followed: { outcome?: string } & Followed<unknown> = {
    async *[Symbol.asyncIterator]() {
      const line = new Line(options.signal)
      const { signal } = line
      const ask = async (lastId: string, line: Line) => {
        if (lastId && live) at.searchParams.set("offset", lastId)
        else if (lastId) headers.set("last-event-id", lastId)
        const init = { headers, signal: line.signal, credentials: options.credentials }
        const response = await (options.fetch ?? fetch)(at, init)
        followed.outcome = response.headers.get("stream-outcome") ?? undefined
        return response
      }
      const reader = ({ headers }: Response, lastId: string) => {
        if (!headers.get("content-type")?.startsWith("text/event-stream")) return undefined
        return live ? new DurableEvents(lastId) : new ServerSentEvents(lastId)
      }
      const going = { ask, reader, options, signal, attempts: new Attempts(options, signal) }
      try {
        for await (const pieces of resumed(going, options.lastEventId ?? "")) {
          for (const { event } of pieces) {
            if (event?.event === "end" && "outcome" in parsed(event.data)) {
              followed.outcome = (parsed(event.data).outcome as string | null) ?? followed.outcome
            } else if (event) yield { ...event, data: options.json ? JSON.parse(event.data) : event.data }
          }
        }
      } finally {
        line.letGo()
      }
    },
  }
  return followed
}
