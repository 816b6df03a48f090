// Runs cells of the matrix and says how each went; and what clients are put through: cuts, and fetches that resume.
import { resumableFetch } from "../../clients/js/dist/index.js"

const LOCAL_MODEL = "local model"
// Whom the clients ask: the server at argv[2] has a scripted agent, or, where argv[4] says so, a real model's.
export const agentName = process.argv[4] === LOCAL_MODEL ? "assistant" : "bot"

export async function run(cells) {
  for (const [name, cell] of Object.entries(cells)) {
    if ((name === LOCAL_MODEL) !== (agentName === "assistant")) continue
    try {
      await within(name === LOCAL_MODEL ? 60_000 : 10_000, cell())
      console.log(JSON.stringify({ cell: name, went: "well" }))
    } catch (error) {
      console.log(JSON.stringify({ cell: name, went: String(error?.stack ?? error) }))
    }
  }
  process.exit(0)
}

function within(ms, promise) {
  let timer
  const late = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error(`not done in ${ms} ms`)), ms)))
  return Promise.race([promise, late]).finally(() => clearTimeout(timer))
}

export async function until(said) {
  for (const late = Date.now() + 5_000; !said(); await new Promise((resolve) => setTimeout(resolve, 2)))
    if (Date.now() > late) throw new Error(`not so in 5 s: ${said}`)
}

// What happens with so many events per connection, all at the same time: the writes of the runs' logs then join.
export function eachLength(what) {
  return Promise.all([1, 2, 3, 5, 8, 13].map(what))
}

// A fetch whose responses end after `events` events, which `end` divides: in the middle of the next one, like a lost
// connection, or (`clean`) between two, like a finished one. Only the first `times` responses; `count` tells how many
// requests were made.
export function cutting({ events, clean = false, times = Infinity, end = "\n\n" }) {
  const fetching = async (url, init) => {
    const response = await fetch(url, init)
    if (++fetching.count > times || !response.ok || response.status === 204) return response
    return new Response(response.body.pipeThrough(cut(events, clean, end)), response)
  }
  fetching.count = 0
  return fetching
}

function cut(events, clean, between) {
  let text = ""
  let left = events
  const [decoder, encoder] = [new TextDecoder(), new TextEncoder()]
  const end = (controller) => {
    if (clean) return controller.terminate()
    controller.enqueue(encoder.encode(text.slice(0, 5)))
    setTimeout(() => controller.error(new TypeError("network error")), 0)
    left = -1
  }
  return new TransformStream({
    transform(chunk, controller) {
      if (left < 0) return
      text += decoder.decode(chunk, { stream: true })
      for (let at; left > 0 && (at = text.indexOf(between)) >= 0; left--) {
        controller.enqueue(encoder.encode(text.slice(0, at + between.length)))
        text = text.slice(at + between.length)
      }
      if (left === 0) end(controller)
    },
    flush: () => (left < 0 ? new Promise(() => {}) : undefined), // a body that has ended meanwhile is lost, too
  })
}

// A fetch that makes any client lossless: ours.
export const resuming = (inner) => resumableFetch({ fetch: inner, delay: 1 })
