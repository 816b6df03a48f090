// Durable Streams' published conformance suite against the server at CONFORMANCE_URL, subscriptions included.
// The suite's own command line finds no tests, so vitest runs this file instead.
import { runConformanceTests } from "@durable-streams/server-conformance-tests"

runConformanceTests({
  baseUrl: process.env.CONFORMANCE_URL,
  longPollTimeoutMs: 20_000,
  subscriptions: true,
})
