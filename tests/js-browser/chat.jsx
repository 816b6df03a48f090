// A page that is a chat: `useChat` as its documentation has it. What it shows is what a test looks at.
import { useChat } from "@ai-sdk/react"
import { DefaultChatTransport, lastAssistantMessageIsCompleteWithApprovalResponses } from "ai"
import { createRoot } from "react-dom/client"
import { resumableFetch } from "../../clients/js/dist/index.js"

function Chat({ api, id, resume, lossless }) {
  const transport = new DefaultChatTransport({ api, fetch: lossless ? resumableFetch({ delay: 1 }) : undefined })
  const sendAutomaticallyWhen = lastAssistantMessageIsCompleteWithApprovalResponses
  const chat = useChat({ id, resume, transport, sendAutomaticallyWhen })
  const send = (event) => {
    event.preventDefault()
    chat.sendMessage({ text: new FormData(event.target).get("text") })
  }
  // The run ends for everybody; the rest of the answer still comes, and says that it was stopped.
  const stop = () => fetch(`${api}/${encodeURIComponent(id)}/stop`, { method: "POST" })
  return (
    <main data-status={chat.status}>
      {chat.messages.map((message) => (
        <article key={message.id} data-role={message.role} data-outcome={message.metadata?.status}>
          {message.parts.map((part, number) => <Part key={number} part={part} chat={chat} />)}
        </article>
      ))}
      {chat.error && <p role="alert">{chat.error.message}</p>}
      <form onSubmit={send}><input name="text" /></form>
      <button id="stop" onClick={stop}>Stop</button>
      <button id="again" onClick={() => chat.resumeStream()}>Go on</button>
    </main>
  )
}

function Part({ part, chat }) {
  if (part.type === "text") return <span className="text">{part.text}</span>
  if (!part.type.startsWith("tool-")) return null
  const answer = (approved) => chat.addToolApprovalResponse({ id: part.approval.id, approved })
  return (
    <div data-tool={part.type.slice(5)} data-state={part.state}>
      <code>{JSON.stringify(part.input)}</code>
      <output>{JSON.stringify(part.output)}</output>
      {part.state === "approval-requested" && <button className="approve" onClick={() => answer(true)}>Yes</button>}
    </div>
  )
}

window.openChat = (given) => createRoot(document.getElementById("root")).render(<Chat {...given} />)
