// What resumableFetch does with each kind of answer, against a server that answers as told.
import type { ServerResponse } from "node:http"
import { expect, test, vi } from "vitest"
import { HeadwaterError, resumableFetch } from "../src/index.js"
import { answering, reset } from "./network.js"

const SSE = { "content-type": "text/event-stream; charset=utf-8", location: "/on?run=1" }
const LINES = { "content-type": "application/x-ndjson", location: "/on" }
const quick = { delay: 1 }

type Answer = (response: ServerResponse) => void
const event = (id: number, data = `event ${id}`) => `id: ${id}\ndata:${data}\n\n`
const sent = (text: string | Buffer, headers: Record<string, string> = SSE): Answer => (response) =>
  response.writeHead(200, headers).end(text)
/** The connection is lost behind `text`. */
const cut = (text: string | Buffer, headers: Record<string, string> = SSE): Answer => (response) =>
  response.writeHead(200, headers).write(text, () => setTimeout(() => reset(response), 5))
const over: Answer = (response) => response.writeHead(204).end()
const refused = (status: number, headers = {}, body = ""): Answer => (response) =>
  response.writeHead(status, headers).end(body)
const never: Answer = (response) => response.writeHead(200, SSE).flushHeaders()

async function read(...answers: Answer[]) {
  const { url, asked } = await answering(...answers)
  const response = await resumableFetch(quick)(`${url}/chat`, { method: "POST", body: "{}" })
  return { response, asked, text: await response.text() }
}
const failure = (promise: Promise<unknown>): Promise<any> => promise.then(() => "no error", (error) => error)

test("a stream that is cut in an event, and in a character, reads as a whole one", async () => {
  const whole = Buffer.from(event(2, "漢"))
  const at = whole.indexOf("漢") + 1
  const { text, asked, response } = await read(
    cut(Buffer.concat([Buffer.from(": open\n" + event(1)), whole.subarray(0, at)])),
    cut(whole.subarray(0, 3)),
    cut(whole),
    sent(event(3)),
    over,
  )
  expect(text).toBe(`: open\n${event(1)}${event(2, "漢")}${event(3)}`)
  expect(asked.map(({ method, path, headers }) => [method, path, headers["last-event-id"]])).toEqual([
    ["POST", "/chat", undefined],
    ["GET", "/on?run=1", "1"],
    ["GET", "/on?run=1", "1"],
    ["GET", "/on?run=1", "2"],
    ["GET", "/on?run=1", "3"],
  ])
  expect([response.status, response.url.endsWith("/chat")]).toEqual([200, true])
})

test("lines go on behind the last whole one", async () => {
  const line = (id: number) => `{"id":"${id}","chunk":{"type":"X"}}\n`
  const last = '{"id":"3","chunk":{"type":"RUN_FINISHED"}}\n'
  const { text, asked } = await read(cut(line(1) + '{"id":"2"', LINES), sent("\n" + line(2) + last, LINES))
  expect(text).toBe(line(1) + "\n" + line(2) + last)
  expect(asked.map(({ headers }) => headers["last-event-id"])).toEqual([undefined, "1"])
})

test("where clients take no 204, an empty answer that says the stream is closed is the last word", async () => {
  const closed = sent("", { ...SSE, "stream-closed": "true" })
  const { text, asked } = await read(sent(event(1)), closed)
  expect([text, asked.length]).toEqual([event(1), 2])
})

test("before the first event, it goes on at the beginning", async () => {
  const { text, asked } = await read(cut(": open\nid: 1\nda"), sent(event(1) + event(2, "[DONE]")))
  expect(text).toBe(": open\n" + event(1) + event(2, "[DONE]"))
  expect(asked[1]!.headers["last-event-id"]).toBeUndefined()
})

test.each([
  ["[DONE]", sent],
  ["[DONE]", cut],
  ['{"type":"RUN_FINISHED"}', sent],
  ['{"type": "RUN_ERROR"}', sent],
])("behind %s nothing is asked for", async (last, ends) => {
  const { text, asked } = await read(ends(event(1) + event(2, last)))
  expect(text).toBe(event(1) + event(2, last))
  expect(asked.length).toBe(1)
})

test.each([['{"type":"RUN_FINISHED"}', cut], ['{"delta":"RUN_FINISHED"}', sent], ["", sent]])(
  "behind %s the server has the last word",
  async (last, ends) => {
    const { text, asked } = await read(ends(event(1) + event(2, last)), over)
    expect(text).toBe(event(1) + event(2, last))
    expect(asked.length).toBe(2)
  },
)

test("what the server says of the connection is not handed on", async () => {
  const said = 'event: interrupted\nretry: 1\ndata:{"code":"draining","message":"m","retry":true}\n\n'
  const end = 'id: 2\nevent: end\ndata:{"outcome":"completed"}\n\n'
  const { text, asked } = await read(sent(event(1) + said), sent(end))
  expect([text, asked.length]).toEqual([event(1) + end, 2])
})

test.each([
  ["no Location", { ...SSE, location: "" }],
  ["another origin", { ...SSE, location: "http://elsewhere.test/on" }],
  ["no stream", { ...SSE, "content-type": "application/json" }],
  ["text", { ...SSE, "content-type": "text/plain" }],
])("%s: passed on untouched", async (_, headers) => {
  const { text, asked } = await read(sent("id: 1\ndata: whole\r\n\r\nid: 2\nda", headers))
  expect(text).toBe("id: 1\ndata: whole\r\n\r\nid: 2\nda")
  expect(asked.length).toBe(1)
})

test.each([404, 409, 429, 500, 503])("a first answer of %i is the caller's", async (status) => {
  const { response, text, asked } = await read(refused(status, { ...SSE, "retry-after": "1" }, "no"))
  expect([response.status, text, asked.length]).toEqual([status, "no", 1])
})

test("events without ids cannot be gone on with: their end is the end, their loss an error", async () => {
  const ended = await read(sent("data: 1\n\n"))
  expect([ended.text, ended.asked.length]).toEqual(["data: 1\n\n", 1])
  expect(await failure(read(cut("data: 1\n\n"), over))).toBeInstanceOf(Error)
})

test("a refusal later on is an error to who reads, with what the server says", async () => {
  const problem = { error: { code: "offset_gone", message: "no longer kept", retry: false } }
  const error = await failure(read(cut(event(1)), refused(410, {}, JSON.stringify(problem))))
  expect(error).toBeInstanceOf(HeadwaterError)
  expect(error).toMatchObject({ status: 410, code: "offset_gone", retry: false, message: "410: no longer kept" })
  expect(await failure(read(cut(event(1)), refused(404)))).toMatchObject({ status: 404, code: "" })
  expect(await failure(read(cut(event(1)), sent("<html>", { "content-type": "text/html" })))).toMatchObject({
    code: "not_a_stream",
  })
})

test.each([429, 503])("%i is waited for, as long as it says", async (status) => {
  const began = Date.now()
  const { text } = await read(cut(event(1)), refused(status, { "retry-after": "1" }), refused(502), sent(event(2)), over)
  expect(text).toBe(event(1) + event(2))
  expect(Date.now() - began).toBeGreaterThanOrEqual(990)
})

test("the server's retry is the pause, give or take, doubled while nothing comes", async () => {
  const { url } = await answering(cut("retry: 40\n" + event(1)), cut(""), cut(""), sent(event(2)), over)
  const seen: { attempt: number; delay: number; lastEventId: string }[] = []
  const response = await resumableFetch({ onReconnect: (about) => seen.push(about) })(url)
  expect(await response.text()).toBe("retry: 40\n" + event(1) + event(2))
  expect(seen.map(({ attempt, lastEventId }) => [attempt, lastEventId])).toEqual([
    [1, "1"],
    [2, "1"],
    [3, "1"],
    [1, "2"],
  ])
  for (const [index, pause] of [40, 80, 160, 40].entries()) {
    expect(seen[index]!.delay).toBeGreaterThanOrEqual(pause / 2)
    expect(seen[index]!.delay).toBeLessThanOrEqual(pause)
  }
})

test("it gives up in the end, with an error that chat clients know for a lost network", async () => {
  const { url, asked } = await answering(cut(event(1)), cut(": hb\n"))
  const response = await resumableFetch({ delay: 1, maxAttempts: 3 })(url)
  const error = await failure(response.text())
  expect([error.name, error.message]).toEqual(["TypeError", "network error: gave up after 3 attempts"])
  expect(asked.length).toBe(4)
})

test("a server that refuses to the end is heard", async () => {
  const { url } = await answering(cut(event(1)), refused(503, {}, '{"error":{"code":"draining"}}'))
  const response = await resumableFetch({ delay: 1, maxAttempts: 2 })(url)
  expect(await failure(response.text())).toMatchObject({ status: 503, code: "draining" })
})

test("a connection that is silent for too long is dead", async () => {
  const { url, asked } = await answering(
    (response) => response.writeHead(200, SSE).write(event(1)),
    never,
    () => {},
    sent(event(2)),
    over,
  )
  const response = await resumableFetch({ delay: 1, silence: 50 })(url)
  expect(await response.text()).toBe(event(1) + event(2))
  expect(asked.length).toBe(5)
})

test("going on takes along what matters of the request", async () => {
  const { url, asked } = await answering(cut(event(1)), over)
  const given: RequestInit[] = []
  const fetching = resumableFetch({ ...quick, fetch: (to, init) => (given.push(init!), fetch(to, init)) })
  const headers = { authorization: "Bearer key", "x-mine": "1", "content-type": "application/json" }
  const init: RequestInit = { method: "POST", body: "{}", headers, credentials: "include" }
  await (await fetching(`${url}/agents/bot/chat`, init)).text()
  const on = asked[1]!
  expect([on.headers.authorization, on.headers["x-mine"], on.body]).toEqual(["Bearer key", "1", ""])
  expect([on.headers["content-type"], on.headers["idempotency-key"]]).toEqual([undefined, undefined])
  expect(given.map(({ credentials }) => credentials)).toEqual(["include", "include"])
})

test("and what a Request says, if it is given as one", async () => {
  const { url, asked } = await answering(cut(event(1)), over)
  const given: RequestInit[] = []
  const fetching = resumableFetch({ ...quick, fetch: (to, init) => (given.push(init!), fetch(to, init)) })
  const headers = { "x-mine": "1" }
  await (await fetching(new Request(`${url}/chat`, { method: "POST", body: "{}", headers, credentials: "omit" }))).text()
  expect([asked[0]!.body, asked[1]!.method, asked[1]!.headers["x-mine"]]).toEqual(["{}", "GET", "1"])
  expect(given[1]!.credentials).toBe("omit")
})

test("where to go on can be said", async () => {
  const there = await answering(over)
  const { url } = await answering(cut(event(1)))
  const seen: string[] = []
  const resumeAt = (location: URL, from: URL) => (seen.push(location.href, from.href), `${there.url}/x${location.search}`)
  await (await resumableFetch({ ...quick, resumeAt })(`${url}/chat`)).text()
  expect(there.asked.map(({ path }) => path)).toEqual(["/x?run=1"])
  expect(seen).toEqual([`${url}/on?run=1`, `${url}/chat`])
})

const lost: Answer = reset

test.each(["/agents/bot/chat", "/prefix/agents/bot/chat-v7", "/agents/bot/ag-ui?x=1", "/v1/runs", "/v1/responses"])(
  "a POST to %s that gets no answer is repeated under one key",
  async (path) => {
    const { url, asked } = await answering(lost, lost, sent(event(1, "[DONE]")))
    const response = await resumableFetch(quick)(url + path, { method: "POST", body: "{}" })
    expect(await response.text()).toBe(event(1, "[DONE]"))
    const keys = new Set(asked.map(({ headers }) => headers["idempotency-key"]))
    expect([asked.length, keys.size, asked[2]!.body]).toEqual([3, 1, "{}"])
    expect([...keys][0]).toMatch(/^[0-9a-f-]{36}$/)
  },
)

test("with a key of the caller's it keeps that; a Request can be repeated, too", async () => {
  const { url, asked } = await answering(lost, over)
  const headers = { "idempotency-key": "mine" }
  await resumableFetch(quick)(new Request(`${url}/v1/runs`, { method: "POST", body: "{}", headers }))
  expect(asked.map(({ headers, body }) => [headers["idempotency-key"], body])).toEqual(Array(2).fill(["mine", "{}"]))
})

test.each([
  ["another place", "/ask", {}, "{}"],
  ["told not to", "/v1/runs", { idempotent: false }, "{}"],
  ["a body that can be read once", "/v1/runs", {}, null],
])("a POST is not repeated: %s", async (_, path, options, text) => {
  const { url, asked } = await answering(lost, over)
  const body = text ?? new Blob(["{}"]).stream()
  const init = { method: "POST", body, duplex: "half" } as RequestInit
  expect(await failure(resumableFetch({ ...quick, ...options })(url + path, init))).toBeInstanceOf(TypeError)
  expect(asked.length).toBe(1)
})

test("elsewhere it is, where that is said; a GET always", async () => {
  const { url, asked } = await answering(lost, over)
  await resumableFetch({ ...quick, idempotent: ({ pathname }) => pathname === "/ask" })(`${url}/ask`, { method: "POST" })
  expect(asked.length).toBe(2)
  const reading = await answering(lost, over)
  await resumableFetch(quick)(reading.url)
  expect([reading.asked.length, reading.asked[1]!.headers["idempotency-key"]]).toEqual([2, undefined])
})

test.each(["reading", "waiting to go on", "going on", "not even reading"])("an abort ends it at once: %s", async (when) => {
  const first: Answer = when === "reading" ? (response) => response.writeHead(200, SSE).write(event(1)) : cut(event(1))
  const { url, asked } = await answering(first, never)
  const abort = new AbortController()
  const onReconnect = vi.fn()
  const delay = when === "going on" ? 1 : 60_000
  const response = await resumableFetch({ delay, onReconnect })(url, { signal: abort.signal })
  const reader = response.body!.getReader()
  await reader.read()
  const rest = when === "not even reading" ? undefined : failure(reader.read())
  if (when === "waiting to go on") await vi.waitUntil(() => onReconnect.mock.calls.length)
  if (when === "going on") await vi.waitUntil(() => asked.length === 2)
  abort.abort()
  const error = await (rest ?? failure(reader.read()))
  expect(error.name).toBe("AbortError")
  expect(asked.length).toBe(when === "going on" ? 2 : 1)
})

test("who is told of an attempt may end it", async () => {
  const { url, asked } = await answering(cut(event(1)), never)
  const abort = new AbortController()
  const response = await resumableFetch({ delay: 60_000, signal: abort.signal, onReconnect: () => abort.abort() })(url)
  expect((await failure(response.text())).name).toBe("AbortError")
  expect(asked.length).toBe(1)
})

test("a signal of its own, and a reader that leaves, end it, too", async () => {
  const { url } = await answering(never)
  const abort = new AbortController()
  const response = await resumableFetch({ signal: abort.signal })(url)
  const text = failure(response.text())
  abort.abort(new Error("enough"))
  expect((await text).message).toBe("enough")
  expect((await failure(resumableFetch({ signal: abort.signal })(url))).message).toBe("enough")
  const left = vi.fn()
  const other = await answering((response) => (response.on("close", left), never(response)))
  await (await resumableFetch()(other.url)).body!.cancel()
  await vi.waitUntil(() => left.mock.calls.length)
})
