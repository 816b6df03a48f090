import { defineConfig } from "vitest/config"

// Few workers: the machine's cores are the served agents', too.
export default defineConfig({ test: { include: ["test/*.test.ts"], testTimeout: 120_000, maxWorkers: 2 } })
