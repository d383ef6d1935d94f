// All words of the page in one place, to be read as a whole. What is refused is said in the server's own words.

const list = (items) => items.length < 2 ? items.join("") : `${items.slice(0, -1).join(", ")} and ${items.at(-1)}`;
const aOf = (noun) => (/^[aeiou]/i.test(noun) ? `an ${noun}` : `a ${noun}`);
const count = (number, one, many = `${one}s`) => `${number} ${number === 1 ? one : many}`;

const grouped = (number) => number.toLocaleString("en-US");

const EACH = { 1: "a second", 60: "a minute", 3600: "an hour", 86400: "a day" };

export const W = Object.freeze({
  // The way in
  gate: "See what your key may do",
  gateLead: "Paste the caller key that you were sent. You see which invoices you may raise, try one without sending it, and copy it into your own tool.",
  keyLabel: "Caller key",
  keyForm: "It starts with csk_ and has 53 characters.",
  show: "Show",
  open: "Show what I may do",
  asking: "Asking…",
  keyStays: "The key stays in this tab's memory, goes to this address only, and is gone when you close or reload the tab.",
  took: (what) => `We took out ${list(what)}.`,
  pasteFirst: "Paste your caller key here.",
  foreign: "This looks like another service's secret key. It was not sent anywhere. Paste the caller key that starts with csk_.",
  notAKey: "This is not a caller key: it holds characters that no key has. Copy it again from your mail.",
  missing: (number) => `This key is not known, and ${count(number, "character")} seem${number === 1 ? "s" : ""} to be missing at its end. Copy it again from your mail.`,
  mistyped: "This key is not known, and a part of it was mistyped or cut off. Copy it again from your mail.",
  unknown: "This key is not known. Ask whoever sent it to you for a new one. A key that has reached its last day is refused the same way.",
  google: "I sign in with Google instead",
  googleHow: ["Your calls may be proved by an ID token of Google in place of a key. Get one with ", "gcloud auth print-identity-token", " and paste it above. It works for an hour."],
  noKey: "I have no key",
  noKeyHow: "Whoever runs Countersign in your company makes one for you, and decides what it may do. Say which invoices you want to raise, for which customers, and from which tool.",
  looks: "What the call looks like (for everybody)",
  forgotten: "The key is forgotten. Nothing of it is kept.",
  idle: "Your key was forgotten after 15 minutes without a key press. Your text is kept. Paste the key again to go on.",
  gone: "Your key was forgotten when you left this page. Paste it again to go on.",
  revoked: "Your key is not known any more. Your text is kept. Paste another key to go on, or ask whoever sent it to you.",

  // Who, and what is left
  by: (id, kind) => kind === "key" ? `by key ${id}` : `by ${id}`,
  until: "good until ",
  forget: "Forget this key",
  jump: [["try", "Try it"], ["copy", "Copy it"], ["became", "What became of it"], ["fields", "All fields"]],
  jumpLabel: "Parts of this page",
  keeps: "This page keeps your key in this tab's memory only.",
  yourOpenapi: "Your OpenAPI file",
  may: (places) => places.length === 1 ? `You may raise invoices at ${places[0]}` : `You may raise invoices at ${places.length} connections`,
  mayLook: (places) => places.length === 1 ? `You may look at invoices at ${places[0]}` : `You may look at invoices at ${places.length} connections`,
  nothing: "Your key is right, but nothing is granted to it yet",
  nothingHow: (whom) => [`Write to `, whom, ` and name what you need: raise an invoice, with which fields.`],
  whoever: "whoever sent it to you",
  lead: "Fill in the form, see what would happen, then copy a recipe into your own tool. Nothing is raised until you say so.",
  questions: "Questions: ",
  soon: (days) => [`Your key works until `, ` (${count(days, "day")}). Ask `, ` for a new one now.`],
  paused: (whom) => ["Your access is paused. Your key is right; nothing can be raised until ", whom, " takes the pause out. What you may do is shown below."],
  policyChanged: "What you may do has changed since you opened this page.",
  showNow: "Show what applies now",
  textKept: "Your text is kept.",
  storeDown: "What is left cannot be read just now. Nothing can be raised either. What you may do is shown below; your text is kept.",
  again: "Try again",
  offline: "No connection to this address",
  offlineHow: "Your text is kept. Check your network, then try again.",
  broken: "The answer cannot be read",
  brokenHow: "Something else than Countersign answered. Your text is kept. Try again, and tell whoever runs it if it stays so.",
  standings: "What is left",
  limit: (text) => `Calls ${text.replace(/^[\d,]+ calls? /, "")}`,
  budget: (text, each) => `Money ${text.replace(/^.* (?=an? )/, "")}${each ? ` for each ${each}` : ""}`,
  ceiling: (connection) => `Calls at ${connection}, by all who use it`,
  ceilingOut: "used up for now",
  left: (left, of) => `${left} of ${of} left`,
  upTo: (text) => `up to ${text}`,
  eachLater: (each) => `what is left shows once you name the ${each}`,
  fullAt: "full again at ", againAt: "again at ", moreAt: (text) => `${text} more at `, full: "all of it is left",
  moreCalls: (number) => count(number, "call"),

  // The form
  form: "The call",
  tryIt: "Try it",
  what: "What do you want to do?",
  does: (operation) => operation.id === "invoices.issue" ? "Raise a whole invoice" : operation.effect === "looks" ? `Look at ${aOf(operation.noun)}`
    : operation.id.endsWith(".create") ? `Raise ${aOf(operation.noun)}` : `${operation.id.split(".").pop().replaceAll("_", " ").replace(/^./, (c) => c.toUpperCase())} ${aOf(operation.noun)}`,
  needed: "needed",
  neededHere: "needed to raise it from this page",
  startsWith: (prefix) => `, starts with ${prefix}`,
  error: "Error: ",
  key: "Idempotency key",
  keyHint: "Your own name for this invoice, such as the order number: sent again, it brings back the same invoice and never a second one.",
  keyMissing: "Give this invoice a name of your own first, such as the order number. Without it, a lost answer could not be asked for again.",
  fixed: "Fixed by whoever runs Countersign. It is sent for you.",
  clears: "Send it empty, which clears it",
  leaveOut: "Leave out", choose: "Choose one", yes: "Yes", no: "No",
  clock: "Time, in your own zone; without one it is noon",
  dayFirst: "Choose the day, too.",
  smallest: "in the currency's smallest unit",
  currencyFirst: "Choose the currency first: it says how many digits stand behind the point.",
  amount: (typed, currency, places) => places === null ? `${typed} cannot be read as an amount of ${currency}. Write it in the smallest unit of ${currency}, as a whole number: this page does not know how many digits it has behind the point.`
    : `${typed} cannot be read as an amount of ${currency}. Write it as ${places ? `1234.${"5".padEnd(places, "0")}` : "1234"}, with ${places ? `a point, at most ${count(places, "digit")} behind it` : "no point"} and nothing between the digits.`,
  count: (length, most) => `${length} of ${most} characters`,
  entry: "Entry", addEntry: "Add an entry", name: "Name", value: "Value",
  nameFirst: "Give each entry a name.", noBrackets: "A name has no square brackets.",
  add: (title) => `Add to ${title}`,
  row: (title, number) => `${title} ${number}`,
  remove: (title, number) => `Remove ${title} ${number}`,
  lines: "Lines", oneLine: "one", upToLines: (most) => `1 to ${most}`,
  linesHint: "Leave How many empty for a line that is one amount.",
  creditHint: "With a minus it is a credit, which lowers the sum.",
  mostOf: (sum) => `All of them together: ${sum} at most, tax included.`,
  way: "What each line says", amounts: "An amount", stored: "A price kept at Stripe",
  lineText: "Text on the invoice", lineMany: "How many", linePrice: "Price id", lineTotal: "Comes to",
  lineEach: (unit) => unit ? `Each, in ${unit.replace(/^in /, "")}` : "Each",
  line: (number) => `Line ${number}`, lineNumber: (number) => ` of line ${number}`, ofLine: (words, number) => `${words} of line ${number}`,
  addLine: "Add a line", removeLine: (number) => `Remove line ${number}`, up: (number) => `Move line ${number} up`, down: (number) => `Move line ${number} down`,
  moved: (from, to) => `Line ${from} is line ${to} now`,
  moreOfLine: "More on this line",
  noAmount: (number) => `Write what line ${number} costs.`, noPrice: (number) => `Write the price id of line ${number}.`,
  sum: "Sum before tax", sumLater: "worked out at Stripe", sumUnknown: "not known yet", credit: "Credit",
  moreFields: (number) => `${number} more ${number === 1 ? "field" : "fields"} you may send`,
  find: "Find a field",
  named: (name) => name.replaceAll("_", " ").replace(/^./, (c) => c.toUpperCase()),
  risks: { "triggers collection": "This takes the money by itself.", "reroutes money": "This decides where the money goes.", "mails the customer": "This mails the customer.", "undoes an invoice": "This cannot be undone.", "widens the answer": "This makes the answer longer." },
  /** What stands above a control: what it means, and the rule in few words. */
  hint(field, isKey) {
    if (!field) return isKey ? this.keyHint : "";
    const said = field.means && field.means !== field.label && field.means !== field.path ? [field.means] : [];
    if (isKey) said.push(this.keyHint);
    if (field.prefix) said.push(`It starts with ${field.prefix}.`);
    const { min = null, max = null } = field, figures = field.kind !== "unix timestamp";
    if (figures && min !== null && max !== null) said.push(`${min} to ${max}.`);
    else if (figures && max !== null) said.push(`${max} at most.`);
    else if (figures && min !== null) said.push(`${min} at least.`);
    if (field.kind === "currency" && !field.one_of) said.push("Three letters, such as USD.");
    return said.join(" ");
  },
  /** The same rule, for the table of all fields. */
  rule(field) {
    const said = [];
    if (field.fixed !== undefined && field.fixed !== null) return `always ${field.fixed}, sent for you`;
    if (field.required) said.push("needed");
    said.push(field.kind);
    if (field.one_of) said.push(`one of ${field.one_of.join(", ")}`);
    if (field.prefix) said.push(`starts with ${field.prefix}`);
    if (field.min !== undefined && field.min !== null) said.push(`${field.min} or more`);
    if (field.max !== undefined && field.max !== null) said.push(`${field.max} or less`);
    if (field.max_length) said.push(`at most ${field.max_length} characters`);
    if (field.max_items) said.push(`at most ${field.max_items} entries`);
    if (field.max_key) said.push(`names of at most ${field.max_key} characters`);
    return said.join(", ");
  },

  // The verdict
  nothingYet: "Nothing to show yet",
  fillIn: "Fill in what is needed, and you see here what would happen.",
  looking: "Looking…",
  stale: "You changed something since. It is looked at again.",
  wouldRaise: (effect) => effect === "looks" ? "This would be answered" : "This would be raised",
  wouldRefuse: "This would be refused",
  notNow: "Not now",
  used: "This key was used before",
  running: "It is still running", approval: "It waits for a person's approval", notKnown: "It is not known yet whether it exists",
  one: (noun, customer, due, currency, asks) => [`One ${noun}`, asks?.text ? [" of ", asks.text, " before tax"] : currency ? ` in ${currency.toUpperCase()}` : "", asks ? `, with ${count(asks.lines, "line")}` : "", customer ? [", to ", customer] : "", due ? `, due in ${count(Number(due), "day")}` : "", "."],
  afterIt(limits) {
    return `After it, ${list(limits.map(({ left, limit, window }) => `${grouped(left - 1)} of ${grouped(limit)} calls ${EACH[window] ?? `in ${window} seconds`}`))} are left.`;
  },
  afterMoney: (left, of, window, each) => `After it, ${left} of ${of} ${EACH[window] ?? `in ${window} seconds`}${each ? ` for this ${each}` : ""} are left.`,
  hasCredit: (sum) => `It has a credit of ${sum} in it.`,
  isMailed: "It is mailed to the customer.",
  sumOfPrices: (most) => `Its sum is worked out from the prices kept at Stripe${most ? `. If that is more than ${most}, nothing is raised` : ""}.`,
  sumDiffers: "The sums differ", sumDiffersHow: "This page and Countersign do not come to the same sum, so nothing can be raised from here. Load the page again.",
  notForeseen: "Only sending it shows what the billing service itself says.",
  wouldReplay: (noun) => `It brings back the ${noun} of its first call. A new ${noun} needs a key of its own.`,
  wouldReplayOf: (noun, number, sum) => [`It brings back ${noun} `, number, sum ? ` of ${sum}` : "", `. A new ${noun} needs a key of its own.`],
  decided: { policy: "Decided by the policy.", countersign: "Decided by Countersign.", upstream: "Decided by the billing service." },
  nothingUsed: "Nothing was sent and nothing was used up.",
  passes: "It passes again at ",
  accepts(accepts) {
    if (!accepts) return "";
    const { one_of: words, min, max, max_length: length, prefix, kind } = accepts;
    if (words) return words.length === 1 ? `${words[0]} would pass.` : `One of ${words.join(", ")} would pass.`;
    if (min !== undefined && max !== undefined) return `${min} to ${max} would pass.`;
    if (max !== undefined) return `${max} would pass.`;
    if (min !== undefined) return `${min} would pass.`;
    if (prefix) return `It starts with ${prefix}.`;
    if (length) return `At most ${length} characters would pass.`;
    return kind === "boolean" ? "true or false would pass." : "";
  },
  wouldSend: "What would be sent", wasSent: "What was sent",
  toFix: (number) => `${count(number, "field")} to fix: `,
  fix: (number) => `${count(number, "field")} to fix`,
  tags: { yes: "fine", no: "refused", wait: "not now", none: "try it" },

  // The real send
  raise: (effect, noun) => effect === "looks" ? `Look at this ${noun}` : effect === "creates" ? `Raise this ${noun}…` : "Do this…",
  asked: "You are asked once more before anything is raised.",
  asks: "It counts as one call. Nothing is changed.",
  short: "In short",
  fixFirst: "Fix what is marked first. You are asked once more before anything is raised.",
  waitFirst: "It cannot be raised now. Trying costs nothing.",
  replayFirst: "Give the new one a key of its own.",
  pausedFirst: "Your access is paused.",
  changedFirst: "What you may do has changed. Show what applies now first.",
  confirm: "Raise it now?",
  confirmHow: (noun, mode, sum) => mode === "test" ? ["The account is a test account: no customer gets anything. ", sum ? [`The ${noun} of `, sum] : "It", " counts against your limits."]
    : [`This is not a test. The customer gets ${aOf(noun)}`, sum ? [" of ", sum] : "", ", and it counts against your limits."],
  noSum: "The call names no sum: the billing service works it out from what is pending for this customer.",
  connection: "Connection", customer: "Customer", keyShort: "Key",
  confirmYes: (noun, sum) => `Yes, raise ${sum ?? `this ${noun}`}`, confirmNo: "Not yet",
  raising: "Raising…", lookingUp: "Looking…",
  raised: (sum) => sum ? `Raised: ${sum}` : "Raised",
  found: "Here it is",
  openIt: "Open the invoice",
  isNow: (status) => `It is ${status === "draft" ? "a draft" : status}`,
  numbered: (number) => `Number ${number}`,
  sameAgain: (key) => ["Sent again with the key ", key, " it is this same invoice."],
  replayed: "This is the invoice of your first call. Nothing new was raised.",
  asTool: "As your tool shows it",
  asToolOf: (key) => `${key} as your tool shows it`,
  raw: "The answer as it came",
  next: (noun) => `Next ${noun}`, copyNext: "Copy it into your tool",
  refused: "It was refused",
  notSettled: "It is not settled",
  noAnswer: "No answer came",
  noAnswerHow: "The invoice may exist. Ask again with the same key: it cannot raise a second one.",
  noAnswerLook: "Nothing was changed. Ask again.",
  askAgain: "Ask again with the same key", askAgainLook: "Ask again",
  after: "Ask again after ",
  leave: "Leave it and go on",
  auditId: "Audit id: ",

  // Recipes
  copyIt: "Copy it into your tool",
  copyLead: "Made from what you filled in, with your address and connection. Your key is never in it: you paste that yourself, once, where it says so.",
  recipes: "Tools",
  copy: "Copy", copied: "Copied.", copyByHand: "It is marked: copy it with your keyboard.",
  recipesSoon: "Looking…",
  recipesNot: "The recipes cannot be read just now.",
  nameOf: (name) => `the name ${name}`,
  recipeOf: (title) => `Recipe for ${title}`,

  // What became of a call
  becameIt: "What became of a call",
  becameLabel: "Idempotency key",
  lookUp: "Look it up",
  becameEmpty: "Write the key of your call, such as the order number.",
  states: { never: "Never seen", free: "Nothing was raised", elsewhere: "Used at another account", refused: "It was refused",
    running: "It is still running", waiting: "It waits for a person's approval", unknown: "It is not known yet whether it exists",
    unavailable: "It cannot be told just now" },
  ended: { yes: "done", no: "refused", wait: "not settled" },
  sentAt: "Sent at ",
  ownCalls: "Calls of this tab",
  when: "When", which: "What", why: "Why",

  // All fields
  allFields: "All fields",
  allLead: "Everything you may send, and everything you get back. Anything else is refused.",
  maySend: (number) => `What you may send (${number})`,
  getBack: (number) => `What you get back (${number})`,
  field: "Field", means: "What it means", rules: "What passes",
});
