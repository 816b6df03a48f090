// What a page shows of a message of the AI SDK's useChat. Knows its parts by their form alone.

interface Part {
  type: string
  data?: unknown
  providerMetadata?: unknown
}

const idIn = (value: unknown) => (value as { messageId?: unknown } | null | undefined)?.messageId
const messageOf = ({ providerMetadata }: Part) => idIn((providerMetadata as { headwater?: unknown } | undefined)?.headwater)

/**
 * The message without the texts and thoughts that the server has taken back; itself where there are none. The
 * `data-message-retracted` parts, which say so and why, stay.
 */
export function unretracted<Message extends { parts: readonly { type: string }[] }>(message: Message): Message {
  const said = message.parts.filter(({ type }) => type === "data-message-retracted")
  const retracted = new Set(said.map((part: Part) => idIn(part.data)))
  const isKept = (part: Part) => messageOf(part) === undefined || !retracted.has(messageOf(part))
  return message.parts.every(isKept) ? message : { ...message, parts: message.parts.filter(isKept) }
}
