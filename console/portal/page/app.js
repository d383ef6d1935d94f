// The page: one frozen state, and who is told what of it. Modules get values and give values.

import * as api from "./api.js";
import { became } from "./became.js";
import { allFields } from "./fields.js";
import { build } from "./form.js";
import { gate, keyForm } from "./gate.js";
import { h, plain, tell, unpressed } from "./h.js";
import * as key from "./key.js";
import { recipes } from "./recipes.js";
import { sending } from "./send.js";
import { head, jump, who } from "./strip.js";
import { bytesOf, island, judge, trials, wire } from "./verdict.js";
import { W } from "./words.js";

const IDLE_MS = 15 * 60 * 1000;
const LATER_SECONDS = 300;
const FRESH_MS = 15 * 1000; // what may be done and what is left is asked again with a verdict, but no oftener

const place = (id) => document.getElementById(id);
const app = place("app");
const publicFile = place("openapi").firstChild;
let close = () => {}; // what the page that is shown stops when another takes its place

function enter(note = null) {
  close();
  key.forget();
  document.title = "Countersign";
  place("who").replaceChildren();
  place("jump").replaceChildren();
  place("keeps").textContent = "";
  place("openapi").replaceChildren(publicFile);
  document.body.classList.remove("docked");
  const shown = gate(open, note, (into) => { const open = recipes(() => "{}", { level: "public" }); into.append(open.element); open.refresh(); });
  app.replaceChildren(shown.element);
  shown.input.focus();
}

function open(me) {
  close();
  document.title = `${plain(me.caller)} – Countersign`;
  const page = portal(me);
  close = page.close;
  app.querySelector("h1").focus();
}

function portal(first) {
  let state = Object.freeze({ me: first, grant: null });
  let island_ = null; // the parts of the grant that is shown
  let idle = 0, asked = Date.now(), choices = 0;
  const set = (change) => { state = Object.freeze({ ...state, ...change }); };
  const ask = h("div"), top = h("div"), parts = h("div");
  place("who").replaceChildren(who(first, () => enter(W.forgotten)));
  place("jump").replaceChildren(first.grants.length ? jump() : "");
  place("keeps").textContent = W.keeps;
  place("openapi").replaceChildren(h("button", { type: "button", class: "link", onclick: openapi }, W.yourOpenapi));
  app.replaceChildren(ask, top, parts);
  top.replaceChildren(...flat(head(first, () => again())));
  if (first.grants.length) choose(first.grants[0].id);

  /** Ask once more what is left. What may be done is compared, never replaced while somebody types. */
  async function again(oldest = 0) {
    if (Date.now() - asked < oldest || !key.kept()) return;
    asked = Date.now();
    let answer;
    try { answer = await api.me(); } catch { return; }
    if (answer.status === 401) { lost(W.revoked); return; }
    if (answer.status !== 200 || !answer.json) return;
    if (answer.json.policy !== state.me.policy) { changed(answer.json); return; }
    set({ me: { ...answer.json, fields: { ...state.me.fields, ...answer.json.fields }, answers: { ...state.me.answers, ...answer.json.answers }, grants: state.me.grants } });
    top.replaceChildren(...flat(head(state.me, () => again())));
    island_?.update();
  }
  function changed(me) {
    set({ next: me });
    ask.replaceChildren(h("div", { class: "banner", role: "alert" }, h("p", null, W.policyChanged, " ", W.textKept),
      h("p", null, h("button", { type: "button", onclick: () => { const kept = island_?.typed(); close(); const page = portal(me); close = page.close; page.restore(kept); app.querySelector("h1").focus(); } }, W.showNow))));
    island_?.update();
  }
  /** The key is gone, the form stays. */
  function lost(words) {
    key.forget();
    island_?.update();
    const form = keyForm((me) => {
      ask.replaceChildren();
      if (me.caller !== state.me.caller) { open(me); return; }
      if (me.policy !== state.me.policy) { changed(me); return; }
      set({ me: { ...state.me, standings: me.standings, credential: me.credential, paused: me.paused } });
      place("who").replaceChildren(who(me, () => enter(W.forgotten)));
      top.replaceChildren(...flat(head(state.me, () => again())));
      island_?.changed();
    }, words);
    ask.replaceChildren(form.element);
    tell(words);
  }
  async function choose(id, typed = null) {
    const grant = state.me.grants.find((one) => one.id === id);
    const mine = ++choices; // the newest choice counts, whichever answer comes last
    let { me } = state;
    if (!me.fields[grant.fields]) {
      let answer;
      parts.inert = true; // what is typed into the old form now would be lost
      try { answer = await api.fieldsOf(id); } catch { answer = null; }
      if (mine !== choices) return;
      ({ me } = state); // it may have been asked anew meanwhile
      const told = answer?.json?.grants?.find((one) => one.id === id);
      if (answer?.status !== 200 || !told?.fields) {
        parts.inert = false;
        parts.replaceChildren(h("div", { class: "banner" }, h("p", null, plain(answer?.json?.detail ?? `${W.offline}. ${W.offlineHow}`)), h("p", null, h("button", { type: "button", onclick: () => choose(id) }, W.again))));
        return;
      }
      me = { ...me, fields: { ...me.fields, ...answer.json.fields }, answers: { ...me.answers, ...answer.json.answers }, grants: me.grants.map((one) => one.id === id ? told : one) };
      set({ me });
    }
    parts.inert = false;
    island_?.close();
    island_ = granted(state.me.grants.find((one) => one.id === id), { me: () => state.me, stale: () => Boolean(state.next), again, lost, choose });
    parts.replaceChildren(...island_.elements);
    if (typed) island_.restore(typed);
  }
  const kick = () => { clearTimeout(idle); idle = setTimeout(() => key.kept() && lost(W.idle), IDLE_MS); };
  const wipe = () => key.forget();
  const back = (event) => { if (event.persisted && !key.kept()) lost(W.gone); };
  const seen = () => { if (!document.hidden && key.kept() && !island_?.busy()) again(); };
  addEventListener("keydown", kick);
  addEventListener("pagehide", wipe);
  addEventListener("pageshow", back);
  document.addEventListener("visibilitychange", seen);
  kick();
  return {
    restore: (kept) => kept && state.me.grants.some((one) => one.id === kept.grant) && choose(kept.grant, kept),
    close() {
      clearTimeout(idle);
      removeEventListener("keydown", kick);
      removeEventListener("pagehide", wipe);
      removeEventListener("pageshow", back);
      document.removeEventListener("visibilitychange", seen);
      island_?.close();
      close = () => {};
    },
  };
}

/** Save the description of what this caller may do: a link could not carry the key. */
async function openapi() {
  let answer;
  try { answer = await api.ask("GET", "openapi.json"); } catch { answer = null; }
  if (answer?.status !== 200) { tell(answer?.json?.detail ?? W.offline); return; }
  const address = URL.createObjectURL(new Blob([answer.text], { type: "application/json" }));
  h("a", { href: address, download: "openapi.json" }).click();
  URL.revokeObjectURL(address);
}

/** The four parts for one grant. */
function granted(grant, page) {
  const { exponents } = page.me();
  const fields = page.me().fields[grant.fields] ?? [], answers = page.me().answers[grant.answers] ?? [];
  let latest = { bytes: "", verdict: null, answer: null, asked: null }, insisted = false, written = null;
  const verdictPlace = h("div"), sentPlace = h("details", { open: matchMedia("(min-width: 60rem)").matches }, h("summary", null, W.wouldSend));
  const ahead = h("div", { class: "ahead" }, verdictPlace, sentPlace);
  const chooser = page.me().grants.length > 1 ? operations(page.me(), grant, page.choose) : null;
  const form = build(grant, fields, exponents, change, chooser);
  const trying = trials(() => form.read(), (...told) => unpressed(() => verdict(...told)), () => { if (!latest.verdict) paint({ tone: "none", head: W.looking, body: null, faults: [] }); });
  const send = sending(grant, page.me(), { ready, freeze: form.freeze, insist, settled, confirm: () => { sentPlace.open = false; page.again(); }, next: form.nextKey, wire: (call) => wire({ call, fixed: form.read().fixed }, null, []) });
  const filled = recipes(() => { const { call } = form.read(); return JSON.stringify({ grant: grant.id, fields: Object.fromEntries(call.pairs), key: call.key ?? "" }); });
  const lookup = became(page.me(), grant);
  const copyPart = h("section", { class: "part", id: "copy", "aria-labelledby": "copy-head" }, h("h2", { id: "copy-head" }, W.copyIt), h("p", null, W.copyLead), filled.element);
  let near = false, due = true;
  const watcher = new IntersectionObserver((entries) => { near = entries.at(-1).isIntersecting; if (near && due) refill(); }, { rootMargin: "200px" });
  watcher.observe(copyPart);
  const refill = () => { due = false; filled.refresh(); };

  function change(event) {
    if (event?.isComposing) return;
    const asked = form.read(), now = bytesOf(asked.call) + JSON.stringify(asked.problems), same = now === written;
    written = now;
    if (event && same) return; // a field was left, nothing was changed
    if (!send.idle() && !send.busy()) send.close({ focus: false });
    paint();
    send.update();
    trying.soon();
  }
  function verdict(asked, bytes, answer) {
    if (answer?.status === 401) { page.lost(W.revoked); return; }
    const judged = judge(answer, asked, grant, exponents, form);
    latest = { bytes, verdict: judged, answer, asked };
    form.show(judged.faults, { all: insisted });
    paint();
    send.update();
    tell(judged.faults.length ? `${judged.head}. ${W.fix(judged.faults.length)}` : judged.head);
    due = true;
    if (near) refill();
    page.again(FRESH_MS);
    const wait = answer?.json?.retry_after; // what passes by itself is looked at again by itself: a trial costs nothing
    if (judged.tone === "wait" && wait) trying.soon(Math.min(Math.max(wait, 1), LATER_SECONDS) * 1000);
  }
  function paint(instead = null) {
    const asked = form.read(), shown = instead ?? latest.verdict ?? judge(null, asked, grant, exponents, form);
    const stale = Boolean(latest.verdict) && latest.bytes !== bytesOf(asked.call);
    verdictPlace.replaceChildren(island(shown, { stale }));
    sentPlace.replaceChildren(sentPlace.firstChild, wire(asked, stale ? null : latest.answer, stale ? [] : shown.faults));
    const [fault] = shown.faults, label = fault && form.label(fault.parameter);
    send.short.replaceChildren(h("span", { class: `tag ${shown.tone}` }, W.tags[shown.tone]), " ",
      ...(fault ? [W.toFix(shown.faults.length), label ? h("a", { href: "#try", onclick: (event) => { event.preventDefault(); form.reveal(fault.parameter); } }, label) : plain(fault.detail)] : [shown.head]));
    ahead.hidden = false;
  }
  /** Whether exactly what the form says now may be sent; else why not. */
  function ready() {
    const asked = form.read(), bytes = bytesOf(asked.call), { verdict: judged } = latest;
    const fit = judged?.would === "send" && latest.bytes === bytes;
    const why = page.me().paused ? W.pausedFirst : page.stale() ? W.changedFirst : !key.kept() ? W.gone
      : !judged || latest.bytes !== bytes ? (asked.empty ? W.fillIn : W.looking)
      : judged.would === "replay" ? W.replayFirst : judged.tone === "wait" ? W.waitFirst : !fit ? W.fixFirst
      : grant.idempotency && !asked.named ? W.keyMissing : null;
    return { why, asked, bytes };
  }
  /** The button was pressed before its time: show all that is wrong, and lead to the first. */
  function insist() {
    insisted = true;
    const { asked } = ready(), faults = [...latest.verdict?.faults ?? []];
    if (!faults.length && grant.idempotency && !asked.named) faults.push({ parameter: grant.idempotency.from ?? "Idempotency-Key", detail: W.keyMissing });
    form.show(faults, { all: true });
    if (faults.length) form.reveal(faults[0].parameter);
    else if (asked.empty) trying.soon(0);
  }
  function settled(call, answer, outcome) {
    const words = answer?.json?.detail ?? (outcome.done ? answer.json.number ?? answer.json.id ?? "" : W.noAnswer);
    lookup.note(call, outcome, words);
    latest = { bytes: "", verdict: null, answer: null, asked: null };
    ahead.hidden = true; // until something is changed, what came of it stands in its place
    if (answer?.status === 401) page.lost(W.revoked);
    else { form.show(outcome.faults ?? [], { all: true }); page.again(); }
  }
  paint();
  send.update();
  document.body.classList.add("docked");
  return {
    elements: [
      h("section", { class: "part", id: "try", "aria-labelledby": "try-head" }, h("h2", { id: "try-head" }, W.tryIt),
        h("div", { class: "try" }, form.element, h("div", { class: "side" }, ahead, send.element))),
      copyPart,
      h("section", { class: "part", id: "became", "aria-labelledby": "became-head" }, h("h2", { id: "became-head" }, W.becameIt), lookup.element),
      h("section", { class: "part", id: "fields", "aria-labelledby": "fields-head" }, h("h2", { id: "fields-head" }, W.allFields), h("p", null, W.allLead), allFields(fields, answers)),
    ],
    update: () => send.update(), changed: () => change(), busy: () => send.busy(),
    typed: () => ({ grant: grant.id, typed: form.save() }),
    restore: (kept) => { form.load(kept.typed); change(); },
    close: () => { trying.stop(); watcher.disconnect(); document.body.classList.remove("docked"); },
  };
}

/** What may be done, as one native list: it has type-ahead, and works with fifty. */
function operations(me, chosen, choose) {
  const id = "what", connections = [...new Set(me.grants.map((one) => one.connection.id))];
  const option = (one) => h("option", { value: one.id, selected: one.id === chosen.id }, W.does(one.operation) + (connections.length > 1 ? "" : ` (${plain(one.connection.id)})`));
  const select = h("select", { id, oninput: (event) => event.stopPropagation(), onchange: (event) => { event.stopPropagation(); choose(event.target.value).then(() => place("what")?.focus()); } },
    connections.length > 1 ? connections.map((name) => h("optgroup", { label: plain(name) }, me.grants.filter((one) => one.connection.id === name).map(option))) : me.grants.map(option));
  return h("div", { class: "field" }, h("label", { for: id }, W.what), select);
}

const flat = (nodes) => nodes.flat(Infinity).filter(Boolean);

enter();
