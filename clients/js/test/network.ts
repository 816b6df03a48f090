// Real sockets of this machine: a server that answers as told, and proxies that cut what passes.
import { createServer, type IncomingMessage, type ServerResponse } from "node:http"
import { type AddressInfo, connect, createServer as createTcp, type Server } from "node:net"
import { onTestFinished } from "vitest"

/** Serves until the test is over; the URL. */
async function listening(server: Server): Promise<string> {
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve))
  onTestFinished(() => {
    server.close()
    if ("closeAllConnections" in server) (server.closeAllConnections as () => void)()
  })
  return `http://127.0.0.1:${(server.address() as AddressInfo).port}`
}

export type Asked = { method: string; path: string; headers: IncomingMessage["headers"]; body: string }

/** A server that answers request number n by `answers[n]`, and all that come later by the last; and what it was asked. */
export async function answering(...answers: ((response: ServerResponse, asked: Asked) => void)[]) {
  const asked: Asked[] = []
  const url = await listening(
    createServer(async (request, response) => {
      let body = ""
      for await (const chunk of request) body += chunk
      const { method = "", url: path = "", headers } = request
      asked.push({ method, path, headers, body })
      answers[Math.min(asked.length, answers.length) - 1]!(response, asked.at(-1)!)
    }),
  )
  return { url, asked }
}

/** As a dead machine leaves a connection. */
export function reset({ socket }: ServerResponse): void {
  socket?.resetAndDestroy()
}

/** A proxy that ends responses after so many events: well (`clean`), or in the middle of the next one. */
export async function cuttingAfter(upstream: string, events: number, { clean = false, times = Infinity, end = "\n\n" } = {}) {
  let count = 0
  const server = createServer(async (request, response) => {
    const chunks: Buffer[] = []
    for await (const chunk of request) chunks.push(chunk)
    const leaving = new AbortController()
    response.on("close", () => leaving.abort())
    const { host: _, connection: __, "content-length": ___, "transfer-encoding": ____, ...headers } = request.headers
    const body = chunks.length ? Buffer.concat(chunks) : undefined
    const init = { method: request.method, headers: headers as Record<string, string>, body, signal: leaving.signal }
    try {
      const answer = await fetch(upstream + request.url, init)
      response.writeHead(answer.status, Object.fromEntries(answer.headers))
      response.flushHeaders()
      if (!answer.body || ++count > times) {
        response.end(Buffer.from(await answer.arrayBuffer()))
      } else await cut(answer.body, response)
    } catch {
      reset(response)
    } finally {
      leaving.abort()
    }
  })
  async function cut(body: ReadableStream<Uint8Array>, response: ServerResponse) {
    let text = ""
    let left = events
    for await (const chunk of body as unknown as AsyncIterable<Uint8Array>) {
      text += Buffer.from(chunk).toString("latin1")
      for (let at; left > 0 && (at = text.indexOf(end)) >= 0; left--) {
        response.write(text.slice(0, at + end.length), "latin1")
        text = text.slice(at + end.length)
      }
      if (left > 0) continue
      if (clean) return response.end()
      await new Promise((resolve) => response.write(text.slice(0, 9), "latin1", resolve))
      return reset(response)
    }
    response.end()
  }
  return {
    url: await listening(server),
    get count() {
      return count
    },
  }
}

/** A proxy whose first connection is lost after so many bytes of the answer, its head among them. */
export async function cuttingAtByte(upstream: string, bytes: number) {
  let left = bytes
  let passed = 0
  const { hostname, port } = new URL(upstream)
  const server = createTcp((client) => {
    const limit = left
    left = Infinity
    let sent = 0
    const up = connect(Number(port), hostname, () => limit === 0 && (client.resetAndDestroy(), up.destroy()))
    up.on("data", (chunk) => {
      const rest = chunk.subarray(0, limit - sent)
      sent += rest.length
      passed += rest.length
      client.write(rest, () => sent >= limit && (client.resetAndDestroy(), up.destroy()))
    })
    up.on("error", () => client.destroy())
    up.on("close", () => client.destroy())
    client.on("data", (chunk) => up.write(chunk))
    client.on("error", () => up.destroy())
    client.on("close", () => up.destroy())
  })
  const url = await listening(server)
  return {
    url,
    close: () => server.close(),
    get passed() {
      return passed
    },
  }
}
