/**
 * The server's HTTP surface as functions. Knows URLs and how requests fail; must not know the DOM or the conversation.
 *
 * URLs are relative to the page, so the page works under any prefix. Every request tells `connection` whether the
 * server could be reached: 'ok', 'lost', or for a moment 'restored'.
 */
const FIRST_WAIT = 400;
const LONGEST_WAIT = 5000;
const REQUEST_TIMEOUT = 15000;
/** Statuses by which a proxy, or a server that is going away, says that nobody is there to answer. */
const UNREACHABLE = new Set([502, 503, 504]);

/** The server's own "no": its code, its words, and whether to ask again. */
export class ApiError extends Error {
  constructor(status, { code = "error", message = `The server answered ${status}.`, retry = false } = {}) {
    super(message);
    Object.assign(this, { status, code, retry: retry || UNREACHABLE.has(status) });
  }
}

export const connection = {
  state: "ok",
  listeners: new Set(),
  timer: 0,
  set(state) {
    this.state = state;
    for (const listener of this.listeners) listener(state);
  },
  ok() {
    if (this.state !== "lost") return;
    this.set("restored");
    this.timer = setTimeout(() => this.set("ok"), 2500);
  },
  lost() {
    clearTimeout(this.timer);
    if (this.state !== "lost") this.set("lost");
  },
};

/** How long to wait before try number `attempt` (0, 1, …): doubling to a limit, jitter so that tabs spread. */
export const backoff = (attempt) => Math.min(LONGEST_WAIT, FIRST_WAIT * 2 ** attempt) * (0.5 + Math.random() / 2);

/** A key no other send has. `randomUUID` exists only on https and localhost. */
export function freshKey() {
  if (crypto.randomUUID) return crypto.randomUUID();
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

const sleep = (ms, signal) =>
  new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const timer = setTimeout(resolve, ms);
    signal?.addEventListener("abort", () => (clearTimeout(timer), reject(signal.reason)), { once: true });
  });

async function request(path, { signal, ...options } = {}) {
  const abort = new AbortController();
  const timer = setTimeout(() => abort.abort(new TypeError("timeout")), REQUEST_TIMEOUT);
  const pass = () => abort.abort(signal.reason);
  signal?.addEventListener("abort", pass, { once: true });
  if (signal?.aborted) pass();
  try {
    const headers = { Accept: "application/json", ...options.headers };
    const response = await fetch(path, { ...options, headers, signal: abort.signal, cache: "no-store" });
    const body = await response.json().catch(() => ({}));
    if (!UNREACHABLE.has(response.status)) connection.ok();
    if (!response.ok) throw new ApiError(response.status, body.error);
    return body;
  } catch (error) {
    if (!signal?.aborted && (!(error instanceof ApiError) || UNREACHABLE.has(error.status))) connection.lost();
    throw error;
  } finally {
    clearTimeout(timer);
    signal?.removeEventListener("abort", pass);
  }
}

/** Asks again until the server answers; gives up only on its own "no" or when `signal` aborts. */
async function insist(path, options = {}) {
  for (let attempt = 0; ; attempt++) {
    try {
      return await request(path, options);
    } catch (error) {
      if (options.signal?.aborted || (error instanceof ApiError && !error.retry)) throw error;
      await sleep(backoff(attempt), options.signal);
    }
  }
}

const runPath = (id) => `v1/runs/${encodeURIComponent(id)}`;

export const about = () => insist("v1/demo");
export const getRun = (id, signal) => insist(runPath(id), { signal });
export const cancelRun = (id) => insist(`${runPath(id)}/cancel`, { method: "POST" });
export const eventsUrl = (id, offset) =>
  `${runPath(id)}/events${offset ? `?offset=${encodeURIComponent(offset)}` : ""}`;

/** One page of runs, newest first: { runs, next }; `next` is the next page's `before`. Tried once: the caller polls. */
export const listRuns = ({ limit = 50, before, thread } = {}) =>
  request(`v1/runs?${new URLSearchParams({ limit, ...(before && { before }), ...(thread && { thread }) })}`);

/** Starts a run, or attaches to the one that an earlier try with the same key has started. */
export const startRun = ({ key, body }, signal) =>
  insist("v1/runs", {
    method: "POST",
    headers: { "Content-Type": "application/json", "Idempotency-Key": key },
    body: JSON.stringify(body),
    signal,
  });
