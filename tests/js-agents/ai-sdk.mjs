// The AI SDK's chat (what useChat is made of), version argv[3], against the server at argv[2].
import assert from "node:assert/strict"
import { agentName, cutting, eachLength, resuming, run, until } from "./cells.mjs"

const [server, version] = process.argv.slice(2)
const sdk = await import(`ai${version}`)
const { AbstractChat, DefaultChatTransport, TextStreamChatTransport } = sdk
const words = Array.from({ length: 20 }, (_, number) => `word ${number} 漢\u2028字\n`).join("")
const door = { 5: "chat-v5", 6: "chat", 7: "chat-v7" }[version]

// As React's `Chat` keeps it, without React.
class Chat extends AbstractChat {
  constructor({ id = crypto.randomUUID(), messages = [], fetch, door: through = door, Transport = DefaultChatTransport }) {
    const state = {
      status: "ready",
      error: undefined,
      messages,
      pushMessage: (message) => (state.messages = state.messages.concat(message)),
      popMessage: () => (state.messages = state.messages.slice(0, -1)),
      replaceMessage: (index, message) => (state.messages = state.messages.with(index, structuredClone(message))),
      snapshot: (thing) => structuredClone(thing),
    }
    const finished = []
    const data = []
    const transport = new Transport({ api: `${server}/agents/${agentName}/${through}`, fetch })
    const sendAutomaticallyWhen = sdk.lastAssistantMessageIsCompleteWithApprovalResponses
    super({ id, transport, state, sendAutomaticallyWhen, onFinish: (end) => finished.push(end), onData: (part) => data.push(part) })
    Object.assign(this, { finished, data })
  }
  ask = (text) => this.sendMessage({ text })
  get answer() {
    return this.messages.findLast((message) => message.role === "assistant")
  }
  get text() {
    return (this.answer?.parts ?? []).filter((part) => part.type === "text").map((part) => part.text).join("")
  }
  stopRun = (body) => fetch(`${server}/agents/${agentName}/${door}/${this.id}/stop`, { method: "POST", body })
}

// Parts without what differs between runs.
const plain = (message) =>
  message.parts.map(({ toolCallId, ...part }) => JSON.parse(JSON.stringify(part, (key, value) => (key === "messageId" ? 0 : value))))

async function answered(text, options = {}) {
  const chat = new Chat(options)
  await chat.ask(text)
  return chat
}

// The same answer whatever the connection does: cut behind each of its events.
async function cutEverywhere(clean) {
  const whole = plain((await answered("tool")).answer)
  for (let events = 1; ; events++) {
    const fetching = cutting({ events, clean, times: 1 })
    const chat = await answered("tool", { fetch: resuming(fetching) })
    assert.deepEqual([chat.status, chat.error, plain(chat.answer)], ["ready", undefined, whole], `cut after ${events}`)
    assert.equal(chat.answer.metadata.status, "completed")
    if (events > 16) return
  }
}

async function midway(text = "words", options = {}) {
  const chat = new Chat(options)
  const done = chat.ask(text)
  await until(() => chat.text !== "")
  return { chat, done }
}

await run({
  async whole() {
    const chat = await answered("words")
    assert.deepEqual([chat.status, chat.text, chat.messages.length], ["ready", words, 2])
    assert.equal(chat.answer.id, chat.answer.metadata.runId)
    assert.deepEqual(chat.answer.metadata.usage, { inputTokens: 7, outputTokens: 20, totalTokens: 27 })
    assert.ok(chat.answer.parts.every((part) => part.type === "step-start" || part.state === "done"))
    if (version !== "5") assert.equal(chat.finished[0].finishReason, "stop")
  },
  async "tool call"() {
    const chat = await answered("tool")
    const parts = chat.answer.parts
    assert.deepEqual(parts.map((part) => part.type), ["step-start", "tool-search", "step-start", "text"])
    const { state, input, output } = parts[1]
    assert.deepEqual({ state, input, output }, { state: "output-available", input: { q: "x" }, output: { found: "x" } })
    assert.equal(chat.text, "Found: {'found': 'x'}")
    assert.deepEqual(chat.data.map((part) => part.type), ["data-tool-started"])
  },
  async history() {
    const chat = await answered("tool")
    await chat.ask("history")
    const sent = JSON.parse(chat.text)
    assert.deepEqual(sent.map(([role]) => role), ["user", "assistant", "tool", "assistant", "user"])
    await chat.regenerate()
    assert.deepEqual([JSON.parse(chat.text), chat.messages.length], [sent, 4])
  },
  async "error in mid-stream"() {
    const chat = await answered("error")
    assert.equal(chat.status, "error")
    assert.match(chat.error.message, /\w/)
    assert.doesNotMatch(chat.error.message, /secret|Traceback|ReadError/)
    assert.equal(chat.text, "Hello")
    assert.equal(chat.answer.metadata.status, "failed")
  },
  async cancel() {
    const { chat, done } = await midway("hold")
    assert.equal((await chat.stopRun(JSON.stringify({ activeStreamId: "another" }))).status, 200)
    const asked = await chat.stopRun(JSON.stringify({ assistantMessage: chat.answer }))
    assert.deepEqual([asked.status, (await asked.json()).stopped], [202, true])
    const again = await fetch(`${server}/agents/${agentName}/${door}/${chat.id}/stream`)
    assert.equal(again.status, 204)
    await done
    assert.deepEqual([chat.status, chat.text, chat.answer.metadata.status], ["ready", "Hel", "cancelled"])
    assert.deepEqual((await (await chat.stopRun()).json()).stopped, true)
  },
  async "leaving stops nothing"() {
    const { chat, done } = await midway()
    await chat.stop()
    await done
    const back = new Chat({ id: chat.id, messages: chat.messages.slice(0, 1) })
    await back.resumeStream()
    assert.deepEqual([back.status, back.text], ["ready", words])
  },
  "cut after each event": () => cutEverywhere(false),
  "ended after each event": () => cutEverywhere(true),
  async "one event per connection"() {
    const whole = plain((await answered("tool")).answer)
    const fetching = cutting({ events: 1 })
    const chat = await answered("tool", { fetch: resuming(fetching) })
    assert.deepEqual([chat.status, plain(chat.answer)], ["ready", whole])
    assert.ok(fetching.count > 10)
  },
  async "late join"() {
    const { chat, done } = await midway()
    const late = new Chat({ id: chat.id, messages: chat.messages.slice(0, 1) })
    await late.resumeStream()
    await done
    assert.deepEqual(late.messages, chat.messages)
    assert.equal(late.text, words)
  },
  async "two readers"() {
    const { chat, done } = await midway()
    const fetching = resuming(cutting({ events: 3, times: 1 }))
    const other = new Chat({ id: chat.id, messages: chat.messages.slice(0, 1), fetch: fetching })
    await Promise.all([done, other.resumeStream()])
    assert.equal(chat.text, words)
    assert.deepEqual(other.messages, chat.messages)
  },
  async "nothing to resume"() {
    const chat = new Chat({})
    await chat.resumeStream()
    assert.deepEqual([chat.status, chat.messages], ["ready", []])
    await chat.ask("tool")
    const before = structuredClone(chat.messages)
    await chat.resumeStream()
    assert.deepEqual([chat.status, chat.messages], ["ready", before])
  },
  async "resume in the same tab"() {
    const chat = new Chat({ fetch: cutting({ events: 8, times: 1 }) })
    await chat.ask("words")
    assert.equal(chat.status, "error")
    assert.notEqual(chat.text, "")
    await chat.resumeStream()
    assert.deepEqual([chat.status, chat.text, chat.messages.length], ["ready", words, 2])
  },
  async "text stream"() {
    const chat = await answered("words", { door: "chat-text", Transport: TextStreamChatTransport })
    assert.deepEqual([chat.status, chat.text], ["ready", words])
    const failed = await answered("error", { door: "chat-text", Transport: TextStreamChatTransport })
    assert.deepEqual([failed.status, failed.text], ["error", "Hello"])
  },
  async "bad request"() {
    const chat = new Chat({ door: "nothing" })
    await chat.ask("words")
    assert.equal(chat.status, "error")
    assert.match(chat.error.message, /not_found/)
  },
  async "local model"() {
    const chat = await answered("What is the weather in Lisbon?")
    assert.deepEqual([chat.status, chat.error, chat.answer.metadata.status], ["ready", undefined, "completed"])
    assert.equal(chat.answer.parts.find((part) => part.type === "tool-weather").state, "output-available")
    const record = await (await fetch(`${server}/v1/runs/${chat.answer.id}`)).json()
    assert.equal(chat.text, record.result)
  },
  async approval() {
    const decisions = [{ approved: true }, { approved: false, reason: "not on a Friday" }]
    for (const decision of decisions) {
      const said = decision.approved ? "It said: dared 1" : "It said: not on a Friday"
      if (version === "5") await answeredByRun(decision, said)
      else await approvedInChat(decision, said)
    }
  },
  async "rolled up equals not rolled up"() {
    for (const text of ["words", "tool"]) {
      let location
      const noting = async (url, init) => {
        const response = await fetch(url, init)
        location = response.headers.get("location")
        return response
      }
      const first = await answered(text, { fetch: noting })
      const [rolled, whole] = await Promise.all(
        ["", "&rollup=0"].map(async (more) => {
          let chunks = 0
          const counting = async () => {
            const response = await fetch(new URL(location + more, server))
            const [read, counted] = response.body.tee()
            new Response(counted).text().then((all) => (chunks = all.split('"text-delta"').length - 1))
            return new Response(read, response)
          }
          const late = new Chat({ id: first.id, messages: first.messages.slice(0, 1), fetch: counting })
          await late.resumeStream()
          await until(() => chunks > 0)
          return { late, chunks }
        }),
      )
      assert.deepEqual([rolled.late.status, rolled.late.error], ["ready", undefined])
      assert.deepEqual(rolled.late.messages, whole.late.messages)
      assert.deepEqual(rolled.late.messages, first.messages)
      assert.deepEqual(rolled.late.data, whole.late.data)
      assert.ok(rolled.chunks === 1 && whole.chunks > 1, `${rolled.chunks} and ${whole.chunks}`)
    }
  },
})

// Version 5 has no approvals: the answer stays open, and its app answers by the run.
async function answeredByRun({ approved: approve, reason: message }, said) {
  const chat = new Chat({})
  const done = chat.ask("approval")
  const asked = () => chat.answer?.parts.find(({ type }) => type === "data-approval-requested")
  await until(asked)
  const { toolCallId: tool_call_id, arguments: given } = asked().data
  assert.equal(given, '{"n": 1}')
  const body = JSON.stringify({ tool_call_id, approve, message })
  const headers = { "content-type": "application/json" }
  assert.equal((await fetch(`${server}/v1/runs/${chat.answer.id}/approvals`, { method: "POST", headers, body })).status, 202)
  await done
  assert.deepEqual([chat.status, chat.text], ["ready", said])
}

function danger(chat) {
  return chat.answer?.parts.find(({ type }) => type === "tool-danger")
}

async function approvedInChat(decision, said) {
  const whole = await approved(decision, said)
  const { state, output, approval } = danger(whole)
  assert.deepEqual([state, output], decision.approved ? ["output-available", "dared 1"] : ["output-denied", undefined])
  assert.deepEqual([approval.approved, approval.reason], [decision.approved, decision.reason])
  assert.deepEqual(whole.answer.parts.filter(({ type }) => type.startsWith("tool-")).length, 2)
  assert.deepEqual([whole.messages.length, whole.answer.id], [2, whole.answer.metadata.runId])
  assert.deepEqual(whole.finished.map(({ finishReason }) => finishReason), ["tool-calls", "stop"])
  await eachLength(async (events) => {
    const fetch = resuming(cutting({ events, clean: decision.approved }))
    assert.deepEqual(without(await approved(decision, said, { fetch })), without(whole), `cut after ${events}`)
  })
  const back = await reloaded(decision, said)
  assert.deepEqual(without(back), without(whole))
}

// Parts without ids, which are new in every run.
function without({ answer }) {
  return plain(answer).map(({ approval, id, data, ...part }) => ({ ...part, approved: approval?.approved }))
}

async function asked(options = {}) {
  const chat = new Chat(options)
  await chat.ask("approval")
  assert.deepEqual([chat.status, danger(chat).state, danger(chat).input], ["ready", "approval-requested", { n: 1 }])
  return chat
}

async function decided(chat, decision, said) {
  await chat.addToolApprovalResponse({ id: danger(chat).approval.id, ...decision })
  await until(() => chat.status === "ready" && chat.text === said)
  return chat
}

async function approved(decision, said, options) {
  return decided(await asked(options), decision, said)
}

// Another tab has nothing but the question, and gets it again; a third, which decides otherwise, is told so.
async function reloaded(decision, said) {
  const chat = await asked()
  const messages = chat.messages.slice(0, 1)
  const [back, late] = [new Chat({ id: chat.id, messages }), new Chat({ id: chat.id, messages })]
  for (const tab of [back, late]) {
    await tab.resumeStream()
    assert.deepEqual([tab.status, danger(tab).state], ["ready", "approval-requested"])
  }
  await decided(back, decision, said)
  await late.addToolApprovalResponse({ id: danger(late).approval.id, approved: !decision.approved })
  await until(() => late.status === "error")
  assert.match(late.error.message, /decided on already/)
  return back
}
