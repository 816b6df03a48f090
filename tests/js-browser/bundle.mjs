// Bundles the pages' scripts into the folder argv[2]: what a browser is given holds all it needs.
import { build } from "esbuild"

await build({
  entryPoints: ["readers.js", "chat.jsx"].map((name) => new URL(name, import.meta.url).pathname),
  outdir: process.argv[2],
  bundle: true,
  format: "iife",
  jsx: "automatic",
  define: { "process.env.NODE_ENV": '"production"' },
  logLevel: "warning",
})
