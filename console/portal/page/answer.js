// An answer, as people and no-code tools read it.

import { h, plain, time } from "./h.js";
import * as money from "./money.js";
import { W } from "./words.js";

/** The sum that an answer names, as money; empty if it names none. */
export function sumOf(answer, exponents) {
  const amount = answer?.amount_due ?? answer?.total ?? answer?.amount;
  return Number.isInteger(amount) && typeof answer.currency === "string" ? money.shown(amount, answer.currency, exponents) : "";
}

/** An answer as a no-code tool lists it: dotted names and raw values, money and times beside them. */
export function table({ json, text }, exponents, name = W.asTool) {
  const rows = [];
  flatten(json, "", rows);
  return [
    h("h3", null, W.asTool),
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name }, h("table", { class: "names" }, h("tbody", null, rows.map(([name, value]) => h("tr", null,
      h("th", { scope: "row", class: "mono" }, plain(name)), h("td", null, h("span", { class: "mono" }, plain(value)), h("span", { class: "gloss" }, gloss(name, value, json, exponents)))))))),
    h("details", null, h("summary", null, W.raw), h("pre", { class: "sent", tabindex: "0", role: "region", "aria-label": W.raw }, plain(pretty(json, text)))),
  ];
}

const pretty = (json, text) => { try { return JSON.stringify(json, null, 2); } catch { return text; } };

function flatten(value, name, rows) {
  if (value !== null && typeof value === "object" && Object.keys(value).length) {
    for (const [key, inner] of Object.entries(value)) flatten(inner, name ? `${name}.${key}` : key, rows);
  } else rows.push([name, value !== null && typeof value === "object" ? JSON.stringify(value) : value]);
}

const MONEY = /(^|[._])(amount|total|subtotal|balance|fee)([._]|$)/;
const TIMES = /(^|\.)(created|due_date|effective_at|\w+_at|\w+_date)$/;

function gloss(name, value, json, exponents) {
  if (!Number.isInteger(value)) return "";
  if (MONEY.test(name) && typeof json.currency === "string") return money.shown(value, json.currency, exponents);
  return TIMES.test(name) && value > 1e8 ? time(value) : "";
}
