// A server that dies in the middle of an answer. Set HEADWATER_COMMAND to what starts one of tests.agents_to_read:bot, a
// JSON list, without its --port and --store.
import { spawn } from "node:child_process"
import { mkdtempSync, rmSync } from "node:fs"
import { createServer } from "node:net"
import { tmpdir } from "node:os"
import { join } from "node:path"
import { expect, onTestFinished, test, vi } from "vitest"
import { follow, resumableFetch } from "../src/index.js"

const command: string[] = JSON.parse(process.env.HEADWATER_COMMAND ?? "[]")
const messages = [{ id: "m", role: "user", content: "words" }]
const asked = { threadId: "t", runId: "r", messages, tools: [], context: [], state: {}, forwardedProps: {} }

if (!command.length) test.skip("nothing to start a server with is named: set HEADWATER_COMMAND", () => {})

test.runIf(command.length)("a server that is killed in the middle, and started again", async () => {
  const folder = mkdtempSync(join(tmpdir(), "headwater-"))
  const port = await new Promise<number>((resolve) => {
    const free = createServer().listen(0, "127.0.0.1", () => {
      const { port } = free.address() as { port: number }
      free.close(() => resolve(port))
    })
  })
  const [program, ...options] = [...command, "--port", String(port), "--store", `sqlite:///${folder}/streams.db`]
  const url = `http://127.0.0.1:${port}`
  const started = () => spawn(program!, options, { stdio: "ignore", cwd: new URL("../../..", import.meta.url) })
  const ready = () => vi.waitUntil(() => fetch(`${url}/readyz`).then(({ ok }) => ok, () => false), 30_000)
  let [served, killed] = [started(), false]
  onTestFinished(() => (served.kill("SIGKILL"), rmSync(folder, { recursive: true })))
  await ready()
  const init = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(asked) }
  const response = await resumableFetch({ delay: 50, maxDelay: 500, maxAttempts: 60 })(`${url}/agents/bot/ag-ui?rollup=0`, init)
  const runId = response.headers.get("x-run-id")
  const decoder = new TextDecoder()
  let text = ""
  for await (const chunk of response.body as unknown as AsyncIterable<Uint8Array>) {
    text += decoder.decode(chunk, { stream: true })
    if (!killed && text.includes("word 5")) {
      killed = served.kill("SIGKILL")
      served = started()
    }
  }
  const got = [...text.matchAll(/^data:(.*)$/gm)].map(([, data]) => data)
  const log = []
  for await (const { data } of follow(`${url}/v1/runs/${runId}/events?rollup=0`)) if (!data.includes('"run.input"')) log.push(data)
  expect(got).toEqual(log)
  expect(got.filter((data) => /"type":"RUN_(FINISHED|ERROR)"/.test(data!)).length).toBe(1)
  expect(text).toContain("word 19")
})
