// Going on where a lost connection was: the loop behind `resumableFetch` and `follow`. Knows connections, ids and
// pauses. One connection at a time; what has come whole is given out before the next is opened, so nothing comes twice
// and nothing is left out. Every timer and connection ends with the generator.
import { parsed, type Piece, type StreamEvent, type WholeEvents } from "./events.js"
import { HeadwaterError, problem } from "./problem.js"
import { type Report, Service } from "./service.js"

/** How long to try, and through what. Times are milliseconds. */
export interface ResumeOptions {
  /** What requests go through; the global fetch by default. */
  fetch?: typeof fetch
  /** Ends everything at once. */
  signal?: AbortSignal
  /** Attempts in a row that bring nothing, after which an error is what the reader gets: 8, some 20 seconds. */
  maxAttempts?: number
  /** Before the first attempt, twice as much before each next one: what the server asks for (`retry:`), or 250. */
  delay?: number
  /** Longest of these pauses: 8000. A connection that stood for longer brought something, if only silence. */
  maxDelay?: number
  /** A connection on which nothing came for so long is dead: 45000, three heartbeats of the server. */
  silence?: number
  /** Is told before each attempt to go on, say to show it. */
  onReconnect?: (about: { attempt: number; delay: number; lastEventId: string; cause: unknown }) => void
  /** Where to tell, once, how the service was, or who is told: an address of `/v1/quality`. By default nobody is. */
  report?: string | URL | ((report: Report) => void)
}

/** Aborts when one of its parents does, until it is let go; and when what is expected does not come in time. */
export class Line extends AbortController {
  #held = new AbortController()

  constructor(...parents: (AbortSignal | null | undefined)[]) {
    super()
    for (const parent of parents) {
      if (parent?.aborted) this.abort(parent.reason)
      parent?.addEventListener("abort", () => this.abort(parent.reason), { signal: this.#held.signal })
    }
  }

  async expect<T>(what: Promise<T>, ms = 45_000): Promise<T> {
    const late = () => this.abort(new TypeError(`network error: nothing came for ${ms} ms`))
    const timer = setTimeout(late, ms)
    return what.finally(() => clearTimeout(timer))
  }

  letGo(): void {
    this.#held.abort()
  }
}

/** Counts attempts that brought nothing, and waits before each. */
export class Attempts {
  /** What the server asks for. */
  retry?: number
  failed = 0
  readonly maxDelay: number

  constructor(
    private options: ResumeOptions,
    private signal: AbortSignal,
  ) {
    this.maxDelay = options.maxDelay ?? 8_000
  }

  /** Returns when it is time for another; throws when there were enough. `cause`: why one is needed. */
  async next(cause: unknown, lastEventId: string): Promise<void> {
    this.signal.throwIfAborted()
    const { maxAttempts = 8, delay: first = this.retry ?? 250, onReconnect } = this.options
    if (this.failed >= maxAttempts) {
      if (cause instanceof HeadwaterError) throw cause
      // A TypeError that speaks of the network is how browsers tell it, and what chat clients look for.
      throw new TypeError(`network error: gave up after ${maxAttempts} attempts`, { cause })
    }
    const pause = Math.min(this.maxDelay, first * 2 ** this.failed++) * (0.5 + Math.random() / 2) // not all at once
    const delay = Math.max(pause, cause instanceof HeadwaterError ? cause.retryAfter : 0)
    onReconnect?.({ attempt: this.failed, delay, lastEventId, cause })
    this.signal.throwIfAborted()
    const waiting = new Line(this.signal)
    await new Promise((resolve, reject) => {
      const timer = setTimeout(resolve, delay)
      waiting.signal.addEventListener("abort", () => (clearTimeout(timer), reject(waiting.signal.reason)))
    }).finally(() => waiting.letGo())
  }
}

export interface Going {
  /** What is read, what it was asked for with, and when it was first (`clock`). */
  url: URL
  headers: Headers
  since: number
  attempts: Attempts
  options: ResumeOptions
  signal: AbortSignal
  /** Asks for what comes behind the event with this id. */
  ask: (lastId: string, signal: AbortSignal) => Promise<Response>
  /** Reads a connection that begins behind it; undefined where the response is no stream. */
  reader: (response: Response, lastId: string) => WholeEvents | undefined
}

/** The pieces of a stream, chunk by chunk: those of `response`, which came by `line`, and of all that it takes then. */
export async function* resumed(going: Going, lastId = "", response?: Response, line?: Line): AsyncGenerator<Piece[]> {
  const { attempts, signal } = going
  const service = new Service(going)
  let nameless = false // something was given out that had no id: going on would repeat it
  try {
    for (;;) {
      const since = Date.now()
      let cause: unknown
      let last: StreamEvent | undefined
      line ??= new Line(signal)
      try {
        response ??= await opened(going, lastId, line)
        service.back()
        if (response.status === 204) return service.over("ended")
        const reader = going.reader(response, lastId)
        if (!reader) throw new HeadwaterError("the answer is no stream of events", response.status, "not_a_stream")
        for await (const chunk of chunks(response, line, going.options.silence)) {
          const pieces = reader.feed(chunk).filter(({ event }) => !isInterruption(event))
          lastId = reader.lastId
          attempts.retry = reader.retry ?? attempts.retry
          for (const { event } of pieces) {
            last = event ?? last
            if (event) service.event()
          }
          if (last) attempts.failed = 0
          nameless = !lastId && (nameless || !!last)
          if (pieces.length) yield pieces
          if (last && isEnd(last)) return service.over("ended")
        }
        const nothingLeft = !last && response.headers.get("stream-closed") === "true" // 204 where clients take none
        if (nameless || nothingLeft || (last && runOutcome(last))) return service.over("ended")
      } catch (error) {
        signal.throwIfAborted()
        if (nameless || (error instanceof HeadwaterError && !error.retry)) throw error
        cause = error
      } finally {
        line.letGo()
        line.abort()
      }
      response = line = undefined
      service.lost()
      if (Date.now() - since > attempts.maxDelay) attempts.failed = 0
      await attempts.next(cause, lastId)
    }
  } catch (error) {
    service.over(signal.aborted ? "left" : "failed")
    throw error
  } finally {
    service.over("left")
  }
}

async function opened({ ask, options }: Going, lastId: string, line: Line): Promise<Response> {
  const response = await line.expect(ask(lastId, line.signal), options.silence)
  if (!response.ok) throw await line.expect(problem(response), options.silence)
  return response
}

async function* chunks({ body }: Response, line: Line, silence?: number): AsyncGenerator<Uint8Array> {
  const reader = body!.getReader()
  const { signal } = line
  signal.addEventListener("abort", () => void reader.cancel(signal.reason).catch(() => {})) // whatever fetch minds
  for (;;) {
    const { done, value } = await line.expect(reader.read(), silence)
    signal.throwIfAborted()
    if (done) return
    yield value
  }
}

// The last word is the server's, 204; asking for it costs a request. It is not needed behind what nothing can follow:
// [DONE] of the AI SDK, the end that Headwater tells. A terminal event of a run is followed by nothing in a stream of
// Headwater, but may be in one of others, which hold several runs: there the connection must have ended well, too.

/** The outcome, if this event is the end that Headwater tells. */
export function outcomeOf({ event, data }: StreamEvent): string | undefined {
  const outcome = event === "end" ? parsed(data).outcome : undefined
  return typeof outcome === "string" ? outcome : undefined
}

function isEnd(event: StreamEvent): boolean {
  return event.data === "[DONE]" || !!outcomeOf(event)
}

/** How a run ended, if this event is its last. */
export function runOutcome({ data }: StreamEvent): string | undefined {
  if (!/RUN_(FINISHED|ERROR)/.test(data)) return undefined // so most need not be parsed
  const said = parsed(data)
  const { type, outcome } = Object(said.chunk ?? said)
  if (type !== "RUN_FINISHED") return type === "RUN_ERROR" ? "failed" : undefined
  return String(Object(outcome).type ?? "success").replace("success", "completed")
}

/** The server says that it ends the connection and not the stream: what that means, we do. */
function isInterruption(event?: StreamEvent): boolean {
  return event?.event === "interrupted" && "retry" in parsed(event.data)
}
