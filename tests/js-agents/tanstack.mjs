// TanStack AI's chat client against the server at argv[2].
import assert from "node:assert/strict"
import { ChatClient, fetchHttpStream, fetchServerSentEvents } from "@tanstack/ai-client"
import { agentName, cutting, eachLength, run, until } from "./cells.mjs"

const server = process.argv[2]
const api = `${server}/agents/${agentName}/ag-ui`
const words = Array.from({ length: 20 }, (_, number) => `word ${number} 漢\u2028字\n`).join("")

function client({ fetch: fetchClient, threadId = crypto.randomUUID(), lines = false, ...options } = {}) {
  const through = { fetchClient, reconnect: { delayMs: 1 } }
  const connection = lines ? fetchHttpStream(`${api}?format=ndjson`, through) : fetchServerSentEvents(api, through)
  const seen = []
  const made = new ChatClient({ connection, threadId, onChunk: (chunk) => seen.push(chunk), ...options })
  made.attach()
  return Object.assign(made, { seen, wire: connection, thread: threadId })
}

const parts = (client, type) => client.getMessages().flatMap((message) => message.parts).filter((part) => part.type === type)
const said = (client) =>
  client.getMessages().filter(({ role }) => role === "assistant")
    .flatMap((message) => message.parts).filter((part) => part.type === "text").map((part) => part.content).join("")
// Messages without what a client notes for itself alone.
const plain = (client) =>
  JSON.parse(JSON.stringify(client.getMessages())).map(({ id, role, parts }) => ({
    id, role, parts: parts.map(({ metadata, createdAt, id, input, ...part }) => part),
  }))
const runId = (client) => client.seen.find((chunk) => chunk.type === "RUN_STARTED").runId
// What is past comes rolled up: deltas behind each other count as one.
const types = (chunks) => chunks.map(({ type }) => type).filter((type, at, all) => type !== all[at - 1])
const terminals = (client) => client.seen.filter((chunk) => ["RUN_FINISHED", "RUN_ERROR"].includes(chunk.type))

async function answered(text, options) {
  const made = client(options)
  await made.sendMessage(text)
  return made
}

async function midway(text, options) {
  const made = client(options)
  const done = made.sendMessage(text)
  await until(() => said(made) !== "")
  return { made, done }
}

async function cutEverywhere(clean) {
  const whole = await answered("tool")
  for (let events = 1; events < whole.seen.length; events++) {
    const cut = await answered("tool", { fetch: cutting({ events, clean, times: 1 }) })
    assert.deepEqual([cut.getStatus(), cut.getError()], ["ready", undefined], `cut after ${events}`)
    assert.deepEqual(types(cut.seen), types(whole.seen), `cut after ${events}`)
    assert.equal(said(cut), said(whole))
  }
}

await run({
  async whole() {
    const made = await answered("words")
    assert.deepEqual([made.getStatus(), said(made), made.getMessages().length], ["ready", words, 2])
    assert.equal(terminals(made).length, 1)
  },
  async "tool call"() {
    const made = await answered("tool")
    assert.equal(said(made), "Found: {'found': 'x'}")
    assert.deepEqual(parts(made, "tool-call").map(({ name, arguments: given }) => [name, given]), [["search", '{"q": "x"}']])
    assert.deepEqual(parts(made, "tool-result").map(({ content }) => content), ['{"found":"x"}'])
  },
  async history() {
    const made = await answered("tool")
    await made.sendMessage("history")
    const sent = JSON.parse(made.getMessages().at(-1).parts.find((part) => part.type === "text").content)
    // The client keeps a tool call and what was said after it as one message, and sends it as such: text, then call.
    assert.deepEqual(sent.map(([role]) => role), ["user", "assistant", "assistant", "tool", "user"])
  },
  async "error in mid-stream"() {
    const made = await answered("error")
    assert.equal(made.getStatus(), "error")
    assert.doesNotMatch(made.getError().message, /secret|Traceback|ReadError/)
    assert.equal(said(made), "Hello")
  },
  async cancel() {
    const { made, done } = await midway("hold")
    const stopped = await fetch(`${api}/${runId(made)}/stop`, { method: "POST" })
    assert.equal(stopped.status, 202)
    await done
    assert.deepEqual([made.getStatus(), said(made)], ["ready", "Hel"])
    assert.deepEqual(terminals(made).map(({ outcome }) => outcome.type), ["cancelled"])
  },
  async "leaving stops nothing"() {
    const { made } = await midway("words")
    made.dispose()
    const back = client({ threadId: made.thread, persistence: true })
    await until(() => said(back) === words)
    assert.deepEqual(back.getMessages().map(({ role }) => role), ["user", "assistant"])
  },
  "cut after each event": () => cutEverywhere(false),
  "ended after each event": () => cutEverywhere(true),
  async "one event per connection"() {
    const fetching = cutting({ events: 1, clean: true })
    const made = await answered("tool", { fetch: fetching })
    assert.deepEqual([made.getStatus(), said(made)], ["ready", "Found: {'found': 'x'}"])
    assert.ok(fetching.count > 10)
  },
  async "late join"() {
    const { made, done } = await midway("words")
    const late = client({ threadId: made.thread, persistence: true })
    await until(() => terminals(late).length > 0)
    await done
    assert.deepEqual([said(late), late.getMessages().length], [words, 2])
    assert.deepEqual(plain(late), plain(made))
  },
  async "two readers"() {
    const { made, done } = await midway("words")
    const chunks = []
    for await (const chunk of made.wire.joinRun(runId(made))) chunks.push(chunk)
    await done
    assert.deepEqual(types(chunks), types(made.seen))
    assert.equal(chunks.map(({ type, delta }) => (type === "TEXT_MESSAGE_CONTENT" ? delta : "")).join(""), words)
  },
  async "broken behind its last event"() {
    const { length } = (await answered("tool")).seen
    const made = await answered("tool", { fetch: cutting({ events: length, times: 1 }) })
    assert.deepEqual([made.getStatus(), said(made)], ["ready", "Found: {'found': 'x'}"])
  },
  async "hydrated when all is over"() {
    const made = await answered("tool")
    await made.sendMessage("words")
    await made.reload()
    const late = client({ threadId: made.thread, persistence: true })
    await until(() => late.getMessages().length > 0)
    assert.deepEqual(plain(late), plain(made))
    assert.deepEqual([late.getStatus(), said(late)], ["ready", said(made)])
  },
  async "as lines, cut after each event"() {
    for (let events = 1; events < 12; events++) {
      const made = await answered("tool", { lines: true, fetch: cutting({ events, times: 1, end: "\n" }) })
      assert.deepEqual([made.getStatus(), said(made)], ["ready", "Found: {'found': 'x'}"], `cut after ${events}`)
      assert.equal(terminals(made).length, 1)
    }
  },
  async "nothing to hydrate"() {
    const late = client({ persistence: true })
    const found = await late.wire.hydrate(late.thread)
    assert.deepEqual([found.messages, found.activeRun, late.getMessages()], [[], null, []])
  },
  async "local model"() {
    const made = await answered("What is the weather in Lisbon?")
    assert.deepEqual([made.getStatus(), terminals(made).length], ["ready", 1])
    assert.equal(parts(made, "tool-call")[0].name, "weather")
    const record = await (await fetch(`${server}/v1/runs/${runId(made)}`)).json()
    assert.equal(said(made), record.result)
  },
  async approval() {
    for (const approved of [true, false]) {
      const whole = await decided(approved)
      const [call] = parts(whole, "tool-call")
      assert.deepEqual([call.name, call.state, call.approval.approved], ["danger", "complete", approved])
      assert.deepEqual([whole.getStatus(), whole.getInterrupts()], ["ready", []])
      await eachLength(async (events) => {
        const cut = await decided(approved, { fetch: cutting({ events, clean: approved }) })
        assert.deepEqual(types(cut.seen), types(whole.seen), `cut after ${events}`)
      })
      const late = await decided(approved, {}, ({ thread }) => client({ threadId: thread, persistence: true }))
      assert.deepEqual(shape(late), shape(whole))
      const over = client({ threadId: late.thread, persistence: true })
      await until(() => over.getMessages().length > 0)
      assert.deepEqual(plain(over), plain(late))
    }
  },
  async "rolled up equals not rolled up"() {
    const { made, done } = await midway("words")
    await until(() => said(made).includes("word 15"))
    const lates = ["", "&rollup=0"].map((more) => {
      const reading = (url, init) => fetch(String(url).includes("runId=") ? url + more : url, init)
      return client({ threadId: made.thread, persistence: true, fetch: reading })
    })
    await until(() => lates.every((late) => terminals(late).length > 0))
    await done
    const [rolled, whole] = lates
    assert.deepEqual(plain(rolled), plain(whole))
    assert.deepEqual([plain(rolled), said(rolled)], [plain(made), words])
    const deltas = (client) => client.seen.filter(({ type }) => type === "TEXT_MESSAGE_CONTENT").length
    assert.ok(deltas(rolled) <= 6 && deltas(whole) === 20, `${deltas(rolled)} and ${deltas(whole)}`)
  },
})

function shape(client) {
  return plain(client).map(({ role, parts }) => [role, parts.map(({ type, state, approval }) => [type, state, approval?.approved])])
}

// Asks, is asked, and answers: the same client, or one that was `reloaded`.
async function decided(approved, options, reloaded = (made) => made) {
  const made = reloaded(await answered("approval", options))
  await until(() => made.getInterrupts().length === 1)
  const [{ id, kind, metadata }] = made.getInterrupts()
  assert.deepEqual([kind, metadata.input], ["generic", { n: 1 }])
  assert.equal(parts(made, "tool-call").find((call) => call.approval?.id === id).state, "approval-requested")
  await made.addToolApprovalResponse({ id, approved })
  await until(() => made.getStatus() === "ready" && said(made).startsWith("It said: "))
  assert.equal(said(made).includes("dared 1"), approved)
  return made
}
