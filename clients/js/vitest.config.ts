import { defineConfig } from "vitest/config"

// One process: the machine's cores are the served agents', too.
export default defineConfig({ test: { include: ["test/*.test.ts"], testTimeout: 60_000, fileParallelism: false } })
