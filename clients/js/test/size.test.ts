// What the package costs a page.
import { gzipSync } from "node:zlib"
import { build } from "esbuild"
import { expect, test } from "vitest"

test("less than 4 KB, and an unused half is left out", async () => {
  const size = async (contents: string) => {
    const stdin = { contents, resolveDir: import.meta.dirname }
    const { outputFiles } = await build({ stdin, bundle: true, minify: true, format: "esm", write: false })
    return gzipSync(outputFiles[0]!.contents).length
  }
  const whole = await size('export * from "../src/index.ts"')
  expect(whole).toBeLessThan(4_000)
  expect(await size('export { follow } from "../src/index.ts"')).toBeLessThan(whole - 500)
})
