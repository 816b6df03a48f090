// The reference server of Durable Streams, in memory, on a free port, whose address it prints. Ends with its stdin.
// LONG_POLL_MS: longest wait of a long poll (its own default: 30000). DATA_DIR: keep files there instead.
import { DurableStreamTestServer } from "@durable-streams/server"

const longPollTimeout = Number(process.env.LONG_POLL_MS ?? 30_000)
const dataDir = process.env.DATA_DIR || undefined
const server = new DurableStreamTestServer({ port: 0, host: "127.0.0.1", longPollTimeout, webhooks: true, dataDir })
await server.start()
console.log(server.url)
process.stdin.on("end", () => process.exit()).resume()
