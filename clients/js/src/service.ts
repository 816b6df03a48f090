// How the service was that one reader got, told once at its end. Knows clocks; nothing of what is read.

/** Times in seconds. */
export interface Report {
  /** What was read. */
  url: string
  client: "javascript"
  /** The stream did; the reader left before that; or gave up. */
  ended: "ended" | "left" | "failed"
  events: number
  reconnects: number
  /** From the request to the first event, if there was one. */
  first_event?: number
  /** Between two events, or the request and the first. */
  longest_gap: number
  /** Without a connection. */
  lost: number
}

interface Reading {
  url: URL
  headers: Headers
  /** When it was first asked for, on `clock`. */
  since: number
  options: { fetch?: typeof fetch; report?: string | URL | ((report: Report) => void) }
}

/** Seconds of a clock that nobody sets. */
export const clock = () => performance.now() / 1000

export class Service {
  #report: Report
  #last: number
  #lostAt = 0
  #told = false
  #leaves = () => this.over("left")

  constructor(private reading: Reading) {
    this.#last = reading.since
    const url = reading.url.origin + reading.url.pathname // what follows it may be a secret
    this.#report = { url, client: "javascript", ended: "left", events: 0, reconnects: 0, longest_gap: 0, lost: 0 }
    if (reading.options.report) globalThis.addEventListener?.("pagehide", this.#leaves)
  }

  event(): void {
    const report = this.#report
    const gap = clock() - this.#last
    if (!report.events++) report.first_event = gap
    report.longest_gap = Math.max(report.longest_gap, gap)
    this.#last += gap
  }

  lost(): void {
    this.#lostAt ||= clock()
  }

  /** There is a connection, a first or another. */
  back(): void {
    if (!this.#lostAt) return
    this.#report.reconnects++
    this.#report.lost += clock() - this.#lostAt
    this.#lostAt = 0
  }

  over(ended: Report["ended"]): void {
    const { headers, url, options } = this.reading
    if (this.#told || !options.report) return
    this.#told = true
    globalThis.removeEventListener?.("pagehide", this.#leaves)
    if (this.#lostAt) this.#report.lost += clock() - this.#lostAt
    const report = { ...this.#report, ended }
    if (typeof options.report === "function") return options.report(report)
    const to = new URL(options.report, url)
    const key = to.origin === url.origin ? headers.get("authorization") : null
    // As a beacon: it goes out though the page be left, and nobody waits for it. As text it needs no preflight.
    const init = { method: "POST", keepalive: true, headers: key ? { authorization: key } : undefined }
    void (options.fetch ?? fetch)(to, { ...init, body: JSON.stringify(report) }).catch(() => {})
  }
}
