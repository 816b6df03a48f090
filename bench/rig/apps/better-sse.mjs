// better-sse's channel on Node's own HTTP server: GET follows, POST broadcasts.
import { createServer } from "node:http"
import { createChannel, createSession } from "better-sse"

const channel = createChannel()
let count = 0
createServer(async (request, response) => {
  if (request.method === "GET") return channel.register(await createSession(request, response))
  const parts = []
  for await (const part of request) parts.push(part)
  channel.broadcast(JSON.parse(Buffer.concat(parts).toString()), "message", { eventId: String(++count) })
  response.writeHead(204).end()
}).listen(Number(process.argv[2]), "127.0.0.1")
