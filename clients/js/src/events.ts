// Bytes -> whole events: server-sent events (WHATWG HTML, 9.2) and lines of NDJSON. Knows neither connections nor what
// data means. Whatever the chunks are, the events are the same; what is not whole at the end of a connection is dropped,
// and `lastId` is never ahead of what was given out.

export interface StreamEvent {
  /** Where to go on behind it; empty where the stream has no ids. */
  id: string
  /** Its name; "message" where it has none. */
  event: string
  data: string
}

/** What came whole: the text to hand on, and the event that it is (a comment is none). */
export interface Piece {
  text: string
  event?: StreamEvent
}

export abstract class WholeEvents {
  /** What a client asks for that goes on: the id of the last whole event. */
  lastId: string
  /** Milliseconds that the server asks to wait before that. */
  retry?: number
  #decoder = new TextDecoder() // takes a byte order mark off, and joins characters that were cut
  #tail = ""
  #afterCr = false

  constructor(lastId = "") {
    this.lastId = lastId
  }

  feed(chunk: Uint8Array): Piece[] {
    let text = this.#decoder.decode(chunk, { stream: true })
    if (!text) return []
    const split = this.#afterCr && text[0] === "\n" // of one line end
    this.#afterCr = text.endsWith("\r")
    if (split) text = text.slice(1)
    const lines = text.split(/\r\n|\r|\n/)
    lines[0] = this.#tail + lines[0]
    this.#tail = lines.pop()!
    return lines.flatMap((line) => this.take(line))
  }

  protected abstract take(line: string): Piece[]
}

export class ServerSentEvents extends WholeEvents {
  #id = this.lastId
  #lines = ""
  #data: string[] = []
  #name = ""

  protected take(line: string): Piece[] {
    if (line === "") return this.#dispatched()
    if (line[0] === ":") return [{ text: line + "\n" }] // at once: clients count on it to know that we live
    const [, name, value = ""] = /^([^:]*):? ?([^]*)$/.exec(line)!
    this.#lines += line + "\n"
    if (name === "data") this.#data.push(value)
    else if (name === "event") this.#name = value
    else if (name === "id" && !value.includes("\0")) this.#id = value
    else if (name === "retry" && /^[0-9]+$/.test(value)) this.retry = Number(value)
    return []
  }

  #dispatched(): Piece[] {
    const event = { id: this.#id, event: this.#name || "message", data: this.#data.join("\n") }
    const pieces = this.#data.length ? [{ text: this.#lines + "\n", event }] : []
    this.lastId = this.#id
    this.#lines = this.#name = ""
    this.#data = []
    return pieces
  }
}

/** Lines like {"id": "…", "chunk": …}; an empty one is a sign of life. */
export class JsonLines extends WholeEvents {
  protected take(line: string): Piece[] {
    if (line.trim() === "") return [{ text: "\n" }]
    const { id } = parsed(line)
    if (typeof id === "string") this.lastId = id
    return [{ text: line + "\n", event: { id: this.lastId, event: "message", data: line } }]
  }
}

/** `text` as a JSON object, an empty one where it is none. */
export function parsed(text: string): Record<string, unknown> {
  try {
    return Object(JSON.parse(text))
  } catch {
    return {}
  }
}
