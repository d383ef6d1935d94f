// What would happen: the trial of the very call, and what its answer means.

import { sumOf } from "./answer.js";
import * as api from "./api.js";
import { h, plain, time } from "./h.js";
import * as money from "./money.js";
import { W } from "./words.js";

const PAUSE_MS = 400;       // after the last key: short enough to feel live
const PATIENCE_MS = 600;    // under this nobody needs to be told to wait
export const MARKS = { yes: "✓", no: "✕", wait: "⏳︎", none: "" };

/**
 * Ask for a verdict when the form has come to rest: one question at a time, and only the newest answer counts.
 * `read` gives the form, `tell(asked, bytes, answer)` takes what came; an answer of null: nothing to ask yet.
 */
export function trials(read, tell, slow) {
  let timer = 0, running = null, sequence = 0, missed = false;
  document.addEventListener("visibilitychange", () => { if (!document.hidden && missed) soon(0); });
  function soon(pause = PAUSE_MS) {
    clearTimeout(timer);
    timer = setTimeout(run, pause);
  }
  async function run() {
    if (missed = document.hidden) return;
    running?.abort();
    const mine = ++sequence, asked = read(), bytes = bytesOf(asked.call);
    if (asked.empty || !asked.whole || asked.problems.length) { tell(asked, bytes, null); return; }
    running = new AbortController();
    const waiting = setTimeout(slow, PATIENCE_MS);
    let answer;
    try { answer = await api.make(asked.call, { trial: true, signal: running.signal }); }
    catch (error) { if (!(error instanceof api.Offline)) return; answer = error; }
    finally { clearTimeout(waiting); }
    if (mine !== sequence) return;
    const busy = answer.status === 429 && answer.json?.reason === "asked-too-often";
    if (busy) { soon(1000 * Number(answer.header("Retry-After") ?? 1)); return; }
    tell(asked, bytes, answer);
  }
  return { soon, stop: () => { clearTimeout(timer); running?.abort(); sequence++; } };
}

/** What would be sent, byte for byte: a verdict is good for exactly this. */
export const bytesOf = (call) => JSON.stringify(api.request(call, { trial: false }));

const MONEY = /(^|[_[])(amount\]?|lines)$/;
const LIMITS = new Set(["limit-reached", "ceiling-reached", "budget-spent"]);
const HEADS = { "idempotency-key-in-use": W.running, "awaiting-approval": W.approval, "outcome-unknown": W.notKnown, "outcome-pending": W.notKnown, "outcome-still-unknown": W.notKnown };

/** What an answer means: `{ would, tone, head, body, faults }`. `reveal(path)` leads to a field. */
export function judge(answer, asked, grant, exponents, form) {
  if (asked.problems.length) return refusal(W.wouldRefuse, { faults: asked.problems }, form);
  if (answer === null) return { would: "none", tone: "none", head: W.nothingYet, body: h("p", null, W.fillIn), faults: [] };
  if (answer instanceof api.Offline) return { would: "none", tone: "wait", head: W.offline, body: h("p", null, W.offlineHow), faults: [] };
  const told = answer.json;
  if (!told) return { would: "none", tone: "wait", head: W.broken, body: h("p", null, W.brokenHow), faults: [] };
  const would = told.would ?? (answer.status === 200 ? "send" : "refuse");
  if (would === "send" && asked.sum && told.asks_for?.total != asked.sum.total) return { would: "none", tone: "wait", head: W.sumDiffers, body: h("p", null, W.sumDiffersHow), faults: [] };
  if (would === "send") return { would, tone: "yes", head: W.wouldRaise(grant.operation.effect), body: sends(asked, grant, told, exponents), faults: [] };
  if (would === "replay") return { would, tone: "wait", head: W.used, body: h("p", null, replays(told, grant, exponents)), faults: [] };
  const waits = would === "wait" || LIMITS.has(told.reason);
  return { would, ...refusal(HEADS[told.reason] ?? (waits ? W.notNow : W.wouldRefuse), told, form, waits) };
}

function sends({ call, sum }, grant, told, exponents) {
  const of = (path) => call.pairs.find(([name]) => name === path)?.[1];
  const customer = of("customer"), asks = told.asks_for ?? null;
  const limits = (told.left ?? []).filter(({ kind, left }) => kind === "limit" && left > 0);
  const budgets = (told.left ?? []).filter(({ kind, currency }) => kind === "budget" && asks?.total != null && currency === asks.currency);
  return [
    grant.operation.effect === "looks" ? null : h("p", null, W.one(grant.operation.noun, customer && h("b", { class: "mono" }, plain(customer)), of("days_until_due"), of("currency"), asks && { text: asks.total === null ? null : h("b", null, sumOf(asks, exponents)), lines: asks.lines })),
    sum?.credit ? h("p", null, W.hasCredit(sum.credit)) : null,
    asks?.total === null ? h("p", null, W.sumOfPrices(most(grant, asks.currency, exponents))) : null,
    told.key && told.key.state !== "new" ? h("p", null, plain(told.key.detail)) : null,
    limits.length ? h("p", null, W.afterIt(limits)) : null,
    ...budgets.map((one) => h("p", null, W.afterMoney(money.shown(Math.max(one.left - asks.total, 0), one.currency, exponents), money.shown(one.limit, one.currency, exponents), one.window, one.each))),
    h("p", { class: "soft" }, h("small", null, W.notForeseen)),
  ];
}

/** What an invoice may come to, as money; null if the policy does not say. */
export const most = ({ amount }, currency, exponents) => amount?.max ? money.shown(amount.max, currency, exponents) : null;

function replays(told, grant, exponents) {
  const name = told.number ?? told.id;
  return name ? W.wouldReplayOf(grant.operation.noun, h("b", null, plain(name)), sumOf(told, exponents)) : W.wouldReplay(grant.operation.noun);
}

function refusal(head, told, form, waits = false) {
  const faults = told.faults?.length ? told.faults : told.parameter ? [{ parameter: told.parameter, detail: told.detail, accepts: told.accepts }]
    : told.reason?.startsWith("idempotency-key-") && !waits ? [{ parameter: "Idempotency-Key", detail: told.detail }] : [];
  const body = [
    faults.length ? h("ul", null, faults.map((fault) => h("li", null, faultLine(fault, form)))) : h("p", null, plain(told.detail ?? told.title ?? "")),
    told.retry_after ? h("p", null, W.passes, time(Date.now() / 1000 + told.retry_after), ".") : null,
    h("p", { class: "soft" }, h("small", null, W.decided[told.decided_by] ?? "", " ", W.nothingUsed)),
  ];
  return { would: "refuse", tone: waits ? "wait" : "no", head, body, faults };
}

/** The server's sentence, its field as a link where there is one, and what would pass. */
function faultLine(fault, form) {
  const label = form.label(fault.parameter), detail = plain(fault.detail);
  const at = label ? h("a", { href: "#try", onclick: (event) => { event.preventDefault(); form.reveal(fault.parameter); } }, label) : null;
  const passes = MONEY.test(fault.parameter) ? "" : W.accepts(fault.accepts); // a sum is in the sentence, as money
  return [at, at ? ": " : "", detail, passes && !detail.includes(passes) ? [" ", h("b", null, passes)] : null];
}

export function island(verdict, { stale = false, level = "h3" } = {}) {
  return h("div", { class: `island ${verdict.tone}` },
    h(level, null, MARKS[verdict.tone] && h("span", { "aria-hidden": "true" }, MARKS[verdict.tone]), verdict.head),
    verdict.body, stale ? h("p", { class: "soft" }, h("small", null, W.stale)) : null);
}

/** The canonical form, one pair a line, faults marked. */
export function wire(asked, answer, faults) {
  const { call, fixed } = asked, body = answer?.json?.would_send?.body;
  const [path, query] = api.request(call, { trial: false }).path.split("?");
  const pairs = body && !asked.sum ? [...new URLSearchParams(body)] : [...call.pairs, ...(fixed ?? [])];
  const wrong = new Set(faults.map((fault) => fault.parameter));
  return h("pre", { class: "sent", tabindex: "0", role: "region", "aria-label": W.wouldSend },
    `${call.method} /${path}\n     ?${query}\n`, call.key ? `Idempotency-Key: ${plain(call.key)}\n` : "", call.method === "GET" ? "" : "\n",
    call.method === "GET" ? "" : pairs.map(([name, value]) => [`${plain(name)}=`, wrong.has(name) ? h("mark", null, plain(value) || " ") : plain(value), "\n"]));
}
