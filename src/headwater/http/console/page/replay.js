/**
 * Plays a log again by the times at which its messages were appended, at a multiple of real time.
 *
 * Knows a log's entries and a clock that it is given; must not know the DOM. Invariant: `at` only grows while it plays,
 * never passes an entry that is not here, and ends exactly at the log's tail: what was shown then is the log.
 */
const STILL = 2000;
/** Entries that are fetched ahead. */
const AHEAD = 400;

export class Replay {
  /** `onAt(at)`: entries before the position `at` are shown now; `onState()` when it starts or stops. */
  constructor(log, { onAt, onState, clock = () => performance.now() }) {
    Object.assign(this, { log, onAt, onState, clock });
    this.at = null;
    this.speed = 1;
    this.skips = true;
    this.playing = false;
    this.now = 0;
    this.timer = 0;
  }

  play(from) {
    this.at = Math.max(this.log.start, from);
    if (this.at >= this.log.tail) this.at = this.log.start;
    this.playing = true;
    this.before = this.clock();
    this.now = null;
    this.onState();
    this.turn();
  }

  pause() {
    if (!this.playing) return;
    this.playing = false;
    clearTimeout(this.timer);
    this.onState();
  }

  turn() {
    if (!this.playing) return;
    const real = this.clock();
    const passed = (real - this.before) * this.speed;
    this.before = real;
    const reached = this.step(passed);
    this.onAt(this.at);
    if (reached) this.pause();
    else this.timer = setTimeout(() => this.turn(), 16);
  }

  /** `ms` of the log's own time have passed. True at the end. */
  step(ms) {
    this.log.get(Math.min(this.at + AHEAD, this.log.tail - 1));
    const next = this.log.get(this.at);
    if (next === undefined) return this.at >= this.log.tail; // on its way: its time has not come yet
    if (this.now === null) this.now = (this.log.get(this.at - 1) ?? next).time;
    this.now += ms;
    for (let entry = next; entry !== undefined; entry = this.log.get(this.at)) {
      if (this.skips && entry.time - this.now > STILL * this.speed) this.now = entry.time - STILL * this.speed;
      if (entry.time > this.now) return false;
      this.at += 1;
    }
    return this.at >= this.log.tail;
  }
}
