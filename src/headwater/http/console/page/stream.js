/** One stream: what it is, and its log. */
import { oneStream } from "./api.js";
import { every, h, say } from "./dom.js";
import { ago, bytes, count } from "./fmt.js";
import { Player } from "./player.js";
import { stateOf } from "./streams.js";

export function mount(root, place) {
  const name = place.rest;
  const given = place.query.get("at");
  const state = h("span", { class: "chip" });
  const facts = h("p", { class: "soft facts-line" });
  const player = new Player(name, {
    at: given !== null && /^\d{1,15}$/.test(given) ? Number(given) : null, onAt: remember,
  });
  root.append(h("div", { class: "head" }, h("h1", { class: "mono", title: name }, name), state, facts), player.element);

  let timer = 0;
  function remember(at, isLive) {
    clearTimeout(timer);
    timer = setTimeout(() => {
      if (location.hash.startsWith(here)) history.replaceState(null, "", isLive ? here : `${here}?at=${at}`);
    }, 300);
  }
  const here = `#/stream/${encodeURIComponent(name)}`;

  const end = every(2, async () => {
    try {
      const told = await oneStream(name);
      say(state, stateOf(told));
      state.dataset.state = stateOf(told);
      say(facts, [
        `${count(told.messages)} messages`, bytes(told.bytes), `${count(told.readers)} readers`, told.content_type,
        `${count(told.producers)} producers`, `made ${ago(told.created, Date.now())} ago`,
        `last append ${ago(told.appended, Date.now())}`,
        ...(told.ttl ? [`TTL ${told.ttl} s`] : []),
        ...(told.retention ? [Object.entries(told.retention).map(([what, most]) => `keeps ${count(most)} ${what}`).join(", ")] : []),
      ].join(" · "));
    } catch (error) {
      if (error.status === 404) say(state, "gone");
    }
  });
  return {
    unmount() {
      clearTimeout(timer);
      end();
      player.destroy();
    },
    keys: player.keys,
  };
}
