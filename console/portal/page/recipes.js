// Recipes: the server writes them, the page shows and copies them.

import * as api from "./api.js";
import { h, plain } from "./h.js";
import { W } from "./words.js";

/** What is typed into a tool field by field, as `[{ field, value }]` and `[{ field, rows: [{ name, value }] }]`. */
const CELLS = "application/vnd.countersign.cells+json";

/** Tabs over recipes. `body()` is what is asked for, null while there is nothing to ask. */
export function recipes(body, { level = "3" } = {}) {
  const tabs = h("div", { class: "tabs", role: "tablist", "aria-label": W.recipes, onkeydown: keys });
  const panel = h("div", { role: "tabpanel", id: `recipe-${level}`, tabindex: "0", class: "panel" });
  const status = h("p", { class: "hint", role: "status" });
  const element = h("div", { class: "card" }, h("p", null, W.recipesSoon));
  let all = [], chosen = null, shown = null, running = null;

  async function refresh() {
    const asked = body();
    if (asked === null || asked === shown) return;
    running?.abort();
    running = new AbortController();
    let answer;
    try { answer = await api.ask("POST", "-/recipes", { body: asked, headers: { "Content-Type": "application/json" }, signal: running.signal }); }
    catch (error) { if (!(error instanceof api.Offline)) return; answer = null; }
    const found = answer?.status === 200 ? answer.json?.recipes ?? answer.json : null;
    if (!Array.isArray(found)) {
      if (!all.length) element.replaceChildren(h("p", null, answer?.json?.detail ? plain(answer.json.detail) : W.recipesNot));
      return;
    }
    shown = asked;
    const same = found.map(({ id }) => id).join() === all.map(({ id }) => id).join();
    all = found;
    if (!same) {
      tabs.replaceChildren(...all.map(({ id, title }) => h("button", { type: "button", role: "tab", id: `tab-${level}-${id}`, "aria-controls": panel.id, onclick: () => choose(id) }, plain(title))));
      element.replaceChildren(tabs, panel, status);
    }
    choose(all.some(({ id }) => id === chosen) ? chosen : all[0]?.id);
  }
  function choose(id) {
    chosen = id;
    for (const tab of tabs.children) {
      const mine = tab.id === `tab-${level}-${id}`;
      tab.setAttribute("aria-selected", String(mine));
      tab.tabIndex = mine ? 0 : -1;
    }
    const recipe = all.find((one) => one.id === id);
    if (!recipe) return;
    status.textContent = "";
    panel.setAttribute("aria-labelledby", `tab-${level}-${id}`);
    const cells = recipe.mime === CELLS && recipe.text ? JSON.parse(recipe.text) : null;
    const block = recipe.text && !cells ? h("pre", { tabindex: "0", role: "region", "aria-label": W.recipeOf(plain(recipe.title)) }, recipe.text) : null;
    panel.replaceChildren(...[
      recipe.steps.length > 1 ? h("ol", null, recipe.steps.slice(0, -1).map((step) => h("li", null, marked(step)))) : null,
      block && h("p", null, h("button", { type: "button", onclick: () => copy(recipe.text, block) }, W.copy)),
      cells && h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": W.recipeOf(plain(recipe.title)) }, h("table", null, h("tbody", null, cells.flatMap(rowsOf)))),
      block, h("p", { class: "hint" }, marked(recipe.steps.at(-1) ?? "")),
    ].filter(Boolean));
  }
  async function copy(text, block) {
    try {
      await navigator.clipboard.writeText(text);
      status.textContent = W.copied;
    } catch {
      getSelection().selectAllChildren(block);
      status.textContent = W.copyByHand;
    }
  }
  /** What is typed in field by field: each cell has a button of its own. */
  const rowsOf = ({ field, value, rows }) => value ? [row(field, value)]
    : [h("tr", null, h("th", { scope: "row", colspan: "4" }, plain(field))), ...rows.map((one) => row(one.name, one.value, one.name))];
  function row(name, value, copied = null) {
    const words = value.map((part) => typeof part === "string" ? part : `{${part.insert}}`).join("");
    const cell = h("td", { class: "mono" }, value.map((part) => typeof part === "string" ? plain(part) : h("span", { class: "tag" }, part.insert)));
    const literal = value.every((part) => typeof part === "string");
    const button = (text, from, what) => h("button", { type: "button", class: "link", "aria-label": `${W.copy} ${what}`, onclick: () => copy(text, from) }, W.copy);
    const head = h("th", { scope: "row", class: copied ? "mono" : null }, plain(name));
    return h("tr", null, h("td", null, copied ? button(name, head, W.nameOf(plain(name))) : ""), head, cell, h("td", null, literal ? button(words, cell, plain(name)) : ""));
  }
  function keys(event) {
    const index = all.findIndex(({ id }) => id === chosen);
    const next = { ArrowRight: index + 1, ArrowLeft: index - 1, Home: 0, End: all.length - 1 }[event.key];
    if (next === undefined) return;
    event.preventDefault();
    choose(all[(next + all.length) % all.length].id);
    document.getElementById(`tab-${level}-${chosen}`).focus();
  }
  return { element, refresh };
}

/** `code` and **strong** words of a step. */
const marked = (text) => text.split(/(`[^`]+`|\*\*[^*]+\*\*)/).map((part) => part.startsWith("`") ? h("code", null, part.slice(1, -1)) : part.startsWith("**") ? h("b", null, part.slice(2, -2)) : part);
