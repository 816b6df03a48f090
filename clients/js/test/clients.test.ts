// The chat clients on resumableFetch against a real server, whose connections are cut: what they make of an answer is
// the same as of one that came whole, without resumableFetch. Set HEADWATER_URL to a server of tests.agents_to_read:bot.
import { describe, expect, test } from "vitest"
import { resumableFetch } from "../src/index.js"
import { chats } from "./chats.js"
import { cuttingAfter, cuttingAtByte } from "./network.js"

const server = process.env.HEADWATER_URL ?? ""
const fetching = resumableFetch({ delay: 1 })

if (!server) test.skip("no server is named: set HEADWATER_URL", () => {})

describe.runIf(server).each(Object.entries(chats))("%s", (_, { ask, end = "\n\n" }) => {
  test.each(["abrupt", "clean"])("cut after each event: %s", async (kind) => {
    const whole = await ask(server, fetch, "tool")
    for (let events = 1; ; events++) {
      const proxy = await cuttingAfter(server, events, { clean: kind === "clean", times: 1, end })
      expect(await ask(proxy.url, fetching, "tool"), `after ${events}`).toEqual(whole)
      if (proxy.count === 1) return expect(events).toBeGreaterThan(8)
    }
  })

  test("what it missed comes rolled up", async () => {
    const rolledUp = resumableFetch({ delay: 1, resumeAt: ({ href }) => href.replace("&rollup=0", "") })
    const { parts: _, ...whole } = await ask(server, fetch, "words")
    for (const events of [1, 3, 9, 15]) {
      const proxy = await cuttingAfter(server, events, { times: 1, end })
      const { parts: __, ...cut } = await ask(proxy.url, rolledUp, "words")
      expect(cut, `after ${events}`).toEqual(whole)
    }
  })

  test.each([
    ["tool", "abrupt"],
    ["tool", "clean"],
    ["words", "abrupt"],
  ])("one event per connection: %s, %s", async (text, kind) => {
    const proxy = await cuttingAfter(server, 1, { clean: kind === "clean", end })
    expect(await ask(proxy.url, fetching, text)).toEqual(await ask(server, fetch, text))
    expect(proxy.count).toBeGreaterThan(8)
  })
})

const asked = { threadId: "t", messages: [{ id: "m", role: "user", content: "?" }], tools: [], context: [], state: {}, forwardedProps: {} }
const chat = { id: "c", trigger: "submit-message", messages: [{ id: "m", role: "user", parts: [{ type: "text", text: "?" }] }] }

describe.runIf(server)("cut after so many bytes, the head of the answer among them", () => {
  test.each([
    ["agents/bot/ag-ui?rollup=0", 1, asked],
    ["agents/bot/ag-ui?rollup=0&format=ndjson", 13, asked],
    ["agents/bot/chat-v7?rollup=0", 13, chat],
    ["v1/runs?rollup=0", 13, { agent: "bot", input: "?" }],
  ])("%s, every %i", async (path, step, body) => {
    const id = crypto.randomUUID()
    const headers = { "content-type": "application/json", "idempotency-key": id, accept: "text/event-stream" }
    const init = { method: "POST", headers, body: JSON.stringify("agent" in body ? body : { runId: id, ...body }) }
    // Comments and `retry` come once per connection; the events are what must be the same.
    const read = async (at: string) => (await (await fetching(`${at}/${path}`, init)).text()).replace(/^(:.*|retry:.*)\n/gm, "")
    const whole = await read(server)
    for (let bytes = 0; ; bytes += step) {
      const proxy = await cuttingAtByte(server, bytes)
      expect(await read(proxy.url), `after ${bytes} bytes`).toBe(whole)
      proxy.close()
      if (proxy.passed < bytes) return expect(bytes).toBeGreaterThan(whole.length)
    }
  })
})
