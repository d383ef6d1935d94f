// A form from a grant. It is built once and then stands; every rule is judged by the server, not here.

import { fresh, h, plain, unpressed } from "./h.js";
import { lines } from "./lines.js";
import * as money from "./money.js";
import { W } from "./words.js";

const FEW = 5;        // so many words to choose from are shown at once
const MANY = 20;      // above so many fields there is a search, and groups are closed
const LONG = 200;     // text that may be longer gets several lines
const OPENED = 6;     // a group of so many parts needs no opening

/**
 * The form of one grant. `changed` is called after each input.
 * `first` stands above its fields.
 * `{ element, read(), show(faults), reveal(path), freeze(on), save(), load(typed), nextKey() }`. What is read of a whole invoice has its `sum`.
 */
export function build(grant, fields, exponents, changed, first) {
  const handles = new Set();
  const from = grant.idempotency?.from ?? null;
  const tops = [...tree(fields).values()];
  const fixed = tops.filter((node) => node.field?.fixed !== undefined && node.field.fixed !== null);
  const context = { handles, exponents, from, changed, currency, amount: (typed, of) => amountOf(typed, of, exponents) };
  const lined = grant.lines ? tops.find(({ name }) => name === "lines") : null;
  const free = tops.filter((node) => !fixed.includes(node) && node !== lined);
  const needed = free.filter(demands), others = free.filter((node) => !demands(node));
  const controls = needed.map((node) => control(node, () => node.name, context));
  const table = lined ? lines(lined, grant, context, control) : null;
  if (table) controls.push(table);
  const key = grant.idempotency && !from ? keyField(grant.idempotency, context) : null;
  const more = others.length ? rest(others, context) : null;
  const element = h("form", { class: "card", novalidate: true, autocomplete: "off", "aria-label": W.form,
      onsubmit: (event) => event.preventDefault(),
      oninput: changed, onchange: changed, oncompositionend: changed, onfocusout: left },
    first, controls.map((one) => one.element), fixed.map(fixedField), key?.element, more?.element);

  function left(event) {
    const handle = holder(handles, event.target);
    if (handle && event.relatedTarget?.closest?.(".field") !== handle.element) { handle.left = true; unpressed(() => render(handle)); }
  }
  /** The currency of an amount: chosen beside it, or for the whole call, or fixed. Null if it is to be chosen yet. */
  function currency(path) {
    const around = path.replace(/(^|\[)[^[]*\]?$/, ""), chosen = [...handles].filter((one) => one.currency);
    const of = chosen.find((one) => one.at() === `${around}[currency]`) ?? chosen.find((one) => one.at() === "currency");
    return of ? of.currency() : fixed.find(({ name }) => name === "currency")?.field.fixed;
  }
  function read() {
    const pairs = [], problems = [];
    for (const one of [...controls, ...(more ? more.controls() : [])]) one.read(pairs, problems);
    for (const handle of handles) handle.refresh?.();
    const named = grant.operation.path.replace(/\{(\w+)\}/g, (_, name) => {
      const index = pairs.findIndex(([path]) => path === name);
      return index < 0 ? `{${name}}` : encodeURIComponent(pairs.splice(index, 1)[0][1]);
    });
    return {
      call: {
        grant: grant.id, name: grant.connection.name, connectionName: grant.connection.connection_name,
        method: grant.operation.method, pairs, key: key?.value() ?? null,
        path: `stripe/${named}${grant.operation.method === "POST" ? "/" : ""}`,
      },
      problems, whole: !named.includes("{"),
      empty: !pairs.length && !named.includes("%") && named === grant.operation.path && !key?.value(),
      named: from ? pairs.find(([path]) => path === from)?.[1] ?? null : key?.value() ?? null,
      fixed: fixed.map((node) => [node.name, node.field.fixed]), sum: table?.sum() ?? null,
    };
  }
  /** Put each fault at its field, or at the nearest thing around it; one that has neither stays in the list. */
  function show(faults, { all = false } = {}) {
    for (const handle of handles) { handle.fault = null; if (all) handle.left = true; }
    for (const fault of faults) {
      const handle = near(handles, fault.parameter) ?? (more?.open(fault.parameter) ? near(handles, fault.parameter) : null);
      if (handle && !handle.fault) handle.fault = fault.detail;
    }
    handles.forEach(render);
  }
  function reveal(path) {
    more?.open(path);
    const handle = near(handles, path);
    if (!handle) return;
    for (let up = handle.element; up; up = up.parentElement) if (up.tagName === "DETAILS") up.open = true;
    const target = handle.element.querySelector("input, select, textarea, button");
    target?.focus();
    handle.element.scrollIntoView({ block: "nearest" });
  }
  function freeze(on) {
    for (const input of element.querySelectorAll("input, select, textarea, button")) {
      if (input.matches("input:not([type=radio], [type=checkbox]), textarea")) input.readOnly = on;
      else input.disabled = on;
    }
  }
  /** What was typed, to be typed again into the form of a policy that has changed. */
  function save() {
    const typed = new Map();
    for (const one of [...controls, ...(more ? more.controls() : [])]) one.save(typed);
    if (key) typed.set(keyPath, key.input.value);
    return typed;
  }
  function load(typed) {
    for (const path of typed.keys()) more?.open(path);
    for (const one of [...controls, ...(more ? more.controls() : [])]) one.load(typed);
    if (key) key.input.value = typed.get(keyPath) ?? "";
  }
  return {
    element, read, show, reveal, freeze, save, load,
    label: (path) => near(handles, path)?.label ?? null,
    nextKey: () => {
      const input = key?.input ?? near(handles, from)?.input;
      if (input) { input.value = ""; input.focus(); changed(); }
    },
  };
}

const keyPath = "Idempotency-Key";

function tree(fields) {
  const root = new Map();
  for (const field of fields) {
    let level = root, node = null;
    for (const name of field.path.replaceAll("]", "").split("[")) {
      if (!level.has(name)) level.set(name, { name, field: null, children: new Map() });
      node = level.get(name);
      level = node.children;
    }
    node.field = field;
  }
  return root;
}

const leaves = (node) => node.children.size ? [...node.children.values()].flatMap(leaves) : [node];
const demands = (node) => node.field?.required || [...node.children.values()].some(demands);
const titled = (node) => node.field?.label ?? W.named(node.name);

/** What holds an element: the handle whose field it lies in most closely. */
function holder(handles, element) {
  const around = element.closest?.(".field");
  for (const handle of handles) if (handle.element === around) return handle;
  return null;
}

function near(handles, path) {
  for (let wanted = path ?? ""; wanted; wanted = /^(.+)\[[^[\]]*\]$/.exec(wanted)?.[1]) {
    for (const handle of handles) if (handle.at() === wanted) return handle;
  }
  return null;
}

function render(handle) {
  const wrong = handle.left && handle.fault;
  if (handle.shown === wrong) return;
  handle.shown = wrong;
  handle.element.classList.toggle("wrong", Boolean(wrong));
  handle.error.replaceChildren(...(wrong ? [h("span", { class: "unseen" }, W.error), plain(handle.fault)] : []));
  for (const input of handle.inputs ?? []) wrong ? input.setAttribute("aria-invalid", "true") : input.removeAttribute("aria-invalid");
}

function control(node, at, context) {
  if (!node.children.size) return leaf(node, at, context);
  if (node.children.has("{i}")) return list(node, at, context);
  return group(node, at, context);
}

// ------------------------------------------------------------------ one value

/** The frame of one value: label, hint, what it risks, error, then the control. */
function frame(node, at, context, inner, { choice = false } = {}) {
  const { field } = node, id = fresh("field"), hint = W.hint(field, at() === context.from), risk = W.risks[field?.risk] ?? null;
  const marks = [h("span", { class: "need" }, field?.required ? ` ${W.needed}` : "")];
  const error = h("p", { class: "error", id: `${id}-error` });
  const element = h(choice ? "fieldset" : "div", { class: "field" },
    choice ? h("legend", null, titled(node), marks) : h("label", { for: id }, titled(node), marks),
    hint && h("p", { class: "hint", id: `${id}-hint` }, hint), risk && h("p", { class: "risk" }, risk), error, inner.elements);
  const described = `${hint ? `${id}-hint ` : ""}${id}-error`;
  if (choice) element.setAttribute("aria-describedby", described);
  else { inner.input.id = id; inner.input.setAttribute("aria-describedby", described); }
  const handle = { at, element, error, label: titled(node), input: inner.input, inputs: choice ? [] : [inner.input], left: false, fault: null, refresh: inner.refresh, currency: inner.currency };
  context.handles.add(handle);
  return element;
}

function leaf(node, at, context) {
  const field = node.field ?? { kind: "string" };
  const inner = kindOf(field)(field, at, context);
  const clears = field.unsets ? h("input", { type: "checkbox" }) : null;
  if (clears) inner.elements.push(h("label", { class: "row hint" }, clears, W.clears));
  const element = frame(node, at, context, inner, { choice: inner.choice });
  return {
    element,
    read(pairs, problems) {
      const value = inner.value();
      if (typeof value === "string") pairs.push([at(), value]);
      else if (value) problems.push({ parameter: at(), detail: value.problem });
      else if (clears?.checked) pairs.push([at(), ""]);
    },
    save(typed) { if (inner.raw()) typed.set(at(), inner.raw()); },
    load(typed) { if (typed.has(at())) inner.raw(typed.get(at())); },
  };
}

/** What was typed into an input, or type it there. */
const typing = (input) => (value) => value === undefined ? input.value : (input.value = value);

function kindOf(field) {
  if (field.kind === "boolean") return yesNo;
  if (field.kind === "unix timestamp") return moment;
  if (field.one_of?.length === 1 && field.required) return only;
  if (field.one_of) return field.one_of.length <= FEW ? radios : select;
  if (field.kind === "integer") return /(^|[_[])amount\]?$/.test(field.path) ? amount : number;
  return text;
}

function text(field) {
  const several = (field.max_length ?? 0) > LONG && field.free === true;
  const id = !field.free; // an id or a word, not a text for people
  const input = several ? h("textarea", { rows: 3 }) : h("input", { type: "text", class: id ? "mono" : null });
  for (const [name, value] of Object.entries({ autocomplete: "off", ...(id ? { spellcheck: "false", autocapitalize: "off" } : {}) })) input.setAttribute(name, value);
  const count = h("span", { class: "hint" });
  const value = () => field.kind === "currency" ? input.value.trim().toLowerCase() || null
    : id ? input.value.trim() || null : input.value.trim() ? input.value : null;
  return {
    input, elements: [input, count], value, currency: currencyOf(field, value), raw: typing(input),
    refresh: () => {
      const length = [...input.value].length, most = field.max_length;
      count.textContent = most && length > most * 0.8 ? W.count(length, most) : "";
    },
  };
}

function number() {
  const input = h("input", { type: "text", inputmode: "numeric", autocomplete: "off", class: "short" });
  return { input, elements: [input], value: () => input.value.trim() || null, raw: typing(input) };
}

function amount(field, at, context) {
  const input = h("input", { type: "text", inputmode: "decimal", autocomplete: "off" }), unit = h("span");
  const currency = () => context.currency(at());
  return {
    input, elements: [h("span", { class: "affix" }, input, unit)], raw: typing(input),
    refresh: () => { const of = currency(); unit.textContent = of === undefined ? W.smallest : of ? money.unit(of, context.exponents) : ""; },
    value: () => input.value.trim() ? context.amount(input.value.trim(), currency()) : null,
  };
}

/** What was typed, in minor units of a currency, or what is wrong with it. Of no known currency it is sent as it is. */
function amountOf(typed, of, exponents) {
  if (of === undefined) return typed;
  if (!of) return { problem: W.currencyFirst };
  return money.minor(typed, of, exponents) ?? { problem: W.amount(typed, of.toUpperCase(), money.digits(of, exponents)) };
}

function radios(field) {
  const name = fresh("choice"), words = field.words ?? field.one_of.map((word) => [word, shownWord(field, word)]);
  const boxes = [...(field.required ? [] : [["", W.leaveOut]]), ...words].map(([value, said], index) => {
    const id = fresh("radio");
    return h("label", { for: id }, h("input", { type: "radio", id, name, value, checked: !field.required && !index }), said);
  });
  const element = h("div", { class: "choice" }, boxes);
  const value = () => element.querySelector("input:checked")?.value || null;
  const raw = (chosen) => {
    const box = chosen && [...element.querySelectorAll("input")].find((one) => one.value === chosen);
    if (box) box.checked = true;
    return value();
  };
  return { input: null, elements: [element], value, choice: true, currency: currencyOf(field, value), raw };
}

const yesNo = (field) => radios({ ...field, words: [["true", W.yes], ["false", W.no]] });

function select(field) {
  const input = h("select", null, h("option", { value: "" }, field.required ? W.choose : W.leaveOut),
    field.one_of.map((word) => h("option", { value: word }, shownWord(field, word))));
  const value = () => input.value || null;
  return { input, elements: [input], value, currency: currencyOf(field, value), raw: typing(input) };
}

/** The only thing that may be sent: nothing to choose. */
function only(field) {
  const value = () => field.one_of[0];
  const output = h("output", { class: "fixed mono" }, shownWord(field, field.one_of[0]));
  return { input: output, elements: [output], value, currency: currencyOf(field, value), raw: () => "" };
}

const shownWord = (field, word) => plain(field.kind === "currency" ? word.toUpperCase() : word);

/** Lets amounts know where their currency is chosen. */
const currencyOf = (field, value) => (field.kind === "currency" ? value : null);

function moment() {
  const day = h("input", { type: "date", class: "short" }), clock = h("input", { type: "time", class: "short", "aria-label": W.clock });
  return {
    input: day, elements: [h("div", { class: "row" }, day, clock)],
    raw: (value) => {
      if (value !== undefined) [day.value, clock.value] = value.split(" ");
      return day.value || clock.value ? `${day.value} ${clock.value}` : "";
    },
    value: () => {
      if (!day.value) return clock.value ? { problem: W.dayFirst } : null;
      // Noon in UTC is the same day nearly everywhere.
      const at = clock.value ? new Date(`${day.value}T${clock.value}`) : new Date(`${day.value}T12:00Z`);
      return String(Math.floor(at.getTime() / 1000));
    },
  };
}

function fixedField(node) {
  return h("div", { class: "field" }, h("p", { class: "label" }, titled(node)),
    h("p", { class: "hint" }, W.fixed), h("p", { class: "fixed mono" }, plain(node.field.fixed)));
}

// ------------------------------------------------------------------ several values

function group(node, at, context, { legend = true } = {}) {
  const children = [...node.children.values()];
  const named = children.filter((child) => child.name !== "{key}").map((child) => control(child, () => `${at()}[${child.name}]`, context));
  const free = node.children.has("{key}") ? entries(node.children.get("{key}"), node.field, at, context) : null;
  const error = h("p", { class: "error" });
  const element = h("fieldset", { class: "field group" }, legend && h("legend", null, titled(node)),
    node.field && W.hint(node.field) && h("p", { class: "hint" }, W.hint(node.field)), error,
    named.map((one) => one.element), free?.element);
  context.handles.add({ at, element, error, label: titled(node), inputs: [], left: false, fault: null });
  const all = free ? [...named, free] : named;
  return { element, ...each(() => all), load: (typed) => { named.forEach((one) => one.load(typed)); free?.load(typed, [...node.children.keys()]); } };
}

/** What several controls do as one. */
const each = (all) => ({
  read: (pairs, problems) => all().forEach((one) => one.read(pairs, problems)),
  save: (typed) => all().forEach((one) => one.save(typed)),
  load: (typed) => all().forEach((one) => one.load(typed)),
});

/** Rows that one adds and removes. `row(index)` makes one, `title(index)` names it. */
function rows(node, most, addWords, context, make) {
  const body = h("div"), all = [];
  const add = h("button", { type: "button", onclick: () => grow(true) }, addWords);
  const element = h("div", null, body, h("p", { class: "more" }, add));
  function grow(focus) {
    if (most && all.length >= most) return;
    const entry = { index: all.length };
    const inner = make(entry), title = h("b");
    const away = h("button", { type: "button", class: "link", onclick: () => drop(entry) });
    entry.element = h("div", { class: "item" }, h("div", { class: "row" }, title, away), inner.element);
    Object.assign(entry, { inner, title, away });
    all.push(entry);
    body.append(entry.element);
    renumber();
    if (focus) entry.element.querySelector("input, select, textarea")?.focus();
    context.changed();
  }
  function drop(entry) {
    const next = all[entry.index + 1] ?? null;
    all.splice(entry.index, 1);
    entry.element.remove();
    for (const handle of [...context.handles]) if (entry.element.contains(handle.element)) context.handles.delete(handle);
    renumber();
    (next?.element.querySelector("input, select, textarea") ?? add).focus();
    context.changed();
  }
  function renumber() {
    for (const [index, entry] of all.entries()) {
      entry.index = index;
      entry.title.textContent = W.row(titled(node), index + 1);
      entry.away.textContent = W.remove(titled(node), index + 1);
    }
    add.hidden = Boolean(most) && all.length >= most;
  }
  return { element, grow, ...each(() => all.map((entry) => entry.inner)), last: () => all.at(-1).inner };
}

/** The names right below a path that something was typed under. */
const below = (typed, path) => [...new Set([...typed.keys()].filter((one) => one.startsWith(`${path}[`)).map((one) => one.slice(path.length + 1).split("]")[0]))];

function list(node, at, context) {
  const child = node.children.get("{i}"), most = node.field?.max_items ?? leaves(child)[0].field?.max_items;
  const unit = { ...child, name: node.name, field: child.field ?? null };
  const inner = rows(node, most, W.add(titled(node)), context, (entry) => {
    const place = () => `${at()}[${entry.index}]`;
    return child.children.size ? group(unit, place, context, { legend: false }) : leaf({ ...unit, field: { ...child.field, required: false } }, place, context);
  });
  return wrapped(node, at, context, { ...inner, load: (typed) => below(typed, at()).forEach(() => { inner.grow(false); inner.last().load(typed); }) });
}

function entries(child, field, at, context) {
  const most = field?.max_items ?? leaves(child)[0].field?.max_items;
  const node = { name: "entry", field: { label: W.entry }, children: new Map() };
  const all = rows(node, most, W.addEntry, context, () => {
    const id = fresh("name"), name = h("input", { type: "text", id, class: "mono", autocomplete: "off", spellcheck: "false", autocapitalize: "off" });
    const place = () => `${at()}[${name.value.trim()}]`;
    const inner = control({ ...child, field: child.field && { ...child.field, label: W.value } }, place, context);
    return {
      element: h("div", null, h("div", { class: "field" }, h("label", { for: id }, W.name), name), inner.element),
      read(pairs, problems) {
        const found = [];
        inner.read(found, problems);
        if (!found.length) return;
        const written = name.value.trim();
        if (!written || /[[\]]/.test(written)) problems.push({ parameter: at(), detail: written ? W.noBrackets : W.nameFirst });
        else pairs.push(...found);
      },
      save: (typed) => inner.save(typed),
      load: (typed, called) => { name.value = called; inner.load(typed); },
    };
  });
  return { ...all, load: (typed, others) => below(typed, at()).filter((called) => !others.includes(called)).forEach((called) => { all.grow(false); all.last().load(typed, called); }) };
}

function wrapped(node, at, context, inner) {
  const error = h("p", { class: "error" }), hint = node.field && W.hint(node.field);
  const element = h("fieldset", { class: "field group" }, h("legend", null, titled(node)), hint && h("p", { class: "hint" }, hint), error, inner.element);
  context.handles.add({ at, element, error, label: titled(node), inputs: [], left: false, fault: null });
  return { element, read: inner.read, save: inner.save, load: inner.load };
}

// ------------------------------------------------------------------ what is not needed

/** "4 more fields you may send": closed; of many, only what is opened is built. */
function rest(nodes, context) {
  const many = nodes.flatMap(leaves).length, built = [];
  const items = nodes.map((node) => {
    const parts = leaves(node);
    const item = { node, control: null, text: [node, ...parts].map((one) => `${titled(one)} ${one.field?.path ?? ""}`).join(" ").toLowerCase() };
    const make = () => {
      if (item.control) return null;
      built.push(item.control = control(node, () => node.name, context));
      return item.control.element;
    };
    if (many <= MANY && parts.length <= OPENED) { item.now = make; return item; }
    if (!node.children.size) { item.now = make; return item; }
    item.element = h("details", { ontoggle: () => { const made = item.element.open && make(); if (made) item.element.append(made); } },
      h("summary", null, titled(node), h("span", { class: "count" }, ` ${parts.length}`)));
    item.ready = () => { item.element.open = true; const made = make(); if (made) item.element.append(made); };
    return item;
  });
  const box = h("div");
  const search = many > MANY ? h("input", { type: "search", id: fresh("find"), autocomplete: "off", oninput: find, onchange: (event) => event.stopPropagation() }) : null;
  function find(event) {
    event.stopPropagation();
    const wanted = search.value.trim().toLowerCase();
    for (const item of items) item.element.hidden = Boolean(wanted) && !item.text.includes(wanted);
  }
  function fill() {
    if (box.childElementCount) return;
    if (search) box.append(h("div", { class: "field" }, h("label", { for: search.id }, W.find), search));
    for (const item of items) box.append(item.element ??= item.now());
  }
  const element = h("details", { class: "more", ontoggle: () => element.open && fill() }, h("summary", null, W.moreFields(many)), box);
  return {
    element, controls: () => built,
    /** Build what holds a parameter, and open it. */
    open(path) {
      const item = items.find(({ node }) => path === node.name || path?.startsWith(`${node.name}[`));
      if (!item) return false;
      element.open = true;
      fill();
      item.ready?.();
      return true;
    },
  };
}

function keyField(idempotency, context) {
  const id = fresh("key"), prefix = idempotency.prefix ?? "";
  const input = h("input", { type: "text", id, class: "mono", autocomplete: "off", spellcheck: "false", autocapitalize: "off", "aria-describedby": `${id}-hint ${id}-error` });
  const error = h("p", { class: "error", id: `${id}-error` });
  const element = h("div", { class: "field" },
    h("label", { for: id }, W.key, h("span", { class: "need" }, ` ${idempotency.required ? W.needed : W.neededHere}${prefix ? W.startsWith(prefix) : ""}`)),
    h("p", { class: "hint", id: `${id}-hint` }, W.keyHint), error,
    prefix ? h("div", { class: "affix" }, h("span", { class: "mono", "aria-hidden": "true" }, plain(prefix)), input) : input);
  context.handles.add({ at: () => keyPath, element, error, label: W.key, input, inputs: [input], left: false, fault: null });
  return {
    element, input,
    value: () => {
      const typed = input.value.trim();
      return !typed ? null : typed.startsWith(prefix) ? typed : prefix + typed;
    },
  };
}
