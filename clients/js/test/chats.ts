// The chat clients of the field without their user interface: each asks one question and tells all that it made of it.
// `?rollup=0`: who comes back gets what it missed in the same parts, so that a cut is to be seen in nothing.
import { HttpAgent } from "@ag-ui/client"
import { ChatClient, fetchHttpStream, fetchServerSentEvents } from "@tanstack/ai-client"
import * as ai5 from "ai5"
import * as ai6 from "ai6"
import * as ai7 from "ai7"

export interface Chat {
  /** What a user of this client would see, how it ended, and the parts in which it came. */
  ask: (server: string, fetching: typeof fetch, text: string) => Promise<{ parts: unknown[] }>
  /** Between its events. */
  end?: string
}

// As React's `Chat` keeps its state, without React.
function state() {
  const state: any = {
    status: "ready",
    error: undefined,
    messages: [],
    pushMessage: (message: any) => (state.messages = [...state.messages, message]),
    popMessage: () => (state.messages = state.messages.slice(0, -1)),
    replaceMessage: (index: number, message: any) => (state.messages = state.messages.with(index, structuredClone(message))),
    snapshot: (thing: any) => structuredClone(thing),
  }
  return state
}

// A run's own ids and times differ from run to run; all else must not.
const plain = (thing: unknown) =>
  JSON.parse(
    JSON.stringify(thing, (key, value) =>
      ["id", "messageId", "toolCallId", "runId", "threadId", "createdAt", "timestamp", "parentMessageId"].includes(key) ? 0 : value,
    ),
  )

/** A chat of this version of the SDK, and the data parts that it gets. */
export function headless({ AbstractChat, DefaultChatTransport }: any, api: string, fetching: typeof fetch) {
  const Headless: any = class extends AbstractChat {}
  const transport = new DefaultChatTransport({ api, fetch: fetching })
  const data: unknown[] = []
  const chat: any = new Headless({ id: crypto.randomUUID(), transport, state: state(), onData: (part: unknown) => data.push(part) })
  return { chat, data }
}

function useChat(ai: any, door: string): Chat {
  return {
    async ask(server, fetching, text) {
      const { chat, data } = headless(ai, `${server}/agents/bot/${door}?rollup=0`, fetching)
      await chat.sendMessage({ text })
      return plain({ status: chat.status, error: String(chat.error), messages: chat.messages, parts: data })
    },
  }
}

function tanStack(lines: boolean): Chat {
  return {
    end: lines ? "\n" : "\n\n",
    async ask(server, fetchClient, text) {
      const api = `${server}/agents/bot/ag-ui?rollup=0`
      const through = { fetchClient, reconnect: { maxAttempts: 0 } }
      const connection = lines ? fetchHttpStream(`${api}&format=ndjson`, through) : fetchServerSentEvents(api, through)
      const seen: unknown[] = []
      const client = new ChatClient({ connection, threadId: crypto.randomUUID(), onChunk: (chunk) => void seen.push(chunk) })
      client.attach()
      await client.sendMessage(text)
      return plain({ status: client.getStatus(), error: String(client.getError()), messages: client.getMessages(), parts: seen })
    },
  }
}

export const chats: Record<string, Chat> = {
  "useChat of ai 7": useChat(ai7, "chat-v7"),
  "useChat of ai 6": useChat(ai6, "chat"),
  "useChat of ai 5": useChat(ai5, "chat-v5"),
  "HttpAgent of AG-UI": {
    async ask(server, fetching, text) {
      const agent = new HttpAgent({ url: `${server}/agents/bot/ag-ui?rollup=0`, fetch: fetching } as any)
      agent.addMessage({ id: crypto.randomUUID(), role: "user", content: text })
      const seen: unknown[] = []
      agent.subscribe({ onEvent: ({ event }) => void seen.push(event) })
      const error = await agent.runAgent().then(() => "none", String)
      return plain({ error, messages: agent.messages, parts: seen })
    },
  },
  "TanStack AI": tanStack(false),
  "TanStack AI by lines": tanStack(true),
}
