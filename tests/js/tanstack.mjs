// TanStack AI's chat session on Durable Streams (its server side and its client side), against the server at argv[2]:
// an answer is written while two tabs follow it, then a page is made of the finished session.
import assert from "node:assert/strict"
import {
  durableStreamConnection,
  materializeSnapshotFromDurableStream,
  toDurableChatSessionResponse,
} from "@durable-streams/tanstack-ai-transport"

const url = `${process.argv[2]}/v1/stream/chats/${encodeURIComponent("tenant/1")}`
const question = { id: "q", role: "user", parts: [{ type: "text", content: "What is a stream?" }] }
const words = Array.from({ length: 100 }, (_, number) => `word ${number} 漢字\n`)
const answer = [
  { type: "RUN_STARTED", runId: "r" },
  { type: "TEXT_MESSAGE_START", messageId: "a", role: "assistant" },
  ...words.map((delta) => ({ type: "TEXT_MESSAGE_CONTENT", messageId: "a", delta })),
  { type: "TEXT_MESSAGE_END", messageId: "a" },
  { type: "RUN_FINISHED", runId: "r" },
]
const [tabs, following] = [2, []]

// The server side: it writes the question, then the answer as it comes; halfway, once both tabs are there.
async function* made() {
  yield* answer.slice(0, 50)
  for (let tab = 0; tab < tabs; tab++) following.push(await opened())
  yield* answer.slice(50)
}

// A tab: what it was shown at first, and what then came, until the run is finished.
async function opened() {
  const leave = new AbortController()
  const chunks = durableStreamConnection({ sendUrl: url, readUrl: url }).subscribe(leave.signal)
  const first = (await chunks.next()).value
  const rest = (async () => {
    const later = []
    for (let chunk = first; chunk.type !== "RUN_FINISHED"; later.push(chunk)) chunk = (await chunks.next()).value
    leave.abort()
    return later
  })()
  return { first, rest }
}

const asText = (messages) => messages.map(({ id, parts }) => [id, parts.map((part) => part.content).join("")])

const response = await toDurableChatSessionResponse({
  stream: { writeUrl: url },
  newMessages: [question],
  responseStream: made(),
  mode: "await",
})
assert.equal(response.status, 200)

const all = [["q", question.parts[0].content], ["a", words.join("")]]
for (const { first, rest } of following) {
  const chunks = await rest
  const shown = new Map(asText(first.messages))
  for (const { messageId, delta } of chunks) if (delta) shown.set(messageId, (shown.get(messageId) ?? "") + delta)
  assert.deepEqual([...shown], all)
  assert.equal(chunks.at(-1).type, "RUN_FINISHED")
  console.log(JSON.stringify({ tab: "complete", shown: first.messages.length, later: chunks.length }))
}
const page = await materializeSnapshotFromDurableStream({ readUrl: url })
assert.deepEqual(asText(page.messages), all)
console.log(JSON.stringify({ page: "complete" }))
