/**
 * Follows the event stream of one run to its end, whatever happens to the connection.
 *
 * Knows EventSource and offsets; must not know what events mean, but for the two that end a run.
 * Three layers of resuming: the browser reconnects by itself with Last-Event-ID; where it gave up (CLOSED), or the
 * caller knows better (`resume`), a new EventSource goes on behind the last offset; where the server cannot serve that
 * offset, reading starts afresh from the first event, and `onRestart` says so.
 */
import { backoff, connection, eventsUrl, getRun } from "./api.js";

const TERMINAL = new Set(["RUN_FINISHED", "RUN_ERROR"]);
/** Failed openings at one offset, while the server answers other requests, after which we read from the start. */
const TRIES_AT_OFFSET = 2;

/**
 * Calls onEvent(offset, event) for each event in order, onRestart() before events come from the start again, and
 * onGone(message) when the server no longer has the run. Returns { resume, rest, close }.
 */
export function follow(id, { onEvent, onRestart, onGone }) {
  let source = null;
  let offset = "";
  let failures = 0;
  let timer = 0;
  let asking = false;
  let done = false;

  function close() {
    done = true;
    clearTimeout(timer);
    source?.close();
  }

  function open() {
    source?.close();
    const mine = (source = new EventSource(eventsUrl(id, offset)));
    mine.onopen = () => connection.ok();
    mine.onmessage = ({ data, lastEventId }) => {
      if (mine !== source || done) return;
      failures = 0;
      offset = lastEventId || offset;
      const event = JSON.parse(data);
      if (TERMINAL.has(event.type)) close();
      onEvent(lastEventId, event);
    };
    mine.onerror = () => {
      if (mine !== source || done) return;
      if (mine.readyState === EventSource.CLOSED) reopenSoon();
      else connection.lost();
    };
  }

  function reopenSoon() {
    clearTimeout(timer);
    timer = setTimeout(reopen, backoff(failures++));
  }

  /** An EventSource does not say why it was closed; asking for the run does, and waits until the server is there. */
  async function reopen() {
    asking = true;
    const refusal = await getRun(id).then(() => null, (error) => error);
    asking = false;
    if (done) return;
    if (refusal) {
      close();
      onGone(refusal.message);
      return;
    }
    if (failures > TRIES_AT_OFFSET) {
      offset = "";
      onRestart();
    }
    open();
  }

  /** Connects again at once, unless events are flowing: for when the server is known to be back. */
  function resume({ force = false } = {}) {
    if (done || asking || (!force && source.readyState === EventSource.OPEN)) return;
    clearTimeout(timer);
    open();
  }

  /** Lets the connection go; `resume` goes on behind the last event. */
  function rest() {
    clearTimeout(timer);
    if (!asking) source.close();
  }

  open();
  return { resume, rest, close };
}
