// A fetch whose streams do not break off: what clients read is one whole stream, however many connections it takes.
import { JsonLines, ServerSentEvents, type WholeEvents } from "./events.js"
import { Attempts, type Connection, Line, type ResumeOptions, resumed } from "./resuming.js"

export interface ResumableFetchOptions extends ResumeOptions {
  /**
   * Whether a POST there starts nothing twice, if it comes again with its Idempotency-Key: one that fails before it is
   * answered is then repeated. By default those of Headwater that honour it; say `true` if all of yours do.
   */
  idempotent?: boolean | ((url: URL) => boolean)
  /**
   * Where to go on, if that is not at `location`, what the answer from `url` says: behind a proxy that has other paths.
   * Without it, only the origin of the answer is asked, for it gets the headers of the request, keys among them.
   */
  resumeAt?: (location: URL, url: URL) => URL | string
}

const HONOUR_KEYS = /\/(agents\/[^/]+\/(chat(-\w+)?|ag-ui)|v1\/(runs|responses|chat\/completions|proxy\/.+))$/
const OF_THE_BODY = ["content-type", "content-length", "content-encoding", "content-language", "idempotency-key"]

/**
 * A function like fetch. A response with a `Location`, whose body is server-sent events or NDJSON, goes on there (GET,
 * `Last-Event-ID`) when its connection is lost, and reads as if it never was; any other is passed on untouched.
 */
export function resumableFetch(options: ResumableFetchOptions = {}): typeof fetch {
  return async (input, init = {}) => {
    const request = input instanceof Request ? input : undefined
    const url = new URL(request?.url ?? String(input), globalThis.location?.href)
    const headers = new Headers(init.headers ?? request?.headers)
    const line = new Line(init.signal ?? request?.signal, options.signal)
    const attempts = new Attempts(options, line.signal)
    const ask = (to: RequestInfo | URL, more: RequestInit) => (options.fetch ?? fetch)(to, { ...init, ...more })

    const repeatable = isRepeatable((init.method ?? request?.method ?? "GET").toUpperCase(), url, headers, init, options)
    const connection = await opened(attempts, repeatable, line.signal, (line) =>
      ask(request && repeatable ? request.clone() : input, { headers, signal: line.signal }),
    )
    const { response } = connection
    const location = goesOnAt(response, url, options)
    if (!location) return response

    for (const name of OF_THE_BODY) headers.delete(name)
    const { credentials, mode, redirect, referrerPolicy } = request ?? init
    const same = { credentials, mode, redirect, referrerPolicy, method: "GET", body: undefined }
    const pieces = resumed(
      {
        attempts,
        options,
        signal: line.signal,
        ask: (lastId, { signal }) => {
          if (lastId) headers.set("last-event-id", lastId)
          return ask(location, { ...same, headers, signal })
        },
        reader: readerOf,
      },
      "",
      connection,
    )
    const whole = new Response(handedOn(pieces, line), response)
    Object.defineProperty(whole, "url", { value: response.url })
    return whole
  }
}

/** Whether the request may be sent again; if it is a POST, by the key that it gets here. */
function isRepeatable(
  method: string,
  url: URL,
  headers: Headers,
  { body }: RequestInit,
  { idempotent = ({ pathname }) => HONOUR_KEYS.test(pathname) }: ResumableFetchOptions,
): boolean {
  if (method !== "POST") return method === "GET" || method === "HEAD"
  if (!(typeof idempotent === "function" ? idempotent(url) : idempotent)) return false
  // Not every place that runs this has randomUUID: http:// without localhost has not.
  const key = () => globalThis.crypto?.randomUUID?.() ?? `${Date.now()}-${Math.random()}-${Math.random()}`
  if (!headers.has("idempotency-key")) headers.set("idempotency-key", key())
  return !(body instanceof ReadableStream)
}

/** The first response; a request that may be repeated is, until it is answered, whatever the answer. */
async function opened(
  attempts: Attempts,
  repeatable: boolean,
  signal: AbortSignal,
  ask: (line: Line) => Promise<Response>,
): Promise<Connection> {
  for (;;) {
    const line = new Line(signal)
    try {
      return { response: await ask(line), line }
    } catch (error) {
      line.letGo()
      if (!repeatable) throw error
      await attempts.next(error, "")
    }
  }
}

function goesOnAt(response: Response, url: URL, { resumeAt }: ResumableFetchOptions): URL | undefined {
  const said = response.headers.get("location")
  if (!response.ok || !response.body || !said || !readerOf(response)) return undefined
  const from = new URL(response.url || url)
  const location = new URL(said, from)
  if (resumeAt) return new URL(resumeAt(location, from), from)
  return location.origin === from.origin ? location : undefined
}

function readerOf({ headers }: Response, lastId = ""): WholeEvents | undefined {
  const type = headers.get("content-type") ?? ""
  if (/^text\/event-stream\b/i.test(type)) return new ServerSentEvents(lastId)
  return /^application\/(x-)?ndjson\b/i.test(type) ? new JsonLines(lastId) : undefined
}

function handedOn(pieces: ReturnType<typeof resumed>, line: Line): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder()
  return new ReadableStream({
    start: (controller) => line.signal.addEventListener("abort", () => controller.error(line.signal.reason)),
    async pull(controller) {
      try {
        const { done, value } = await pieces.next()
        if (!done) return controller.enqueue(encoder.encode(value.map(({ text }) => text).join("")))
        controller.close()
      } catch (error) {
        controller.error(error)
      }
      line.letGo()
    },
    cancel: (reason) => line.abort(reason),
  })
}
