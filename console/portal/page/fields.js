// Everything that may be sent, and everything that comes back.

import { h, plain } from "./h.js";
import { W } from "./words.js";

export function allFields(fields, answers) {
  return [
    part(W.maySend(fields.length), [W.field, W.means, W.rules], fields.map((field) => [plain(field.path), meaning(field), plain(W.rule(field))])),
    part(W.getBack(answers.length), [W.field, W.means], answers.map((answer) => [plain(answer.path), answer.means === answer.path ? "" : plain(answer.means)])),
  ];
}

const meaning = ({ label, means, path, risk }) => [label === path ? "" : h("b", null, plain(label)), label === path ? "" : ". ", means === path ? "" : plain(means), W.risks[risk] ? ` ${W.risks[risk]}` : ""];

/** A table that is built when it is opened: 200 rows cost nothing before. */
function part(title, heads, rows) {
  const element = h("details", { ontoggle: () => {
    if (element.open && element.childElementCount === 1) element.append(h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": title },
      h("table", { class: "wide" }, h("thead", null, h("tr", null, heads.map((head) => h("th", { scope: "col" }, head)))),
        h("tbody", null, rows.map(([path, ...cells]) => h("tr", null, h("th", { scope: "row", class: "mono" }, path), cells.map((cell) => h("td", null, cell))))))));
  } }, h("summary", null, title));
  return element;
}
