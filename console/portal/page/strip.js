// Who I am, and what is left.

import { h, plain, time } from "./h.js";
import * as money from "./money.js";
import { W } from "./words.js";

const LOW = 0.25;
const WARN_DAYS = 14;

export function who(me, forget) {
  const { credential } = me;
  const until = credential.expires ? [", ", W.until, time(credential.expires, { day: true })] : null;
  return h("p", null, h("span", null, h("b", null, plain(me.caller)), ` ${W.by(plain(credential.id), credential.kind)}`, until),
    h("button", { type: "button", class: "link", onclick: forget }, W.forget));
}

export function jump() {
  return h("nav", { class: "jump", "aria-label": W.jumpLabel }, h("ul", null, W.jump.map(([id, words]) => h("li", null, h("a", { href: `#${id}` }, words)))));
}

/** Whom to ask: an address of mail as a link. */
export const whom = (me) => {
  const text = me.operator || me.owner;
  if (!text) return W.whoever;
  return /^[^\s@]+@[^\s@]+$/.test(text) ? h("a", { href: `mailto:${text}` }, plain(text)) : plain(text);
};

/** The head of the page: the sentence, what to know first, and the bars. `again` asks once more for what is left. */
export function head(me, again) {
  const places = (grants) => [...new Set(grants.map((grant) => grant.connection.id))].map(plain);
  const raises = me.grants.filter((grant) => grant.operation.effect !== "looks");
  const sentence = !me.grants.length ? W.nothing : raises.length ? W.may(places(raises)) : W.mayLook(places(me.grants));
  return [
    h("h1", { tabindex: "-1" }, sentence),
    h("p", { class: "lead" }, me.grants.length ? [W.lead, " ", W.questions, whom(me), "."] : W.nothingHow(whom(me))),
    banners(me),
    me.standings ? bars(me) : me.standings_missing ? h("div", { class: "banner" }, h("p", null, W.storeDown), h("p", null, h("button", { type: "button", onclick: again }, W.again))) : null,
  ];
}

function banners(me) {
  const shown = [], { expires } = me.credential, days = expires ? Math.ceil((expires - me.now) / 86400) : Infinity;
  if (me.paused) shown.push(h("div", { class: "banner no" }, h("p", null, W.paused(whom(me)))));
  if (days <= WARN_DAYS) {
    const [before, between, after] = W.soon(days);
    shown.push(h("div", { class: "banner" }, h("p", null, before, time(expires, { day: true }), between, whom(me), after)));
  }
  return shown;
}

function bars(me) {
  if (!me.standings.length) return null;
  // How much others use of a shared ceiling is not told: it is of interest only where nothing is left.
  const known = me.standings.filter((one) => one.kind !== "ceiling" || one.left === 0);
  return h("ul", { class: "standings", "aria-label": W.standings }, known.map((one) => h("li", null, told(one, me))));
}

/** One of them, in words; the bar says nothing that the words do not. */
function told(one, me) {
  const inMoney = one.kind === "budget";
  const text = (number) => inMoney ? money.shown(number, one.unit, me.exponents) : money.grouped(number);
  const more = (number) => inMoney ? text(number) : W.moreCalls(number);
  const label = inMoney ? W.budget(one.text, one.each) : one.kind === "ceiling" ? W.ceiling(plain(one.connection ?? "")) : W.limit(one.text);
  if (one.kind === "ceiling") return [said(label, W.ceilingOut), later(one, more)];
  if (one.left === null) return [said(label, W.upTo(text(one.of))), one.each && h("small", null, W.eachLater(one.each))];
  const left = inMoney ? text(one.left).replace(/ \w+$/, "") : text(one.left);
  return [said(label, W.left(left, text(one.of))), bar(one.of ? one.left / one.of : 0), later(one, more)];
}

const said = (label, words) => h("div", { class: "said" }, h("span", null, label), h("b", null, words));

function later(one, more) {
  if (one.more) return h("small", null, one.kind === "limit" && one.full_at && one.left ? [W.fullAt, time(one.full_at)] : [one.more.amount ? W.moreAt(more(one.more.amount)) : W.againAt, time(one.more.at)]);
  return one.full_at ? h("small", null, W.fullAt, time(one.full_at)) : one.left === one.of && one.of !== null ? h("small", null, W.full) : null;
}

function bar(share) {
  const width = `${Math.max(0, Math.min(1, share)) * 100}%`;
  return h("svg", { "aria-hidden": "true", width: "100%", height: "8" }, h("rect", { class: "track", width: "100%", height: "8", rx: "4" }),
    h("rect", { class: share <= 0 ? "out" : share <= LOW ? "low" : "full", width, height: "8", rx: "4" }));
}
