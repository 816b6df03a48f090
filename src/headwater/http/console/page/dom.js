/**
 * Elements from plain values. Knows the DOM; must not know what is shown.
 *
 * Invariant: whatever comes from a stream becomes text, never markup. There is no way through here that parses HTML, and
 * the page's policy (trusted types: none) keeps the rest of the page from having one.
 */

/** h("a", { href, class, onclick, dataset, hidden }, "text", child, null, …) */
export function h(tag, props = {}, ...children) {
  return dress(document.createElement(tag), props, children);
}

/** The same in SVG. */
export function s(tag, props = {}, ...children) {
  return dress(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);
}

function dress(element, props, children) {
  for (const [name, value] of Object.entries(props)) {
    if (value === undefined || value === null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "dataset") Object.assign(element.dataset, value);
    else if (name === "value" || name === "selected") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Changes the text only where it is another: no layout, no flicker. */
export function say(element, text) {
  const wanted = text === null || text === undefined ? "" : String(text);
  if (element.textContent !== wanted) element.textContent = wanted;
}

/** A drawn sign, of lines 16 wide. */
export const sign = (path) =>
  s("svg", { viewBox: "0 0 16 16", width: 14, height: 14, "aria-hidden": "true", class: "sign" }, s("path", { d: path }));

export const SIGNS = {
  play: "M5 3.5v9l7-4.5z",
  pause: "M5 3.5v9M11 3.5v9",
};

/** Calls `work` at once and every `seconds`, one after the other, while the page is seen. Gives what ends it. */
export function every(seconds, work) {
  let timer = 0;
  let over = false;
  async function turn() {
    clearTimeout(timer);
    if (document.visibilityState === "visible") await work();
    if (!over) timer = setTimeout(turn, seconds * 1000);
  }
  const seen = () => document.visibilityState === "visible" && turn();
  document.addEventListener("visibilitychange", seen);
  turn();
  return () => {
    over = true;
    clearTimeout(timer);
    document.removeEventListener("visibilitychange", seen);
  };
}

/** Calls `draw` once before the next picture, however often it is asked for; without a picture (hidden), soon. */
export function soon(draw) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    const go = () => { if (asked) { asked = false; draw(); } };
    requestAnimationFrame(go);
    setTimeout(go, 250);
  };
}
