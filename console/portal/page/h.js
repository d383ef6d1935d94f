// Elements. Text only ever becomes text: nothing in this page parses HTML.

const SVG = "http://www.w3.org/2000/svg";
const DRAWN = new Set(["svg", "rect"]);

/** An element: attributes (null and false are left out), `on…` listeners, then children (text, elements, lists, null). */
export function h(name, attributes, ...children) {
  const element = DRAWN.has(name) ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

let last = 0;

/** An id that nothing else on the page has. */
export const fresh = (name) => `${name}-${++last}`;

/** Text of others, with what turns or hides text written out: U+202E would show an id backwards. */
export const plain = (text) =>
  String(text).replace(/[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]/g,
    (hidden) => `\\u${hidden.codePointAt(0).toString(16).padStart(4, "0")}`);

/** A link to what an answer names: https alone, its host shown; anything else stays text. */
export function link(address, words) {
  let url;
  try { url = new URL(address); } catch { return plain(address); }
  if (url.protocol !== "https:") return plain(address);
  return [h("a", { href: url.href, target: "_blank", rel: "noreferrer noopener" }, words ?? plain(address)),
    words ? ` (${plain(url.host)})` : null];
}

/** A time in the person's own zone. `seconds` is unix time. */
export function time(seconds, { day = false } = {}) {
  const at = new Date(seconds * 1000);
  if (Number.isNaN(at.getTime())) return plain(seconds);
  const clock = at.toLocaleTimeString("en-GB", { hour: "2-digit", minute: "2-digit" });
  const date = at.toLocaleDateString("en-GB", { day: "numeric", month: "long", year: "numeric" });
  const away = (days) => new Date(Date.now() + days * 86400000).toDateString() === at.toDateString();
  return h("time", { datetime: at.toISOString() }, day ? date : away(0) ? clock : away(1) ? `${clock} tomorrow` : away(-1) ? `${clock} yesterday` : `${clock} on ${date}`);
}

let pressed = false;
const held = [];
addEventListener("pointerdown", () => { pressed = true; }, true);
for (const end of ["pointerup", "pointercancel"]) addEventListener(end, () => setTimeout(() => { pressed = false; for (const run of held.splice(0)) run(); }), true);

/** Do something that moves the page, but not while a pointer is down: what moves away under it is not clicked. */
export const unpressed = (run) => { if (pressed) held.push(run); else run(); };

let said = "", waiting = 0;

/** Tell a screen reader the head of what changed, once it has stood for a second, or after `pause` milliseconds. */
export function tell(words, pause = 1000) {
  clearTimeout(waiting);
  waiting = setTimeout(() => {
    if (words !== said) document.getElementById("status").textContent = said = words;
  }, pause);
}
