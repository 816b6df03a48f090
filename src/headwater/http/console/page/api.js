/**
 * The server as functions. Knows URLs, the key, and how requests fail; must not know the DOM.
 *
 * URLs are relative to the page, so it works under any prefix. A key is kept in this tab alone (sessionStorage), and
 * sent as every other client does, in a header: so nothing here can be an EventSource, and `follow` reads the response.
 */
const KEY = "headwater.key";
const PATIENCE = 15000;
const SILENCE = 45000;

export class ApiError extends Error {
  constructor(status, { code = "error", message = `The server answered ${status}.` } = {}) {
    super(message);
    Object.assign(this, { status, code });
  }
}

/** "ok", "lost" or "key" (one is wanted), told to listeners. */
export const link = {
  state: "wait",
  listeners: new Set(),
  set(state) {
    if (this.state === state) return;
    this.state = state;
    for (const listener of this.listeners) listener(state);
  },
};

export function setKey(key) {
  if (key) sessionStorage.setItem(KEY, key);
  else sessionStorage.removeItem(KEY);
}

export const hasKey = () => sessionStorage.getItem(KEY) !== null;

function headers(more) {
  const key = sessionStorage.getItem(KEY);
  return { ...(key && { Authorization: `Bearer ${key}` }), ...more };
}

async function answered(path, options) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers(options.headers), cache: "no-store", redirect: "error" });
  } catch (error) {
    if (!options.signal?.aborted || options.signal.reason?.name === "TimeoutError") link.set("lost");
    throw error;
  }
  if (response.status === 401) link.set("key");
  else if (response.status < 502 || response.status > 504) link.set("ok");
  if (!response.ok) throw new ApiError(response.status, (await response.json().catch(() => ({}))).error);
  return response;
}

async function json(path, options = {}) {
  const response = await answered(path, { signal: AbortSignal.timeout(PATIENCE), ...options });
  return response.json();
}

const post = (path, body) =>
  json(path, { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body) });

/** A name as a path: its slashes stay. */
const path = (name) => name.split("/").map(encodeURIComponent).join("/");

const query = (values) => {
  const given = Object.entries(values).filter(([, value]) => value !== undefined && value !== null && value !== "");
  return given.length ? `?${new URLSearchParams(given)}` : "";
};

export const about = () => json("api/about");
export const listStreams = (values) => json(`../v1/streams${query(values)}`);
export const oneStream = (name) => json(`../v1/streams/${path(name)}`);
export const entries = (name, values) => json(`api/entries/${path(name)}${query(values)}`);
export const readers = (name) => json(`api/readers/${path(name)}`);
export const formats = (name) => json(`api/formats/${path(name)}`);
export const listRuns = (values) => json(`../v1/runs${query(values)}`);
export const oneRun = (id) => json(`../v1/runs/${encodeURIComponent(id)}`);
export const cancelRun = (id) => post(`../v1/runs/${encodeURIComponent(id)}/cancel`, { when: "now" });
export const answer = (id, decision) => post(`../v1/runs/${encodeURIComponent(id)}/approvals`, decision);

/** The first bytes that a client of `format` gets: { bytes, type, whole }. */
export async function preview(name, format, from) {
  const response = await answered(`api/preview/${path(name)}${query({ format, from })}`, {
    signal: AbortSignal.timeout(PATIENCE),
  });
  return {
    bytes: new Uint8Array(await response.arrayBuffer()),
    type: response.headers.get("x-content-type"),
    whole: response.headers.get("x-whole") === "true",
  };
}

/** Where a download comes from. With a key it has to pass through this page, as a link carries no header. */
export const downloadUrl = (name, format) => `api/download/${path(name)}?format=${format}`;

export async function downloaded(name, format) {
  const response = await answered(downloadUrl(name, format), {});
  return response.blob();
}

export const figuresUrl = () => "api/figures";
export const liveUrl = (name, offset, most) => `api/live/${path(name)}${query({ offset, most })}`;

/**
 * Follows server-sent events for ever: `url()` says where to go on, `onEvent({ name, data, id })` gets each.
 * `onRefused(error)`: the server said no, and asking again would not help. Gives what ends it.
 */
export function follow(url, onEvent, onRefused = () => {}) {
  let over = false;
  let abort = new AbortController();
  let failures = 0;

  async function once() {
    abort = new AbortController();
    let timer = setTimeout(() => abort.abort(new DOMException("silence", "TimeoutError")), SILENCE);
    const alive = () => {
      clearTimeout(timer);
      timer = setTimeout(() => abort.abort(new DOMException("silence", "TimeoutError")), SILENCE);
    };
    try {
      const response = await answered(url(), { signal: abort.signal, headers: { Accept: "text/event-stream" } });
      if (response.status === 204) return true;
      const parse = parser((event) => {
        failures = 0;
        if (!over) onEvent(event);
      });
      const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
      for (let part = await reader.read(); !part.done; part = await reader.read()) {
        alive();
        parse(part.value);
        if (over) return true;
      }
      return false;
    } finally {
      clearTimeout(timer);
    }
  }

  async function always() {
    while (!over) {
      try {
        if (await once()) return;
      } catch (error) {
        if (over) return;
        if (error instanceof ApiError && error.status < 500 && error.status !== 429) return onRefused(error);
        link.set("lost");
      }
      const wait = Math.min(5000, 300 * 2 ** failures++) * (0.5 + Math.random() / 2);
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }

  always();
  return () => {
    over = true;
    abort.abort();
  };
}

/** Takes text as it comes and gives whole events (WHATWG HTML, 9.2.6; this server ends its lines with LF). */
export function parser(onEvent) {
  let rest = "";
  let event = { name: "message", data: [], id: "" };
  return (text) => {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (event.data.length) onEvent({ ...event, data: event.data.join("\n") });
        event = { name: "message", data: [], id: event.id };
        continue;
      }
      const [field, ...after] = line.split(":");
      const value = after.join(":").replace(/^ /, "");
      if (field === "data") event.data.push(value);
      else if (field === "event") event.name = value;
      else if (field === "id") event.id = value;
    }
  };
}
