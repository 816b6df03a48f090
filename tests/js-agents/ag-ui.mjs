// AG-UI's HttpAgent against the server at argv[2].
import assert from "node:assert/strict"
import { HttpAgent, buildResumeArray } from "@ag-ui/client"
import { agentName, cutting, eachLength, resuming, run, until } from "./cells.mjs"

const server = process.argv[2]
const api = `${server}/agents/${agentName}/ag-ui`
const words = Array.from({ length: 20 }, (_, number) => `word ${number} 漢\u2028字\n`).join("")

function agent(text, options = {}) {
  const made = new HttpAgent({ url: api, ...options })
  if (text) made.addMessage({ id: crypto.randomUUID(), role: "user", content: text })
  made.seen = []
  made.subscribe({ onEvent: ({ event }) => void made.seen.push(event) })
  return made
}

const answer = (agent) => agent.messages.findLast((message) => message.role === "assistant")
// What is past comes rolled up: deltas behind each other count as one.
const types = (agent) => agent.seen.map((event) => event.type).filter((type, at, all) => type !== all[at - 1])
const plain = (agent) =>
  agent.messages.map(({ role, content, toolCalls }) => [role, content, toolCalls?.map((call) => call.function)])

async function answered(text, options, parameters) {
  const made = agent(text, options)
  await made.runAgent(parameters)
  return made
}

async function midway(text, parameters) {
  const made = agent(text)
  const done = made.runAgent(parameters)
  await until(() => types(made).includes("TEXT_MESSAGE_CONTENT"))
  return { made, done }
}

async function cutEverywhere(clean) {
  const whole = await answered("tool")
  for (let events = 1; ; events++) {
    const cut = await answered("tool", { fetch: resuming(cutting({ events, clean, times: 1 })) })
    assert.deepEqual(plain(cut), plain(whole), `cut after ${events}`)
    assert.deepEqual(types(cut), types(whole))
    if (events > whole.seen.length) return
  }
}

const toolMessages = [
  ["user", "tool", undefined],
  ["assistant", undefined, [{ name: "search", arguments: '{"q": "x"}' }]],
  ["tool", '{"found":"x"}', undefined],
  ["assistant", "Found: {'found': 'x'}", undefined],
]

await run({
  async whole() {
    const made = await answered("words")
    assert.equal(answer(made).content, words)
    assert.deepEqual([types(made)[0], types(made).at(-1)], ["RUN_STARTED", "RUN_FINISHED"])
    assert.ok(!types(made).includes("CUSTOM"))
    assert.deepEqual(made.seen.at(-1).usage, [{ model: "tiny", inputTokens: 7, outputTokens: 20, totalTokens: 27 }])
  },
  async "tool call"() {
    assert.deepEqual(plain(await answered("tool")), toolMessages)
  },
  async history() {
    const made = await answered("tool")
    made.addMessage({ id: "next", role: "user", content: "history" })
    await made.runAgent()
    const roles = JSON.parse(answer(made).content).map(([role]) => role)
    assert.deepEqual(roles, ["user", "assistant", "tool", "assistant", "user"])
  },
  async "error in mid-stream"() {
    const made = agent("error")
    const ended = await made.runAgent().then(() => "well", (error) => String(error))
    const last = made.seen.at(-1)
    assert.equal(last.type, "RUN_ERROR", ended)
    assert.doesNotMatch(last.message, /secret|Traceback|ReadError/)
    assert.equal(answer(made).content, "Hello")
  },
  async cancel() {
    const runId = crypto.randomUUID()
    const { made, done } = await midway("hold", { runId })
    const stop = () => fetch(`${api}/${runId}/stop`, { method: "POST" })
    assert.equal((await stop()).status, 202)
    await done
    const last = made.seen.at(-1)
    assert.deepEqual([last.type, last.outcome.type, answer(made).content], ["RUN_FINISHED", "cancelled", "Hel"])
    assert.equal((await stop()).status, 200)
  },
  async "leaving stops nothing"() {
    const runId = crypto.randomUUID()
    const { made, done } = await midway("words", { runId })
    made.abortRun()
    await done.catch(() => {})
    const back = agent(undefined, { threadId: made.threadId, initialMessages: made.messages.slice(0, 1) })
    await back.runAgent({ runId })
    assert.equal(answer(back).content, words)
  },
  "cut after each event": () => cutEverywhere(false),
  "ended after each event": () => cutEverywhere(true),
  async "one event per connection"() {
    const fetching = cutting({ events: 1 })
    assert.deepEqual(plain(await answered("tool", { fetch: resuming(fetching) })), toolMessages)
    assert.ok(fetching.count > 10)
  },
  async "late join"() {
    const runId = crypto.randomUUID()
    const { made, done } = await midway("words", { runId })
    const late = agent(undefined, { threadId: made.threadId, initialMessages: made.messages.slice(0, 1) })
    await Promise.all([done, late.runAgent({ runId })])
    assert.deepEqual(late.messages, made.messages)
    assert.deepEqual(types(late), types(made))
  },
  async "two readers"() {
    const [runId, threadId] = [crypto.randomUUID(), crypto.randomUUID()]
    const initialMessages = [{ id: "q", role: "user", content: "words" }]
    const both = [0, 1].map(() => agent(undefined, { threadId, initialMessages }))
    await Promise.all(both.map((made) => made.runAgent({ runId })))
    assert.equal(answer(both[0]).content, words)
    assert.deepEqual(both[0].messages, both[1].messages)
    assert.deepEqual(types(both[0]), types(both[1]))
  },
  async "the same run asked for otherwise"() {
    const runId = crypto.randomUUID()
    await answered("tool", {}, { runId })
    await assert.rejects(answered("words", {}, { runId }), /409/)
  },
  async "local model"() {
    const made = await answered("What is the weather in Lisbon?")
    const { runId, type } = made.seen.at(-1)
    assert.equal(type, "RUN_FINISHED")
    assert.ok(made.messages.some(({ role }) => role === "tool"))
    const record = await (await fetch(`${server}/v1/runs/${runId}`)).json()
    assert.equal(answer(made).content, record.result)
  },
  async approval() {
    for (const [payload, said] of [
      [{ approved: true }, "dared 1"],
      [{ approved: false, message: "not on a Friday" }, "not on a Friday"],
    ]) {
      const whole = await decided(payload)
      assert.equal(answer(whole).content, `It said: ${said}`)
      assert.deepEqual(whole.pendingInterrupts, [])
      const starts = types(whole).filter((type) => ["RUN_STARTED", "RUN_FINISHED"].includes(type))
      assert.deepEqual(starts, ["RUN_STARTED", "RUN_FINISHED", "RUN_STARTED", "RUN_FINISHED"])
      await eachLength(async (events) => {
        const fetch = resuming(cutting({ events, clean: payload.approved }))
        const cut = await decided(payload, { fetch })
        assert.deepEqual([plain(cut), types(cut)], [plain(whole), types(whole)], `cut after ${events}`)
      })
    }
  },
  async "rolled up equals not rolled up"() {
    for (const text of ["words", "tool"]) {
      const runId = crypto.randomUUID()
      const made = await answered(text, {}, { runId })
      const [rolled, whole] = await Promise.all(
        [api, `${api}?rollup=0`].map(async (url) => {
          const late = agent(undefined, { url, threadId: made.threadId, initialMessages: made.messages.slice(0, 1) })
          await late.runAgent({ runId })
          return late
        }),
      )
      assert.deepEqual(rolled.messages, whole.messages)
      assert.deepEqual(rolled.messages, made.messages)
      assert.deepEqual(whole.seen, made.seen)
      const deltas = (agent) => agent.seen.filter((event) => event.type === "TEXT_MESSAGE_CONTENT").length
      assert.ok(deltas(rolled) === 1 && deltas(whole) > 1)
    }
  },
})

// Asks, is asked, and answers by its next run.
async function decided(payload, options) {
  const made = await answered("approval", options)
  const [{ id, toolCallId, reason, message, metadata }] = made.pendingInterrupts
  assert.deepEqual([reason, message, metadata.input], ["approval_required", "May danger run?", { n: 1 }])
  assert.ok(made.messages.some(({ toolCalls }) => toolCalls?.some((call) => call.id === toolCallId)))
  await assert.rejects(made.runAgent(), /pending interrupt/)
  await made.runAgent({ resume: buildResumeArray(made.pendingInterrupts, { [id]: { status: "resolved", payload } }) })
  return made
}
