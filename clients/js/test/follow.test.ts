// follow(), against servers that answer as told, and a real one (HEADWATER_URL, as in clients.test.ts).
import { describe, expect, test } from "vitest"
import { follow, type FollowOptions, HeadwaterError } from "../src/index.js"
import { answering, cuttingAfter } from "./network.js"

const server = process.env.HEADWATER_URL ?? ""
const SSE = { "content-type": "text/event-stream" }

async function all<Data>(events: AsyncIterable<{ data: Data }>): Promise<Data[]> {
  const data = []
  for await (const event of events) data.push(event.data)
  return data
}
const failure = (promise: Promise<unknown>): Promise<any> => promise.then(() => "no error", (error) => error)

test("events, until the end is told, with what was asked for", async () => {
  const { url, asked } = await answering((response) =>
    response.writeHead(200, SSE).end('id: 1\nevent: e\ndata: {"a": 1}\n\nid: 2\nevent: end\ndata:{"outcome":"failed"}\n\n'),
  )
  const followed = follow<{ a: number }>(`${url}/x`, { json: true, lastEventId: "0", headers: { authorization: "k" } })
  const events = []
  for await (const event of followed) events.push(event)
  expect(events).toEqual([{ id: "1", event: "e", data: { a: 1 } }])
  expect(followed.outcome).toBe("failed")
  const { authorization, accept, "last-event-id": lastEventId } = asked[0]!.headers
  expect([authorization, accept, lastEventId, asked.length]).toEqual(["k", "text/event-stream", "0", 1])
})

test.each([
  ['{"type":"RUN_FINISHED"}', "completed"],
  ['{"type":"RUN_FINISHED","outcome":{"type":"success"}}', "completed"],
  ['{"type":"RUN_FINISHED","outcome":{"type":"cancelled"}}', "cancelled"],
  ['{"type":"RUN_ERROR","message":"m"}', "failed"],
])("a run ends with %s: %s", async (data, outcome) => {
  const { url, asked } = await answering((response) => response.writeHead(200, SSE).end(`id: 1\ndata:${data}\n\n`))
  const followed = follow(url)
  expect([await all(followed), followed.outcome, asked.length]).toEqual([[data], outcome, 1])
})

test("an end without an outcome is an event like others", async () => {
  const { url } = await answering(
    (response) => response.writeHead(200, SSE).end("id: 1\nevent: end\ndata: of a chapter\n\n"),
    (response) => response.writeHead(204, { "stream-outcome": "completed" }).end(),
  )
  const followed = follow(url)
  expect([await all(followed), followed.outcome]).toEqual([["of a chapter"], "completed"])
})

test("a refusal is thrown, with what the server says", async () => {
  const body = JSON.stringify({ error: { code: "offset_gone", message: "gone", retry: false, earliest: "7" } })
  const { url, asked } = await answering((response) => response.writeHead(410).end(body))
  const error = await failure(all(follow(url, { lastEventId: "1" })))
  expect(error).toBeInstanceOf(HeadwaterError)
  expect(error).toMatchObject({ name: "HeadwaterError", status: 410, code: "offset_gone", retry: false })
  expect(asked.length).toBe(1)
})

test("what is left stays left: a loop that ends, a signal", async () => {
  const left: Promise<void>[] = []
  const { url } = await answering((response) => {
    left.push(new Promise((resolve) => response.on("close", resolve)))
    response.writeHead(200, SSE).write("id: 1\ndata: 1\n\n")
  })
  for await (const { data } of follow(url)) {
    expect(data).toBe("1")
    break
  }
  await left[0]
  const abort = new AbortController()
  const error = failure(
    (async () => {
      for await (const _ of follow(url, { signal: abort.signal })) abort.abort()
    })(),
  )
  expect((await error).name).toBe("AbortError")
  await left[1]
})

if (!server) test.skip("no server is named: set HEADWATER_URL", () => {})

describe.runIf(server).each(["", "?format=sse", "?live=sse"])("a stream of a real server, as it is written%s", (query) => {
  test.each(["application/json", "text/plain"])("%s", async (type) => {
    const url = `${server}/v1/stream/follow/${crypto.randomUUID()}`
    const say = (method: string, body: string, headers = {}) =>
      fetch(url, { method, body, headers: { "content-type": type, ...headers } }).then(({ ok }) => expect(ok).toBe(true))
    await say("PUT", "")
    const json = type === "application/json"
    const readers: FollowOptions[] = [{}, { delay: 1 }]
    const followed = await Promise.all(
      readers.map(async (options, index) => {
        const at = index === 0 ? url : url.replace(server, (await cuttingAfter(server, 2)).url)
        return json ? follow(at + query, { ...options, json: true }) : follow(at + query, options)
      }),
    )
    const reading = followed.map((one) => all<any>(one))
    for (let number = 0; number < 20; number++) await say("POST", JSON.stringify(`漢 ${number}`))
    await say("POST", '"over"', { "stream-closed": "true", "stream-outcome": "completed" })
    const expected = [...Array.from({ length: 20 }, (_, number) => `漢 ${number}`), "over"]
    for (const data of await Promise.all(reading)) {
      if (json) expect(data).toEqual(expected)
      else expect(data.join("")).toBe(expected.map((text) => JSON.stringify(text)).join(""))
    }
    expect(followed.map(({ outcome }) => outcome)).toEqual(["completed", "completed"])
  })
})

test.runIf(server)("what is no longer there is refused by a real server", async () => {
  const error = await failure(all(follow(`${server}/v1/stream/follow/none`)))
  expect(error).toMatchObject({ status: 404, code: "stream_not_found", retry: false })
})
