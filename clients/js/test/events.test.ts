// Bytes -> events: the outside suites' cases, and what is handed on.
import { existsSync, readFileSync } from "node:fs"
import { describe, expect, test } from "vitest"
import { JsonLines, ServerSentEvents, type WholeEvents } from "../src/events.js"

const file = process.env.HEADWATER_SSE_CASES ?? ""
const here = existsSync(file)
const cases: any[] = here ? JSON.parse(readFileSync(file, "utf8")).cases : []

const bytes = (text: string) => new TextEncoder().encode(text)
const singly = (chunk: Uint8Array) => [...chunk].map((byte) => Uint8Array.of(byte))
const fed = (reader: WholeEvents, chunks: Uint8Array[]) => chunks.flatMap((chunk) => reader.feed(chunk))
const text = (pieces: { text: string }[]) => pieces.map((piece) => piece.text).join("")

if (!here) test.skip("the outside suites' cases are not here: name their file as HEADWATER_SSE_CASES", () => {})
if (here) test("the case file is whole", () => expect(cases.length).toBe(161))

if (here) describe.each(["as given", "joined", "byte by byte"])("%s", (feeding) => {
  for (const { source, name, chunks_b64, events, retry, final_last_event_id } of cases) {
    test(`${source}: ${name}`, () => {
      const given = chunks_b64.map((chunk: string) => new Uint8Array(Buffer.from(chunk, "base64")))
      const whole = new Uint8Array(Buffer.concat(given))
      const chunks = { "as given": given, joined: [whole], "byte by byte": singly(whole) }[feeding]!
      const reader = new ServerSentEvents()
      const seen = fed(reader, chunks).flatMap(({ event }) => event ?? [])
      const plain = seen.map(({ id, event, data }) => ({ type: event, data, last_event_id: id }))
      expect(plain).toEqual(events)
      expect([reader.retry ?? null, reader.lastId]).toEqual([retry, final_last_event_id])
      // What is handed on says the same to whoever reads it next.
      const again = new ServerSentEvents()
      const handed = fed(again, [bytes(text(fed(new ServerSentEvents(), chunks)))])
      expect(handed.flatMap(({ event }) => event ?? []).map(({ data, event }) => [data, event])).toEqual(
        seen.map(({ data, event }) => [data, event]),
      )
    })
  }
})

test("only whole events are handed on, and comments at once", () => {
  const reader = new ServerSentEvents("5")
  expect(text(reader.feed(bytes(": open\nretry: 7\nid: 6\ndata: a")))).toBe(": open\n")
  expect([reader.lastId, reader.retry]).toEqual(["5", 7])
  expect(text(reader.feed(bytes("b\n: hb\n")))).toBe(": hb\n")
  expect(text(reader.feed(bytes("\r\n\r\n")))).toBe("retry: 7\nid: 6\ndata: ab\n\n")
  expect(reader.lastId).toBe("6")
})

test("lines come whole, with their ids, however they are cut", () => {
  const lines = '{"id":"1","chunk":{"text":"漢\\n"}}\n\n{"id":"2","chunk":null}\nnull\n{"id":"3"'
  for (const chunks of [[bytes(lines)], singly(bytes(lines))]) {
    const reader = new JsonLines()
    const pieces = fed(reader, chunks)
    expect(text(pieces)).toBe(lines.slice(0, lines.lastIndexOf("\n") + 1))
    expect(pieces.flatMap(({ event }) => event?.id ?? [])).toEqual(["1", "2", "2"])
    expect(reader.lastId).toBe("2")
  }
})
