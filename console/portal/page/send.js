// The real send: a second button that says what happens, and what came of it.

import { sumOf, table } from "./answer.js";
import * as api from "./api.js";
import { h, link, plain, time } from "./h.js";
import { MARKS, bytesOf, most } from "./verdict.js";
import { W } from "./words.js";

/**
 * The button, the panel and the result.
 * `hooks`: `ready()` says why not, or gives `{ asked }`; `freeze(on)`, `insist()`, `confirm()`, `wire(call)`, `settled(call, answer, outcome)`, `next()`.
 */
export function sending(grant, me, hooks) {
  const looks = grant.operation.effect === "looks", { noun } = grant.operation;
  const button = h("button", { type: "button", class: "main", "aria-describedby": "why", onclick: press }, W.raise(grant.operation.effect, noun));
  const why = h("p", { class: "why", id: "why" });
  const place = h("div");
  const short = h("p", { class: "short-of-it" });
  const ask = h("div", { class: "ask" }, short, button, why), element = h("div", { class: "send" }, ask, place);
  let open = null, busy = false;

  /** Called after each change: a panel is for exactly these bytes. */
  function update() {
    const state = hooks.ready();
    button.setAttribute("aria-disabled", String(Boolean(state.why) || busy));
    why.textContent = state.why ?? (looks ? W.asks : W.asked);
    if (open && !busy && (state.why || open.bytes !== state.bytes)) close({ focus: false });
  }
  function press() {
    const state = hooks.ready();
    if (busy) return;
    if (state.why) { hooks.insist(); return; }
    if (looks) { go(state.asked.call); return; }
    open = { bytes: bytesOf(state.asked.call) };
    const heading = h("h3", { tabindex: "-1" }, W.confirm), { call, sum } = state.asked;
    const of = (path) => call.pairs.find(([name]) => name === path)?.[1];
    const yes = h("button", { type: "button", class: "main", onclick: () => go(call, yes) }, W.confirmYes(noun, sum?.text));
    const panel = h("div", { class: "card panel", role: "group", "aria-label": W.confirm, onkeydown: (event) => { if (event.key === "Escape" && !busy) close({ focus: true }); } },
      heading, h("p", null, W.confirmHow(noun, grant.connection.mode, sum?.text && h("b", null, sum.text))),
      sum?.credit ? h("p", null, W.hasCredit(sum.credit)) : null, of("send") === "true" ? h("p", null, W.isMailed) : null,
      sum?.text ? null : h("p", null, sum ? W.sumOfPrices(most(grant, sum.currency, me.exponents)) : W.noSum),
      h("dl", { class: "pairs" }, [[W.connection, grant.connection.id], [W.customer, of("customer")], [W.lines, sum?.count], [W.keyShort, call.key ?? state.asked.named]]
        .filter(([, value]) => value).map(([name, value]) => [h("dt", null, name), h("dd", { class: "mono" }, plain(value))])),
      h("div", { class: "row" }, yes, h("button", { type: "button", onclick: () => { if (!busy) close({ focus: true }); } }, W.confirmNo)));
    place.replaceChildren(panel);
    ask.hidden = true;
    heading.focus();
    heading.scrollIntoView({ block: "nearest" });
    hooks.confirm();
  }
  function close({ focus }) {
    open = null;
    place.replaceChildren();
    ask.hidden = false;
    update();
    if (focus) button.focus();
  }
  async function go(call, yes = button) {
    if (busy) return; // a second click, or Enter twice
    busy = true;
    yes.textContent = looks ? W.lookingUp : W.raising;
    yes.setAttribute("aria-disabled", "true");
    hooks.freeze(true);
    addEventListener("beforeunload", guard);
    let answer;
    try { answer = await api.make(call, { trial: false }); } catch (error) { answer = error; }
    removeEventListener("beforeunload", guard);
    busy = false;
    open = null;
    button.textContent = W.raise(grant.operation.effect, noun);
    result(call, answer);
  }
  function result(call, answer) {
    const outcome = judged(answer, looks, Boolean(call.key) || Boolean(grant.idempotency?.from));
    const heading = h("h3", { tabindex: "-1" }, h("span", { "aria-hidden": "true" }, MARKS[outcome.tone]), outcome.head(answer, me.exponents));
    const buttons = [];
    if (outcome.again) buttons.push(h("button", { type: "button", class: "main", onclick: (event) => go(call, event.target) }, looks ? W.askAgainLook : W.askAgain),
      h("button", { type: "button", onclick: () => { hooks.freeze(false); close({ focus: true }); } }, W.leave));
    if (outcome.done && !looks) buttons.push(h("button", { type: "button", onclick: () => { close({ focus: false }); hooks.next(); } }, W.next(noun)));
    if (!outcome.again && !(outcome.done && !looks)) buttons.push(h("button", { type: "button", onclick: () => close({ focus: true }) }, W.leave));
    place.replaceChildren(h("div", { class: "stack" },
      h("div", { class: `island ${outcome.tone}`, role: outcome.done ? null : "alert" }, heading, outcome.body(answer, call)),
      outcome.done ? h("div", { class: "stack" }, table(answer, me.exponents)) : null,
      h("details", null, h("summary", null, W.wasSent), hooks.wire(call)), h("div", { class: "row" }, buttons, outcome.done ? h("a", { class: "button", href: "#copy" }, W.copyNext) : null)));
    ask.hidden = true;
    if (!outcome.again) hooks.freeze(false); // what is open is asked again as it was
    hooks.settled(call, answer, outcome);
    heading.focus();
    heading.scrollIntoView({ block: "nearest" });
  }
  return { element, update, short, busy: () => busy, idle: () => !ask.hidden, close };
}

const guard = (event) => { event.preventDefault(); };

/** What came of a real call, by its status: what the same key settles may be asked again. */
function judged(answer, looks, keyed) {
  if (answer instanceof api.Offline || !answer.json) return {
    tone: "wait", again: keyed || looks, head: () => W.noAnswer, state: "wait", body: () => h("p", null, looks ? W.noAnswerLook : W.noAnswerHow),
  };
  const { status, json } = answer;
  if (status === 200) return { tone: "yes", done: true, state: "yes", head: (_, exponents) => looks ? W.found : W.raised(sumOf(json, exponents)), body: (_, call) => settled(answer, call, looks) };
  const open = status >= 500 || status === 429 || status === 409 || status === 424;
  const again = (keyed || looks) && open && status !== 424;
  return {
    tone: open ? "wait" : "no", again, state: open ? "wait" : "no", faults: json.faults ?? [], head: () => open ? W.notSettled : W.refused,
    body: () => [h("p", null, plain(json.detail ?? json.title ?? "")),
      again && json.retry_after ? h("p", null, W.after, time(Date.now() / 1000 + json.retry_after), ".") : null,
      h("p", { class: "soft" }, h("small", null, W.decided[json.decided_by] ?? "", " ", json.audit_id ? [W.auditId, h("code", null, plain(json.audit_id))] : ""))],
  };
}

function settled(answer, call, looks) {
  const { json } = answer, replayed = json.replayed === true || answer.header("Idempotent-Replayed") === "true";
  const facts = [json.number && W.numbered(plain(json.number)), json.status && (json.number ? plain(json.status) : W.isNow(plain(json.status)))].filter(Boolean).join(", ");
  return [
    h("p", null, json.hosted_invoice_url ? [link(json.hosted_invoice_url, W.openIt), facts ? `. ${facts}` : ""] : facts,
      Number.isInteger(json.due_date) ? [facts ? ", due " : "Due ", time(json.due_date, { day: true })] : "", facts || json.hosted_invoice_url ? "." : ""),
    looks ? null : replayed ? h("p", null, W.replayed) : call.key ? h("p", null, W.sameAgain(h("b", { class: "mono" }, plain(call.key)))) : null,
  ];
}
