/**
 * Time to place, 0 to 1, with long silences cut short: a run that waited an hour for a person is still to be read.
 *
 * Pure. A silence is cut where nothing happens for more than LONG ms and for more than half of all that time otherwise.
 */
const LONG = 20_000;
const CUT = 0.04;

/** `moments`: sorted times at which something happened. Gives { place(at), cuts: [{ from, to, ms }] }. */
export function scale(moments) {
  const start = moments[0] ?? 0;
  const end = Math.max(moments.at(-1) ?? 0, start + 1);
  const gaps = [];
  for (let index = 1; index < moments.length; index++) {
    const ms = moments[index] - moments[index - 1];
    if (ms > LONG) gaps.push({ start: moments[index - 1], end: moments[index], ms });
  }
  gaps.sort((one, other) => other.ms - one.ms);
  let left = end - start;
  const cut = [];
  for (const gap of gaps.slice(0, 8)) {
    if (gap.ms < (left - gap.ms) / 2) break;
    cut.push(gap);
    left -= gap.ms;
  }
  cut.sort((one, other) => one.start - other.start);
  const room = 1 - CUT * cut.length;
  const perMs = left > 0 ? room / left : 0;

  function place(at) {
    let x = 0;
    let from = start;
    for (const gap of cut) {
      if (at <= gap.start) break;
      x += (gap.start - from) * perMs;
      if (at < gap.end) return x + ((at - gap.start) / gap.ms) * CUT;
      x += CUT;
      from = gap.end;
    }
    return Math.min(1, Math.max(0, x + (at - from) * perMs));
  }

  return { start, end, place, cuts: cut.map((gap) => ({ from: place(gap.start), to: place(gap.end), ms: gap.ms })) };
}

/** Times for the axis, about `wanted` of them, at round distances from the start. */
export function ticks({ start, end, place, cuts }, wanted) {
  const left = end - start - cuts.reduce((sum, gap) => sum + gap.ms, 0);
  const raw = left / Math.max(1, wanted);
  const power = 10 ** Math.floor(Math.log10(Math.max(raw, 1)));
  const step = [1, 2, 5, 10].map((by) => by * power).find((size) => size >= raw) ?? 10 * power;
  const found = [];
  let before = -1;
  for (let at = 0; at <= end - start && found.length < 40; at += step) {
    const x = place(start + at);
    const isCut = cuts.some((gap) => x > gap.from && x < gap.to);
    if (!isCut && x - before > 0.5 / wanted) {
      found.push({ x, ms: at });
      before = x;
    } else if (isCut) {
      const gap = cuts.find((one) => x > one.from && x < one.to);
      at += Math.floor((gap.ms - step) / step) * step; // straight to its end
    }
  }
  return found;
}
