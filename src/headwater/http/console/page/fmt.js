/** Numbers, sizes, times and ages as people read them. Pure: the time is an argument. */

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const UNITS = [[1e9, "G"], [1e6, "M"], [1e3, "k"]];

export const count = (value) => (Number.isFinite(value) ? whole.format(value) : "–");

/** 1234567 -> 1.23 M; up to 9,999 in full. */
export function short(value, digits = 1) {
  if (!Number.isFinite(value)) return "–";
  if (Math.abs(value) < 10) return String(Number(value.toFixed(digits)));
  if (Math.abs(value) < 10_000) return whole.format(value);
  const [size, letter] = UNITS.find(([limit]) => Math.abs(value) >= limit);
  return `${(value / size).toPrecision(3)} ${letter}`;
}

export function bytes(value) {
  if (!Number.isFinite(value)) return "–";
  if (value < 1000) return `${Math.round(value)} B`;
  const [size, letter] = UNITS.find(([limit]) => value >= limit);
  return `${(value / size).toPrecision(3)} ${letter}B`;
}

/** A duration in ms. */
export function span(ms) {
  if (!Number.isFinite(ms)) return "–";
  if (ms < 1) return ms === 0 ? "0 ms" : "<1 ms";
  if (ms < 1000) return `${Math.round(ms)} ms`;
  if (ms < 10_000) return `${(ms / 1000).toFixed(2)} s`;
  if (ms < 60_000) return `${(ms / 1000).toFixed(1)} s`;
  const seconds = Math.round(ms / 1000);
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ${String(seconds % 60).padStart(2, "0")} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 1440) return `${Math.floor(minutes / 60)} h ${String(minutes % 60).padStart(2, "0")} min`;
  return `${Math.floor(minutes / 1440)} d ${Math.floor((minutes % 1440) / 60)} h`;
}

/** How long ago, in one unit. */
export function ago(then, now) {
  const seconds = Math.max(0, (now - then) / 1000);
  if (seconds < 1.5) return "now";
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 129_600) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} d`;
}

const two = (number) => String(number).padStart(2, "0");

/** The time of day, to the ms, in this reader's time zone. */
export function clock(ms) {
  const date = new Date(ms);
  const thousandths = String(date.getMilliseconds()).padStart(3, "0");
  return `${two(date.getHours())}:${two(date.getMinutes())}:${two(date.getSeconds())}.${thousandths}`;
}

export function day(ms) {
  const date = new Date(ms);
  return `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${clock(ms).slice(0, 8)}`;
}
