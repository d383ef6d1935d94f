// What became of a call: the calls of this tab from memory, any other by its key.

import { sumOf, table } from "./answer.js";
import * as api from "./api.js";
import { fresh, h, plain, time } from "./h.js";
import { W } from "./words.js";

const MOST = 10; // so many grants are looked through at once
const TONES = { raised: "yes", never: "none", free: "none", elsewhere: "no", refused: "no", running: "wait", waiting: "wait", unknown: "wait", unavailable: "wait" };

export function became(me, grant) {
  const id = fresh("became"), input = h("input", { id, type: "text", class: "mono", autocomplete: "off", spellcheck: "false", autocapitalize: "off" });
  const place = h("div", { "aria-live": "polite" }), own = h("div"), calls = [];
  async function look(event) {
    event.preventDefault();
    const name = input.value.trim();
    if (!name) { place.replaceChildren(h("p", { class: "error" }, W.becameEmpty)); input.focus(); return; }
    let answer;
    try { answer = await api.became(name, me.grants.length > MOST ? grant.id : null); } catch { answer = null; }
    const found = answer?.status === 200 ? answer.json?.became : null;
    if (!found) { place.replaceChildren(island("wait", answer ? W.broken : W.offline, plain(answer?.json?.detail ?? (answer ? W.brokenHow : W.offlineHow)))); return; }
    const seen = found.filter(({ state }) => state !== "never");
    place.replaceChildren(...(seen.length ? seen : found.slice(0, 1)).map((one) => told(one, found.length > 1)));
  }
  const told = (one, several) => h("div", { class: "stack more" },
    island(TONES[one.state] ?? "none", head(one), [plain(one.text ?? ""), one.when ? [" ", W.sentAt, time(one.when), "."] : "",
      one.refusal?.detail ? [" ", plain(one.refusal.detail)] : ""], several && one.state !== "never" ? plain(one.grant) : null),
    one.answer ? table({ json: one.answer, text: "" }, me.exponents, W.asToolOf(input.value.trim())) : null);
  const head = (one) => one.state === "raised" ? W.raised(sumOf(one.answer, me.exponents)) : W.states[one.state] ?? W.nothingYet;
  const element = h("div", null,
    h("form", { class: "more", novalidate: true, autocomplete: "off", onsubmit: look }, h("label", { class: "label", for: id }, W.becameLabel),
      h("div", { class: "row" }, input, h("button", null, W.lookUp))), place, own);
  return {
    element,
    /** Keep a call of this tab, in memory only. */
    note(call, outcome, words) {
      calls.unshift({ at: Date.now() / 1000, key: call.key ?? "", tone: outcome.state, words });
      own.replaceChildren(h("h3", { class: "more" }, W.ownCalls), h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": W.ownCalls },
        h("table", { class: "calls" }, h("thead", null, h("tr", null, [W.when, W.which, W.why].map((head) => h("th", { scope: "col" }, head)))),
          h("tbody", null, calls.map((one) => h("tr", null, h("td", null, time(one.at)), h("td", { class: "mono" }, plain(one.key)),
            h("td", null, h("span", { class: `tag ${one.tone}` }, W.ended[one.tone]), " ", plain(one.words))))))));
    },
  };
}

const island = (tone, head, body, at = null) => h("div", { class: `island ${tone}` }, h("h3", null, head), h("p", null, body), at && h("p", { class: "soft" }, h("small", null, at)));
