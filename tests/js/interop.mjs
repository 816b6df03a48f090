// The official TypeScript client against the server at argv[2]: its exactly-once producer writes a stream of each kind
// while readers already follow, then others read it in each mode. Every reader must get all of it, and its end.
// Prints a line of JSON per reader; ends non-zero at the first one that got something else.
import assert from "node:assert/strict"
import { isDeepStrictEqual } from "node:util"
import { DurableStream, IdempotentProducer, stream } from "@durable-streams/client"

const server = process.argv[2]
const MESSAGES = 500
const LIVE = ["sse", "long-poll"]

const numbers = Array.from({ length: MESSAGES }, (_, number) => number)

// A kind says what is written, how it is read, and what all of it is when joined. Text and bytes are read by subscribing,
// up to the batch that says "closed": the client's textStream() and bodyStream() may drop the last part of a stream that
// is closed while they read, and `response.closed` may be done before it is handed over (0.2.7, and against the reference
// server as well: they look whether the stream is closed before they take what was fetched already).
const json = {
  contentType: "application/json",
  written: numbers.map((number) => JSON.stringify({ number, text: `line\nbreak, "quotes", 漢字 🌊 ${number}` })),
  read: async (response, parts) => {
    for await (const item of response.jsonStream()) parts.push(item)
  },
  all: (items) => items.map((item) => JSON.stringify(item)),
}
json.expected = json.written

const text = {
  contentType: "text/plain",
  written: numbers.map((number) => `line ${number}\n  漢字 🌊\n\n`),
  read: (response, parts) =>
    new Promise((resolve, reject) => {
      response.closed.catch(reject)
      response.subscribeText((batch) => parts.push(batch.text) && batch.streamClosed && resolve())
    }),
  all: (chunks) => chunks.join(""),
}
text.expected = text.written.join("")

const binary = {
  contentType: "application/octet-stream",
  written: numbers.map((number) => Uint8Array.from({ length: 1 + (number % 300) }, (_, at) => (number + at) % 256)),
  read: (response, parts) =>
    new Promise((resolve, reject) => {
      response.closed.catch(reject)
      response.subscribeBytes((batch) => parts.push(batch.data) && batch.streamClosed && resolve())
    }),
  all: (chunks) => Buffer.concat(chunks).toString("hex"),
}
binary.expected = Buffer.concat(binary.written).toString("hex")

function difference(got, expected) {
  const at = Array.from(expected).findIndex((part, index) => part !== got[index])
  return `${got.length} instead of ${expected.length}, from ${at}: ${got.slice(at, at + 40)}`
}

async function readAll(name, url, kind, live, when) {
  const response = await stream({ url, offset: "-1", live, warnOnHttp: false })
  const parts = []
  await kind.read(response, parts)
  const got = kind.all(parts)
  const reader = `the reader of ${name}, ${live || "catch-up"}, ${when}`
  assert.ok(isDeepStrictEqual(got, kind.expected), `${reader}, got something else: ${difference(got, kind.expected)}`)
  assert.equal(response.streamClosed, true, `${reader}, was not told that it is closed`)
  console.log(JSON.stringify({ stream: name, mode: live || "catch-up", when, size: got.length, closed: true }))
}

async function check(name, path, kind) {
  const url = server + path
  const handle = await DurableStream.create({ url, contentType: kind.contentType, warnOnHttp: false })
  const during = LIVE.map((live) => readAll(name, url, kind, live, "while it is written"))
  const producer = new IdempotentProducer(handle, `producer-of-${name}`, { lingerMs: 1, maxBatchBytes: 4096 })
  const [last, ...rest] = kind.written.toReversed()
  for (const message of rest.reverse()) producer.append(message)
  await producer.close(last)
  await Promise.all(during)
  for (const live of [false, ...LIVE]) await readAll(name, url, kind, live, "afterwards")
}

await check("json", "/v1/stream/interop/json", json)
await check("text", "/v1/stream/interop/text", text)
await check("binary", "/v1/stream/interop/binary", binary)
await check("escaped", `/v1/stream/${encodeURIComponent("interop/escaped")}`, json)
await check("second base", `/streams/${encodeURIComponent("chats/interop")}`, json)
