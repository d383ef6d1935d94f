// The way in: one field for the key.

import * as api from "./api.js";
import { fresh, h } from "./h.js";
import * as key from "./key.js";
import { W } from "./words.js";

/** A field for the key. `opened(me)` is called once the key is right; `note` stands above it. */
export function keyForm(opened, note = null) {
  const id = fresh("caller");
  // Not a password field: browsers offer to keep what is typed into one, and a key belongs into no store.
  const input = h("input", { id, type: "text", class: "mono masked", autocomplete: "off", spellcheck: "false", autocapitalize: "off", autocorrect: "off",
    "data-1p-ignore": true, "data-lpignore": "true", "data-bwignore": true, "data-form-type": "other", "aria-describedby": `${id}-hint ${id}-error ${id}-took` });
  const error = h("p", { class: "error", id: `${id}-error` }), took = h("p", { class: "hint", id: `${id}-took`, role: "status" });
  const show = h("button", { type: "button", class: "link", "aria-pressed": "false", onclick: () => {
    const masked = input.classList.toggle("masked");
    show.setAttribute("aria-pressed", String(!masked));
  } }, W.show);
  const go = h("button", { class: "main" }, W.open);
  const field = h("div", { class: "field" }, h("label", { for: id }, W.keyLabel), h("p", { class: "hint", id: `${id}-hint` }, W.keyForm), error,
    h("div", { class: "row" }, input, show), took);
  let busy = false;
  function wrong(words) {
    error.textContent = words;
    field.classList.toggle("wrong", Boolean(words));
    words ? input.setAttribute("aria-invalid", "true") : input.removeAttribute("aria-invalid");
    if (words) input.focus();
  }
  function tidy() {
    const found = key.read(input.value);
    if (found.foreign) { input.value = ""; took.textContent = ""; wrong(W.foreign); return null; }
    wrong("");
    took.textContent = found.took.length ? W.took(found.took) : "";
    if (found.took.length) input.value = found.key;
    return found.key;
  }
  async function open(event) {
    event.preventDefault();
    const pasted = tidy();
    if (busy || pasted === null) return;
    if (!pasted) { wrong(W.pasteFirst); return; }
    if (!/^[\x21-\x7e]+$/.test(pasted)) { wrong(W.notAKey); return; }
    busy = true;
    const patience = setTimeout(() => { go.textContent = W.asking; }, 600);
    let answer;
    try { answer = await api.me(pasted); } catch { answer = null; }
    clearTimeout(patience);
    busy = false;
    go.textContent = W.open;
    if (answer?.status === 200 && answer.json) {
      input.value = "";
      key.keep(pasted);
      opened(answer.json);
    } else if (answer?.status === 401) wrong(unknown(pasted));
    else wrong(answer?.json?.detail ?? (answer ? `${W.broken}. ${W.brokenHow}` : `${W.offline}. ${W.offlineHow}`));
  }
  const element = h("form", { class: "card gate", novalidate: true, autocomplete: "off", onsubmit: open },
    note && h("p", { class: "note-above" }, note), field, h("p", { class: "more" }, go), h("p", { class: "note" }, W.keyStays));
  // What is pasted is looked at at once: another service's secret must not stay in the page.
  input.addEventListener("paste", () => setTimeout(tidy));
  return { element, input };
}

function unknown(pasted) {
  const flaw = key.flaw(pasted);
  return typeof flaw === "number" ? W.missing(flaw) : flaw ? W.mistyped : W.unknown;
}

/** The page without a key. `publicRecipes` fills a place with what everybody may read. */
export function gate(opened, note, publicRecipes) {
  const form = keyForm(opened, note), [before, command, after] = W.googleHow, place = h("div");
  const looks = h("details", { ontoggle: () => { if (looks.open && !place.childElementCount) publicRecipes(place); } }, h("summary", null, W.looks), place);
  return {
    element: h("div", { class: "entrance" }, h("h1", { tabindex: "-1" }, W.gate), h("p", { class: "lead" }, W.gateLead), form.element,
      h("details", null, h("summary", null, W.google), h("p", { class: "lead" }, before, h("code", null, command), after)),
      h("details", null, h("summary", null, W.noKey), h("p", { class: "lead" }, W.noKeyHow)), looks),
    input: form.input,
  };
}
