// What readers report of the service they got.
import { expect, test } from "vitest"
import { follow, type Report, resumableFetch } from "../src/index.js"
import { answering, reset } from "./network.js"

const SSE = { "content-type": "text/event-stream" }
const END = 'id: 3\nevent: end\ndata: {"outcome":"completed"}\n\n'
const fast = { delay: 20 }

test("a reader that was cut tells so, once, at the end", async () => {
  const { url, asked } = await answering(
    (response) => (response.writeHead(200, SSE).write("id: 1\ndata: a\n\n"), setTimeout(() => reset(response), 60)),
    (response) => response.writeHead(200, SSE).end("id: 2\ndata: b\n\n" + END),
    (response) => response.writeHead(204).end(),
  )
  const headers = { authorization: "Bearer k" }
  for await (const _ of follow(`${url}/v1/runs/r/events?secret=1`, { ...fast, headers, report: "/v1/quality" }));
  await expect.poll(() => asked.length).toBe(3)
  const { method, path, body, headers: sent } = asked[2]!
  expect([method, path, sent.authorization]).toEqual(["POST", "/v1/quality", "Bearer k"])
  const report: Report = JSON.parse(body)
  expect(report).toMatchObject({ url: `${url}/v1/runs/r/events`, client: "javascript", ended: "ended", events: 3, reconnects: 1 })
  expect(report.lost).toBeGreaterThan(0.005)
  expect(report.longest_gap).toBeGreaterThanOrEqual(report.lost)
  expect(report.longest_gap).toBeGreaterThan(0.05)
  expect(report.first_event).toBeLessThan(5)
})

test("one that leaves, and one that is refused", async () => {
  const { url } = await answering(
    (response) => response.writeHead(200, SSE).write("id: 1\ndata: a\n\n"),
    (response) => response.writeHead(404).end(),
  )
  const reports: Report[] = []
  const report = (told: Report) => void reports.push(told)
  for await (const _ of follow(url, { report })) break
  await follow(url, { report })[Symbol.asyncIterator]().next().catch(() => {})
  expect(reports.map(({ ended, events, first_event }) => [ended, events, first_event === undefined])).toEqual([
    ["left", 1, false],
    ["failed", 0, true],
  ])
})

test("a fetch measures from its request, and tells when its body was read", async () => {
  const { url } = await answering((response) =>
    setTimeout(() => response.writeHead(200, { ...SSE, location: "/go-on" }).end("id: 1\ndata: a\n\n" + END), 60),
  )
  const reports: Report[] = []
  const response = await resumableFetch({ report: (told) => void reports.push(told) })(url, { method: "POST" })
  await response.text()
  expect(reports).toMatchObject([{ url: `${url}/go-on`, ended: "ended", events: 2 }])
  expect(reports[0]!.first_event).toBeGreaterThan(0.05)
})

test("a key goes nowhere else, and a report that does not arrive is nobody's trouble", async () => {
  const { url } = await answering((response) => response.writeHead(200, SSE).end(END))
  const other = await answering((response) => reset(response))
  for await (const _ of follow(url, { headers: { authorization: "k" }, report: `${other.url}/q` }));
  await expect.poll(() => other.asked.length).toBe(1)
  expect(other.asked[0]!.headers.authorization).toBeUndefined()
})
