/**
 * Keeps a scrolling element at its end while the reader is there, and leaves a reader who scrolled away in peace.
 */
const NEAR = 48;

/** `onAway(bool)` says whether the reader has left the end. Returns { settle, toEnd }. */
export function stickToEnd(scroller, content, onAway) {
  let stuck = true;
  let away = false;

  const atEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < NEAR;
  function tell() {
    const next = !stuck && !atEnd();
    if (next !== away) onAway((away = next));
  }

  /** After the content grew: stay at the end if the reader is there. */
  function settle() {
    if (stuck) scroller.scrollTop = scroller.scrollHeight;
    tell();
  }
  function toEnd() {
    stuck = true;
    settle();
  }

  scroller.addEventListener("scroll", () => {
    stuck = atEnd();
    tell();
  }, { passive: true });
  // Opening a card is the reader's own move: do not scroll away from it.
  content.addEventListener("toggle", () => {
    stuck = atEnd();
    tell();
  }, { capture: true });
  new ResizeObserver(settle).observe(scroller);
  return { settle, toEnd };
}
