// A server that dies in the middle of an answer. Set HEADWATER_COMMAND to what starts one of tests.agents_to_read:bot, a
// JSON list, without its --port and --store.
import { type AgentSubscriber, HttpAgent } from "@ag-ui/client"
import { ChatClient, fetchServerSentEvents } from "@tanstack/ai-client"
import * as ai5 from "ai5"
import * as ai7 from "ai7"
import { spawn } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { expect, onTestFinished, test, vi } from "vitest"
import { follow, resumableFetch, unretracted } from "../src/index.js"
import { headless } from "./chats.js"

const command: string[] = JSON.parse(process.env.HEADWATER_COMMAND ?? "[]")
const messages = [{ id: "m", role: "user", content: "words" }]
const asked = { threadId: "t", runId: "r", messages, tools: [], context: [], state: {}, forwardedProps: {} }
const fetching = resumableFetch({ delay: 50, maxDelay: 500, maxAttempts: 60 })

/** A server of its own, and what kills it and starts it again. */
async function serving() {
  const folder = mkdtempSync(join(tmpdir(), "headwater-"))
  const port = await new Promise<number>((resolve) => {
    const free = createServer().listen(0, "127.0.0.1", () => {
      const { port } = free.address() as { port: number }
      free.close(() => resolve(port))
    })
  })
  const [program, ...options] = [...command, "--port", String(port), "--store", `sqlite:///${folder}/streams.db`]
  const url = `http://127.0.0.1:${port}`
  const started = () => spawn(program!, options, { stdio: "ignore", cwd: new URL("../../..", import.meta.url) })
  const ready = () => vi.waitUntil(() => fetch(`${url}/readyz`).then(({ ok }) => ok, () => false), 30_000)
  let served = started()
  onTestFinished(() => (served.kill("SIGKILL"), rmSync(folder, { recursive: true })))
  await ready()
  const killed = () => {
    const was = served.kill("SIGKILL")
    served = started()
    return was
  }
  return { url, killed }
}

if (!command.length) test.skip("nothing to start a server with is named: set HEADWATER_COMMAND", () => {})

test.runIf(command.length)("a server that is killed in the middle, and started again", async () => {
  const server = await serving()
  let killed = false
  const init = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(asked) }
  const response = await fetching(`${server.url}/agents/bot/ag-ui?rollup=0`, init)
  const runId = response.headers.get("x-run-id")
  const decoder = new TextDecoder()
  let text = ""
  for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
    text += decoder.decode(chunk, { stream: true })
    if (!killed && text.includes("word 5")) killed = server.killed()
  }
  const got = [...text.matchAll(/^data:(.*)$/gm)].map(([, data]) => data)
  const log = []
  for await (const { data } of follow(`${server.url}/v1/runs/${runId}/events?rollup=0`)) if (!data.includes('"run.input"')) log.push(data)
  expect(got).toEqual(log)
  expect(got.filter((data) => /"type":"RUN_(FINISHED|ERROR)"/.test(data!)).length).toBe(1)
  expect(text).toContain("word 19")
})

// As the README has it.
const subscriber: AgentSubscriber = {
  onCustomEvent: ({ event, messages }) =>
    event.name === "message.retracted" ? { messages: messages.filter(({ id }) => id !== event.value.messageId) } : undefined,
}

interface Talk {
  ask(text: string): Promise<unknown>
  /** All that the client keeps. */
  kept(): unknown
}

function talks(url: string): Record<string, Talk> {
  const useChat = (ai: any, door: string): Talk & { shown(): unknown } => {
    const { chat } = headless(ai, `${url}/agents/bot/${door}`, fetching)
    return { ask: (text) => chat.sendMessage({ text }), kept: () => chat.messages, shown: () => chat.messages.map(unretracted) }
  }
  const agUi = (...subscribers: AgentSubscriber[]): Talk => {
    const agent = new HttpAgent({ url: `${url}/agents/bot/ag-ui`, fetch: fetching } as any)
    for (const one of subscribers) agent.subscribe(one)
    const ask = (content: string) => (agent.addMessage({ id: crypto.randomUUID(), role: "user", content }), agent.runAgent())
    return { ask, kept: () => agent.messages }
  }
  const connection = fetchServerSentEvents(`${url}/agents/bot/ag-ui`, { fetchClient: fetching, reconnect: { maxAttempts: 0 } })
  const tanStack = new ChatClient({ connection, threadId: crypto.randomUUID() })
  tanStack.attach()
  return {
    "useChat of ai 7": useChat(ai7, "chat"),
    "useChat of ai 7, which takes steps back": useChat(ai7, "chat-v7"),
    "useChat of ai 5": useChat(ai5, "chat-v5"),
    HttpAgent: agUi(),
    "HttpAgent that takes back": agUi(subscriber),
    "TanStack AI": { ask: (text) => tanStack.sendMessage(text), kept: () => tanStack.getMessages() },
  }
}

const times = (word: string, thing: unknown) => JSON.stringify(thing).split(word).length - 1

test.runIf(command.length)("an answer that was cut and made again is there once: for the model, and in a page", async () => {
  const server = await serving()
  const all = talks(server.url)
  const answered = Object.values(all).map((talk) => talk.ask("slowly"))
  await vi.waitUntil(() => Object.values(all).every((talk) => times("word 2 ", talk.kept())), 30_000)
  server.killed()
  await Promise.all(answered)
  const beginnings = Object.fromEntries(Object.entries(all).map(([name, { kept }]) => [name, times("word 0 ", kept())]))
  expect(beginnings).toEqual({
    "useChat of ai 7": 2,
    "useChat of ai 7, which takes steps back": 1,
    "useChat of ai 5": 2,
    HttpAgent: 2,
    "HttpAgent that takes back": 1,
    "TanStack AI": 2,
  })
  for (const [name, talk] of Object.entries(all)) {
    if ("shown" in talk) expect([times("word 0 ", (talk.shown as () => unknown)()), times("word 19 ", (talk.shown as () => unknown)())], name).toEqual([1, 1])
    const before = [times("word 0 ", talk.kept()), times("word 19 ", talk.kept())]
    await talk.ask("history") // and the answer is all that the model was sent
    const after = [times("word 0 ", talk.kept()), times("word 19 ", talk.kept())]
    expect(after.map((count, at) => count - before[at]!), name).toEqual([1, 1])
  }
})
