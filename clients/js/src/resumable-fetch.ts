// A fetch whose streams do not break off: what clients read is one whole stream, however many connections it takes.
import { JsonLines, ServerSentEvents, type WholeEvents } from "./events.js"
import { Attempts, Line, type ResumeOptions, resumed } from "./resuming.js"
import { clock } from "./service.js"

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

const HONOURS_KEYS =
  /\/(agents\/[^/]+\/(chat(-\w+)?|ag-ui)|v1\/(runs|responses|chat\/completions|proxy\/.+)|langgraph\/(threads\/[^/]+\/)?runs(\/\w+)?)$/
const OF_THE_BODY = ["content-type", "content-length", "content-encoding", "content-language", "idempotency-key"]

/**
 * A function like fetch. A response with a `Location`, whose body is server-sent events or NDJSON, goes on there (GET,
 * `Last-Event-ID`) when its connection is lost, and reads as if it never was; any other is passed on untouched.
 */
export function resumableFetch(options: ResumableFetchOptions = {}): typeof fetch {
  return async (input, init = {}) => {
    const { fetch: fetching = fetch, idempotent = ({ pathname }) => HONOURS_KEYS.test(pathname) } = options
    const request = input instanceof Request ? input : undefined
    const url = new URL(request?.url ?? String(input), globalThis.location?.href)
    const method = (init.method ?? request?.method ?? "GET").toUpperCase()
    const headers = new Headers(init.headers ?? request?.headers)
    const keyed = method === "POST" && (typeof idempotent === "function" ? idempotent(url) : idempotent)
    if (keyed && !headers.has("idempotency-key")) headers.set("idempotency-key", newKey())
    const repeatable = (keyed || method === "GET" || method === "HEAD") && !(init.body instanceof ReadableStream)

    const end = new Line(init.signal ?? request?.signal, options.signal)
    const { signal } = end
    const attempts = new Attempts(options, signal)
    const since = clock()
    let line: Line
    let response: Response | undefined
    while (!response) {
      line = new Line(signal)
      const again = request && repeatable ? request.clone() : input
      response = await fetching(again, { ...init, headers, signal: line.signal }).catch(async (error) => {
        line.letGo()
        if (!repeatable) throw error
        return void (await attempts.next(error, ""))
      })
    }

    const location = goesOnAt(response, url, options)
    if (!location) return response
    for (const name of OF_THE_BODY) headers.delete(name)
    const { credentials = request?.credentials, mode = request?.mode } = init
    const ask = (lastId: string, signal: AbortSignal) => {
      if (lastId) headers.set("last-event-id", lastId)
      return fetching(location, { ...init, credentials, mode, method: "GET", body: undefined, headers, signal })
    }
    const pieces = resumed({ url: location, headers, since, attempts, options, signal, ask, reader: readerOf }, "", response, line!)
    const whole = new Response(handedOn(pieces, end), response)
    return Object.defineProperty(whole, "url", { value: response.url })
  }
}

/** Not every place that runs this has randomUUID: http:// without localhost has not. */
function newKey(): string {
  return globalThis.crypto?.randomUUID?.() ?? `${Date.now()}-${Math.random()}-${Math.random()}`
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

function handedOn(pieces: ReturnType<typeof resumed>, end: Line): ReadableStream<Uint8Array> {
  const encoder = new TextEncoder()
  return new ReadableStream({
    start: (controller) => end.signal.addEventListener("abort", () => controller.error(end.signal.reason)),
    async pull(controller) {
      try {
        const { done, value } = await pieces.next()
        if (!done) return controller.enqueue(encoder.encode(value.map(({ text }) => text).join("")))
        controller.close()
      } catch (error) {
        controller.error(error)
      }
      end.letGo()
    },
    cancel: (reason) => end.abort(reason),
  })
}
