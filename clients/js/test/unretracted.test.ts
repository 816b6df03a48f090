// What useChat keeps of an answer whose server was killed in mid-answer, and what a page makes of it.
import type { UIMessage as UIMessage5 } from "ai5"
import type { UIMessage as UIMessage6 } from "ai6"
import type { UIMessage as UIMessage7 } from "ai7"
import { expect, test } from "vitest"
import { unretracted } from "../src/index.js"

const of = (messageId: string) => ({ headwater: { messageId } })
const half = { type: "text" as const, text: "It is fi", providerMetadata: of("r.1") }
const thought = { type: "reasoning" as const, text: "Hm", providerMetadata: of("r.2") }
const whole = { type: "text" as const, text: "It is four.", providerMetadata: of("r.3") }
const retracted = (messageId: string) => ({ type: "data-message-retracted" as const, data: { messageId, reason: "interrupted" } })
const answer = (...parts: UIMessage7["parts"]): UIMessage7 => ({ id: "r", role: "assistant", metadata: { runId: "r" }, parts })

test("texts and thoughts that were taken back are gone, and all else stays", () => {
  const step = { type: "step-start" as const }
  const message = answer(step, half, thought, retracted("r.1"), retracted("r.2"), whole)
  expect(unretracted(message)).toEqual({ ...message, parts: [step, retracted("r.1"), retracted("r.2"), whole] })
  expect(message.parts.length).toBe(6)
})

test("where nothing was, it is the same message", () => {
  const others = [{ type: "text" as const, text: "of another server" }, { ...half, providerMetadata: { openai: { itemId: "i" } } }]
  const odd = { type: "data-message-retracted" as const, data: null }
  for (const message of [answer(), answer(half, whole), answer(...others, odd, whole), answer(half, retracted("r.9"))])
    expect(unretracted(message)).toBe(message)
})

test("it takes and gives the messages of every version", () => {
  const five: UIMessage5[] = [{ id: "r", role: "assistant", parts: [half, retracted("r.1")] }]
  const six: UIMessage6[] = [{ id: "r", role: "assistant", parts: [half, retracted("r.1")] }]
  const shown: [UIMessage5[], UIMessage6[]] = [five.map(unretracted), six.map(unretracted)]
  expect(shown).toEqual([[{ ...five[0], parts: [retracted("r.1")] }], [{ ...six[0], parts: [retracted("r.1")] }]])
})
