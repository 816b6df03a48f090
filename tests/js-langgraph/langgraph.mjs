// LangGraph's SDK (argv[3]: which of the installed ones) against the server at argv[2].
import assert from "node:assert/strict"
import { agentName, cutting, resuming, run, until } from "../js-agents/cells.mjs"

// It pauses for a second and more before it connects again: a hundredth of that is enough here.
const { setTimeout: later } = globalThis
globalThis.setTimeout = (call, ms, ...more) => later(call, ms >= 900 && ms < 3000 ? ms / 100 : ms, ...more)

const [server, sdk] = process.argv.slice(2)
const { Client } = await import(sdk)
const apiUrl = `${server}/langgraph`
const words = Array.from({ length: 20 }, (_, number) => `word ${number} 漢\u2028字\n`).join("")
const modes = ["values", "messages-tuple", "updates", "custom"]

const clientOf = (fetching) => new Client({ apiUrl, callerOptions: fetching ? { fetch: fetching } : {} })
const plain = clientOf()
const asked = (text, more) => ({ input: { messages: [{ type: "human", content: text }] }, streamMode: modes, ...more })
const message = ({ type, content, tool_calls: calls }) => [type, content, ...(calls ?? []).map((call) => call.args)]
const values = (parts) => parts.findLast((part) => part.event === "values").data
const final = (parts) => values(parts).messages.map(message)
const last = (parts) => final(parts).at(-1)[1]

async function collected(stream) {
  const parts = []
  for await (const part of stream) parts.push(part)
  return parts
}

const answered = (text, { thread = crypto.randomUUID(), fetching, ...more } = {}) =>
  collected(clientOf(fetching).runs.stream(thread, agentName, asked(text, more)))

// Cuts streams only.
function cuttingStreams(options) {
  const cut = cutting(options)
  const fetching = (url, init) => (new URL(url).pathname.endsWith("/stream") ? cut(url, init) : fetch(url, init))
  return Object.assign(fetching, { made: () => cut.count })
}

// A run that was left in its middle: its ids.
async function midway(text, thread = crypto.randomUUID()) {
  let created
  const stream = plain.runs.stream(thread, "bot", asked(text, { onRunCreated: (run) => void (created = run) }))
  for await (const part of stream) if (part.event === "messages") break
  return [created.thread_id, created.run_id]
}

const status = async (thread, id) => (await plain.runs.get(thread, id)).status

const toolMessages = [
  ["human", "tool"],
  ["ai", "", { q: "x" }],
  ["tool", '{"found":"x"}'],
  ["ai", "Found: {'found': 'x'}"],
]

await run({
  async whole() {
    const parts = await answered("words")
    assert.deepEqual([parts[0].event, parts.at(-1).event, last(parts)], ["metadata", "end", words])
    const chunks = parts.filter((part) => part.event === "messages").map((part) => part.data[0].content)
    assert.deepEqual([chunks.length, chunks.join("")], [20, words])
  },
  async "tool call"() {
    assert.deepEqual(final(await answered("tool")), toolMessages)
    const parts = await answered("tool", { streamMode: ["messages"] })
    assert.deepEqual(
      parts.filter((part) => part.event === "messages/complete").flatMap((part) => part.data.map(message)),
      toolMessages,
    )
  },
  async "a thread goes on"() {
    const { thread_id: thread } = await plain.threads.create()
    await answered("tool", { thread })
    const parts = await answered("history", { thread })
    const roles = JSON.parse(last(parts)).map(([role]) => role)
    assert.deepEqual(roles, ["user", "assistant", "tool", "assistant", "user"])
    assert.deepEqual((await plain.threads.getState(thread)).values, values(parts))
    const history = await plain.threads.getHistory(thread)
    assert.deepEqual(history.map((state) => state.values.messages.length), [6, 5, 4, 1])
    assert.equal((await plain.threads.get(thread)).status, "idle")
    assert.equal((await plain.runs.list(thread)).length, 2)
    assert.equal((await plain.assistants.search())[0].assistant_id, "bot")
  },
  async "error in mid-stream"() {
    const thread = crypto.randomUUID()
    const parts = await answered("error", { thread })
    assert.equal(parts.at(-1).event, "error")
    assert.doesNotMatch(JSON.stringify(parts.at(-1).data), /secret|Traceback|ReadError/)
    assert.equal((await plain.threads.get(thread)).status, "error")
    await assert.rejects(plain.runs.wait(crypto.randomUUID(), "bot", asked("error")), /upstream_cut/)
    await assert.rejects(answered("words", { streamMode: "debug" }), /400.*messages-tuple/)
  },
  async cancel() {
    const [thread, id] = await midway("hold")
    const reading = collected(plain.runs.joinStream(thread, id))
    await assert.rejects(answered("words", { thread }), /409/)
    await plain.runs.cancel(thread, id, true)
    assert.equal(await status(thread, id), "interrupted")
    const parts = await reading
    assert.deepEqual([parts.at(-1).event, last(parts)], ["end", "Hel"])
  },
  async "leaving stops nothing"() {
    const [thread, id] = await midway("words")
    assert.equal(last(await collected(plain.runs.joinStream(thread, id, { lastEventId: "-1" }))), words)
    assert.equal(await status(thread, id), "success")
  },
  async approval() {
    const thread = crypto.randomUUID()
    const asking = await answered("approval", { thread })
    const [{ id, value }, ...others] = values(asking).__interrupt__
    assert.deepEqual([asking.at(-1).event, value.action_requests, others], ["end", [{ name: "danger", args: { n: 1 } }], []])
    assert.equal((await plain.threads.get(thread)).status, "interrupted")
    const resume = (decision) => answered("", { thread, input: undefined, command: { resume: { [id]: decision } } })
    const rest = await resume({ type: "reject", message: "not on a Friday" })
    assert.equal(last(rest), "It said: not on a Friday")
    assert.equal("__interrupt__" in values(rest), false)
    await assert.rejects(resume({ type: "approve" }), /409/)
  },
  async "cut after each event"() {
    const whole = await answered("tool")
    const every = whole.map(async (_, number) => {
      const cut = await answered("tool", { fetching: cuttingStreams({ events: number + 1, times: 1 }) })
      assert.deepEqual(final(cut), toolMessages, `cut after ${number + 1}`)
      assert.deepEqual(cut.map((part) => part.event), whole.map((part) => part.event))
    })
    await Promise.all(every)
  },
  async "one event per connection"() {
    const fetching = cuttingStreams({ events: 1 })
    assert.deepEqual(final(await answered("tool", { fetching })), toolMessages)
    assert.ok(fetching.made() > 10)
  },
  async "ended while the run goes on"() {
    assert.equal(last(await answered("words", { fetching: cuttingStreams({ events: 4, clean: true, times: 1 }) })), words)
  },
  async "ended when the run is over"() {
    const thread = crypto.randomUUID()
    const [{ data: { run_id: id } }] = await answered("tool", { thread })
    const client = clientOf(cuttingStreams({ events: 4, clean: true, times: 1 }))
    assert.deepEqual(final(await collected(client.runs.joinStream(thread, id))), toolMessages)
  },
  async "by resumableFetch"() {
    for (const clean of [false, true]) {
      const fetching = cuttingStreams({ events: 1, clean })
      assert.deepEqual(final(await answered("tool", { fetching: resuming(fetching) })), toolMessages)
      assert.ok(fetching.made() > 10)
    }
  },
  async "late join"() {
    const [thread, id] = await midway("words")
    const late = await collected(plain.runs.joinStream(thread, id, { streamMode: modes }))
    const again = await collected(plain.runs.joinStream(thread, id, { streamMode: modes }))
    assert.deepEqual([last(late), late], [words, again])
  },
  async "two readers"() {
    const { run_id: id, thread_id: thread } = await plain.runs.create(crypto.randomUUID(), "bot", asked("words"))
    const [one, two] = await Promise.all([0, 1].map(() => collected(plain.runs.joinStream(thread, id))))
    assert.equal(last(one), words)
    assert.deepEqual(one, two)
  },
  async "local model"() {
    const parts = await answered("What is the weather in Lisbon?")
    assert.deepEqual(final(parts).map(([type]) => type), ["human", "ai", "tool", "ai"])
    const record = await (await fetch(`${server}/v1/runs/${parts[0].data.run_id}`)).json()
    assert.equal(last(parts), record.result)
  },
  async useStream() {
    const { useStream } = await import(`${sdk}/react`)
    const { createElement } = await import("react")
    const { act, create } = await import("react-test-renderer")
    globalThis.IS_REACT_ACT_ENVIRONMENT = true
    let stream
    let made
    function Chat() {
      stream = useStream({ apiUrl, assistantId: "bot", fetchStateHistory: true, onThreadId: (id) => void (made = id) })
      stream.messages
      return null
    }
    const rendered = async (doing) => {
      await act(async () => void (await doing()))
      const soon = () => new Promise((done) => later(done, 5))
      for (const late = Date.now() + 4_000; stream.isLoading && Date.now() < late; ) await act(soon)
    }
    const shown = () => stream.messages.map(({ type, content }) => [type, content])
    await rendered(() => create(createElement(Chat)))
    await rendered(() => stream.submit({ messages: [{ type: "human", content: "tool" }] }))
    assert.deepEqual(shown(), toolMessages.map((one) => one.slice(0, 2)))
    await rendered(() => stream.submit({ messages: [{ type: "human", content: "words" }] }))
    assert.deepEqual(shown().slice(4), [["human", "words"], ["ai", words]])
    assert.deepEqual((await plain.threads.getState(made)).values.messages.map(message).length, 6)
    // From before the second question, it is asked otherwise: the history has two branches.
    const checkpoint = stream.history.find((state) => state.values.messages.length === 4).checkpoint
    await rendered(() => stream.submit({ messages: [{ type: "human", content: "tool" }] }, { checkpoint }))
    assert.deepEqual(shown().slice(4), toolMessages.map((one) => one.slice(0, 2)))
    await rendered(() => stream.submit({ messages: [{ type: "human", content: "approval" }] }))
    assert.deepEqual(stream.interrupt.value.action_requests[0].args, { n: 1 })
    await rendered(() => stream.submit(null, { command: { resume: { decisions: [{ type: "approve" }] } } }))
    assert.deepEqual([stream.messages.at(-1).content, stream.interrupt], ["It said: dared 1", undefined])
  },
})
