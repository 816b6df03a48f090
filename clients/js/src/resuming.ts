// Going on where a lost connection was: the loop behind `resumableFetch` and `follow`. Knows connections, ids and
// pauses. One connection at a time; what has come whole is given out before the next is opened, so nothing comes twice
// and nothing is left out. Every timer and connection ends with the generator.
import type { Piece, StreamEvent, WholeEvents } from "./events.js"
import { parsed } from "./events.js"
import { HeadwaterError, problem } from "./problem.js"

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
}

/** Aborts when one of its parents does, until it is let go; and, while somebody expects something, after `ms`. */
export class Line extends AbortController {
  #parents = new AbortController()
  #timer?: ReturnType<typeof setTimeout>

  constructor(...parents: (AbortSignal | null | undefined)[]) {
    super()
    for (const parent of parents) {
      const end = () => this.abort(parent!.reason)
      if (parent?.aborted) end()
      parent?.addEventListener("abort", end, { signal: this.#parents.signal })
    }
  }

  async expect<T>(what: Promise<T>, ms = 45_000): Promise<T> {
    this.#timer = setTimeout(() => this.abort(new TypeError(`network error: nothing came for ${ms} ms`)), ms)
    return what.finally(() => clearTimeout(this.#timer))
  }

  letGo(): void {
    this.#parents.abort()
  }
}

export interface Connection {
  response: Response
  line: Line
}

/** Counts attempts that brought nothing, and waits before each. */
export class Attempts {
  retry?: number
  #failed = 0

  constructor(
    private options: ResumeOptions,
    private signal: AbortSignal,
  ) {}

  get maxDelay(): number {
    return this.options.maxDelay ?? 8_000
  }

  succeeded(): void {
    this.#failed = 0
  }

  /** Returns when it is time for another; throws when there were enough. `cause`: why one is needed. */
  async next(cause: unknown, lastEventId: string): Promise<void> {
    this.signal.throwIfAborted()
    const { maxAttempts = 8, delay: first = this.retry ?? 250, onReconnect } = this.options
    if (this.#failed >= maxAttempts) {
      if (cause instanceof HeadwaterError) throw cause
      // A TypeError that speaks of the network is how browsers tell it, and what chat clients look for.
      throw new TypeError(`network error: gave up after ${maxAttempts} attempts`, { cause })
    }
    const pause = Math.min(this.maxDelay, first * 2 ** this.#failed++) * (0.5 + Math.random() / 2) // not all at once
    const delay = Math.max(pause, cause instanceof HeadwaterError ? cause.retryAfter : 0)
    onReconnect?.({ attempt: this.#failed, delay, lastEventId, cause })
    await new Promise<void>((resolve, reject) => {
      const ended = new AbortController()
      const timer = setTimeout(() => (ended.abort(), resolve()), delay)
      const end = () => (clearTimeout(timer), reject(this.signal.reason))
      this.signal.addEventListener("abort", end, { once: true, signal: ended.signal })
    })
  }
}

export interface Going {
  attempts: Attempts
  options: ResumeOptions
  signal: AbortSignal
  /** Asks for what comes behind the event with this id. */
  ask: (lastId: string, line: Line) => Promise<Response>
  /** Reads a connection that begins behind it; undefined where the response is no stream. */
  reader: (response: Response, lastId: string) => WholeEvents | undefined
}

/** The pieces of a stream, chunk by chunk, from `connection` on and over all that are needed until the stream is over. */
export async function* resumed(going: Going, lastId: string, connection?: Connection): AsyncGenerator<Piece[]> {
  const { attempts, signal } = going
  let nameless = false // something was given out that had no id: going on would repeat it
  for (;;) {
    const line = connection?.line ?? new Line(signal)
    const since = Date.now()
    let cause: unknown
    try {
      const response = connection?.response ?? (await opened(going, lastId, line))
      if (response.status === 204) return
      const reader = going.reader(response, lastId)
      if (!reader) throw new HeadwaterError("the answer is no stream of events", response.status, "not_a_stream")
      let last: StreamEvent | undefined
      for await (const chunk of chunks(response, line, going.options.silence)) {
        const pieces = reader.feed(chunk).filter(({ event }) => !isInterruption(event))
        const events = pieces.flatMap(({ event }) => event ?? [])
        lastId = reader.lastId
        attempts.retry = reader.retry ?? attempts.retry
        if (events.length) {
          attempts.succeeded()
          last = events.at(-1)!
          nameless = !lastId
        }
        if (pieces.length) yield pieces
        if (last && isEnd(last)) return
      }
      if (nameless || (last && isLast(last))) return
    } catch (error) {
      signal.throwIfAborted()
      if (nameless || (error instanceof HeadwaterError && !error.retry)) throw error
      cause = error
    } finally {
      line.letGo()
      line.abort()
    }
    connection = undefined
    if (Date.now() - since > attempts.maxDelay) attempts.succeeded()
    await attempts.next(cause, lastId)
  }
}

async function opened({ ask, options }: Going, lastId: string, line: Line): Promise<Response> {
  const response = await line.expect(ask(lastId, line), options.silence)
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

function isEnd({ event, data }: StreamEvent): boolean {
  return data === "[DONE]" || (event === "end" && "outcome" in parsed(data))
}

function isLast({ data }: StreamEvent): boolean {
  const said = parsed(data)
  const { type } = Object(said.chunk ?? said)
  return type === "RUN_FINISHED" || type === "RUN_ERROR"
}

/** The server says that it ends the connection and not the stream: what that means, we do. */
function isInterruption(event?: StreamEvent): boolean {
  return event?.event === "interrupted" && "retry" in parsed(event.data)
}
