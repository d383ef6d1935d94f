// The lines of a whole invoice: a text, how many, and a price each, and what all of them come to.

import { fresh, h, tell } from "./h.js";
import * as money from "./money.js";
import { W } from "./words.js";

const SHOWN = new Set(["amount", "description", "price", "quantity", "unit_amount"]);
const PASTED = 200; // so many rows are taken from a sheet: more than any invoice may have, so that too many are refused

/**
 * The editor, in the place of a list of `node`. `control` makes the fields of a line that have no column.
 * `{ element, read(pairs, problems), save(typed), load(typed), sum() }`.
 */
export function lines(node, grant, context, control) {
  const { max: most, credit: lowers } = grant.lines, parts = node.children.get("{i}").children;
  const others = [...parts.values()].filter(({ name }) => !SHOWN.has(name));
  const all = [];
  let count = 0, known = null; // how many are filled in, and what they come to
  const prices = parts.has("price") ? choice() : null;
  const priced = () => prices?.value() === true;
  const heads = h("div", { class: "heads", "aria-hidden": "true" }), body = h("div");
  const add = h("button", { type: "button", onclick: () => grow() }, W.addLine);
  const error = h("p", { class: "error" }), sums = h("div", { class: "sums" });
  const bounds = h("p", { class: "hint" });
  const element = h("fieldset", { class: "field lines" },
    h("legend", null, W.lines, h("span", { class: "need" }, ` ${W.needed}, ${most > 1 ? W.upToLines(most) : W.oneLine}`)),
    h("p", { class: "hint" }, W.linesHint, lowers ? ` ${W.creditHint}` : ""), bounds, error, prices?.element, heads, body,
    h("p", { class: "more" }, add), sums);
  context.handles.add({ at: () => node.name, element, error, label: W.lines, inputs: [], left: true, fault: null });

  function choice() {
    const name = fresh("way"), [amounts, stored] = [false, true].map((on) => h("input", { type: "radio", name, id: fresh("way"), value: String(on), checked: !on }));
    const shown = h("div", { class: "choice", role: "group", "aria-label": W.way }, [[amounts, W.amounts], [stored, W.stored]].map(([input, words]) => h("label", { for: input.id }, input, words)));
    return { element: shown, value: (on) => { if (on !== undefined) (on ? stored : amounts).checked = true; return stored.checked; } };
  }
  function cell(entry, name, words, attributes, part) {
    const id = fresh("line"), wrong = h("p", { class: "error", id: `${id}-error` });
    const input = h("input", { type: "text", autocomplete: "off", id, "aria-describedby": wrong.id, ...attributes });
    const label = h("span"), number = h("span", { class: "unseen" });
    const field = h("div", { class: `field ${name}` }, h("label", { for: id }, label, number), input);
    const named = () => typeof words === "function" ? words() : words;
    context.handles.add({
      at: () => entry.place === null ? "" : `${node.name}[${entry.place}][${part()}]`, element: field, error: wrong, input, inputs: [input],
      left: false, fault: null, get label() { return W.ofLine(named(), entry.index + 1); },
      refresh: () => { label.textContent = named(); number.textContent = W.lineNumber(entry.index + 1); },
    });
    return { input, field, wrong };
  }
  function grow(focus = true) {
    const entry = { index: all.length, place: null };
    const say = cell(entry, "say", W.lineText, {}, () => "description");
    const many = cell(entry, "many", W.lineMany, { inputmode: "numeric" }, () => "quantity");
    const each = cell(entry, "each", () => priced() ? W.linePrice : W.lineEach(unit()), {}, () => priced() ? "price" : entry.many.value.trim() ? "unit_amount" : "amount");
    const more = others.map((one) => control(one, () => `${node.name}[${entry.place ?? all.length}][${one.name}]`, context));
    const total = h("span", { class: "total" }), title = h("b"), wrong = h("p", { class: "error" });
    const act = (sign, run) => h("button", { type: "button", class: "icon", onclick: run }, h("span", { "aria-hidden": "true" }, sign), h("span", { class: "unseen" }));
    const up = act("↑", () => move(entry, -1)), down = act("↓", () => move(entry, 1)), away = act("✕", () => drop(entry));
    const details = more.length ? h("details", null, h("summary", null, W.moreOfLine), more.map((one) => one.element)) : null;
    const row = h("div", { class: "field line", onkeydown: (event) => keys(event, entry) },
      title, say.field, many.field, each.field, total, h("div", { class: "acts" }, up, down, away),
      h("div", { class: "wrongs" }, say.wrong, many.wrong, each.wrong, wrong), details);
    context.handles.add({ at: () => entry.place === null ? "" : `${node.name}[${entry.place}]`, element: row, error: wrong, inputs: [], left: true, fault: null, get label() { return W.line(entry.index + 1); } });
    say.input.addEventListener("paste", (event) => paste(event, entry));
    Object.assign(entry, { say: say.input, many: many.input, each: each.input, more, total, title, up, down, away, row });
    all.push(entry);
    body.append(row);
    arrange();
    if (focus) { say.input.focus(); context.changed(); }
    return entry;
  }
  function drop(entry) {
    const next = all[entry.index + 1] ?? all[entry.index - 1];
    all.splice(entry.index, 1);
    entry.row.remove();
    for (const handle of [...context.handles]) if (entry.row.contains(handle.element)) context.handles.delete(handle);
    arrange();
    (next ?? grow()).say.focus();
    context.changed();
  }
  /** Its neighbour is what is moved in the page: what moves loses the focus. */
  function move(entry, by) {
    const other = all[entry.index + by];
    if (!other) return;
    by < 0 ? entry.row.after(other.row) : entry.row.before(other.row);
    all.splice(entry.index, 1);
    all.splice(entry.index + by, 0, entry);
    const was = entry.index;
    arrange();
    tell(W.moved(was + 1, entry.index + 1), 0);
    context.changed();
  }
  function arrange() {
    for (const [index, entry] of all.entries()) {
      entry.index = index;
      entry.title.textContent = W.line(index + 1);
      for (const [button, words] of [[entry.up, W.up], [entry.down, W.down], [entry.away, W.removeLine]]) button.lastChild.textContent = words(index + 1);
      entry.up.setAttribute("aria-disabled", String(!index));
      entry.down.setAttribute("aria-disabled", String(index === all.length - 1));
    }
    element.classList.toggle("alone", all.length === 1);
    add.hidden = all.length >= most;
  }
  function keys(event, entry) {
    if (!event.target.matches(".line > .field > input") || event.isComposing || event.target.readOnly) return;
    const by = { ArrowUp: -1, ArrowDown: 1 }[event.key];
    if (event.altKey && by) { event.preventDefault(); move(entry, by); }
    if (event.key !== "Enter") return;
    event.preventDefault();
    const next = all[entry.index + 1];
    if (next) next.say.focus();
    else if (all.length < most && entry.place !== null) grow();
  }
  /** Rows of a sheet become lines: text, how many and price, or text and price. */
  function paste(event, entry) {
    const rows = event.clipboardData.getData("text/plain").replace(/[\r\n]+$/, "").split(/\r?\n/).slice(0, PASTED).map((row) => row.split("\t").map((one) => one.trim()));
    if (rows.length === 1 && rows[0].length === 1) return;
    event.preventDefault();
    for (const [index, cells] of rows.entries()) {
      const to = all[entry.index + index] ?? grow(false);
      const [says, many, each] = cells.length > 2 ? cells : [cells[0], "", cells[1] ?? ""];
      [to.say.value, to.many.value, to.each.value] = [says, many, each];
    }
    context.changed();
  }
  const currency = () => context.currency(`${node.name}[0][amount]`);
  function unit() {
    const of = currency();
    return of ? money.unit(of, context.exponents) : of === null ? "" : W.smallest;
  }
  function read(pairs, problems) {
    const of = currency();
    let total = 0n, credit = 0n, sure = true;
    count = 0;
    for (const entry of all) {
      const says = entry.say.value.trim() ? entry.say.value : "", many = entry.many.value.trim(), each = entry.each.value.trim(), here = `${node.name}[${count}]`;
      const found = [];
      entry.place = count;
      if (says) found.push([`${here}[description]`, says]);
      if (many) found.push([`${here}[quantity]`, many]);
      for (const one of entry.more) one.read(found, problems);
      entry.total.textContent = "";
      if (!found.length && !each) { entry.place = null; continue; }
      const path = `${here}[${priced() ? "price" : many ? "unit_amount" : "amount"}]`, value = !each || priced() ? each : context.amount(each, of);
      if (typeof value !== "string") problems.push({ parameter: path, detail: value.problem });
      else if (!value) problems.push({ parameter: path, detail: priced() ? W.noPrice(count + 1) : W.noAmount(count + 1) });
      else found.push([path, value]);
      const comes = !value || typeof value !== "string" || priced() ? null : product(value, many);
      if (comes === null) sure = false;
      else {
        total += comes;
        if (comes < 0n) credit += comes;
        if (of) entry.total.textContent = money.figure(comes, of, context.exponents);
      }
      pairs.push(...found);
      count++;
    }
    known = !of || !count ? null : { total: sure ? total : null, credit, currency: of };
    refresh();
  }
  /** Below the lines, and what the policy bounds. It is a help: the server's sum counts. */
  function refresh() {
    const of = currency(), { amount } = grant;
    heads.replaceChildren(...[W.lineText, W.lineMany, priced() ? W.linePrice : W.lineEach(unit()), priced() ? "" : W.lineTotal].map((words, index) => h("span", { class: index === 3 ? "total" : null }, words)));
    element.classList.toggle("priced", priced());
    bounds.textContent = of && amount?.max ? W.mostOf(money.shown(amount.max, of, context.exponents)) : "";
    const shown = (sum) => money.shown(sum, of, context.exponents);
    sums.replaceChildren(...[
      known?.credit ? [h("span", null, W.credit), h("span", null, shown(known.credit))] : null,
      [h("span", null, W.sum), known?.total != null ? h("b", null, shown(known.total)) : h("span", null, priced() && count ? W.sumLater : W.sumUnknown)],
    ].filter(Boolean).map((row) => h("p", null, row)));
  }
  grow(false);
  return {
    element, read,
    /** `{ count, currency, total, text, credit }`: minor units as text, money as text; null where nobody knows yet. */
    sum: () => known && {
      count, currency: known.currency, total: known.total === null ? null : String(known.total), text: known.total === null ? null : money.shown(known.total, known.currency, context.exponents),
      credit: known.credit ? money.shown(-known.credit, known.currency, context.exponents) : null,
    },
    save(typed) {
      typed.set(node.name, { priced: priced(), rows: all.map((entry) => {
        const more = new Map();
        const { place } = entry;
        entry.place = 0; // under one name, wherever the line stands
        for (const one of entry.more) one.save(more);
        entry.place = place;
        return { values: [entry.say.value, entry.many.value, entry.each.value], more };
      }) });
    },
    load(typed) {
      const kept = typed.get(node.name);
      prices?.value(kept.priced);
      for (const [index, { values, more }] of kept.rows.entries()) {
        const entry = all[index] ?? grow(false);
        [entry.say.value, entry.many.value, entry.each.value] = values;
        entry.place = 0;
        for (const one of entry.more) one.load(more);
      }
    },
  };
}

/** What a line comes to, exactly: minor units, times how many if that is said. Null if it cannot be worked out. */
function product(minor, many) {
  if (!many) return BigInt(minor);
  return /^\d{1,15}$/.test(many) ? BigInt(minor) * BigInt(many) : null;
}
