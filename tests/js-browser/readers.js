// How a page reads a run: two functions that give `told` each event's data, and that are over when the server says so.
import { fetchEventSource } from "@microsoft/fetch-event-source"

// The browser's own. Nobody closes it: it goes on by itself after each cut, and 204 ends it.
window.byEventSource = ({ url }) =>
  new Promise((resolve) => {
    const source = new EventSource(url)
    source.onmessage = ({ data }) => window.told(data)
    source.onerror = () => source.readyState === EventSource.CLOSED && resolve()
  })

class Over extends Error {}

// The way that its documentation shows: a POST, made again where the answer broke off or ended too early.
window.byFetchEventSource = ({ post, body, key }) =>
  fetchEventSource(post, {
    method: "POST",
    headers: { "content-type": "application/json", "idempotency-key": key },
    body,
    openWhenHidden: true,
    async onopen({ status }) {
      if (status === 204) throw new Over()
      if (status >= 400) throw new Over(`status ${status}`)
    },
    onmessage: ({ data }) => void window.told(data),
    onclose() {
      throw new Error("ended: there may be more")
    },
    onerror(error) {
      if (error instanceof Over) throw error
      return 1
    },
  }).catch((error) => {
    if (error.message) throw error
  })
