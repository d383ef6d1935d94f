// Runs a script of Google Apps Script with stand-ins for the two services that a recipe takes.
//
// stdin: {"script", "key", "call": {"function", "arguments"}}. stdout: {"requests"}: what UrlFetchApp was asked, as it
// would send it; the answer is made by curl's own hand in the test, which is given in "answers".
const vm = require("node:vm");
const { execFileSync } = require("node:child_process");

const given = JSON.parse(require("node:fs").readFileSync(0, "utf8"));

// UrlFetchApp.fetch is synchronous, and sends an object as a form.
const SEND = `
const [url, options] = JSON.parse(process.argv[1]);
fetch(url, options).then(async (answer) => {
  process.stdout.write(JSON.stringify({ status: answer.status, text: await answer.text() }));
});`;

function fetched(url, { method, headers, payload, muteHttpExceptions, followRedirects }) {
  if (muteHttpExceptions !== true || followRedirects !== false) throw new Error("the answer would be thrown away");
  for (const value of Object.values(payload ?? {})) {
    if (typeof value !== "string") throw new Error("a number arrives as 1001.0");
  }
  const body = payload === undefined ? undefined : new URLSearchParams(payload).toString();
  const type = body === undefined ? {} : { "Content-Type": "application/x-www-form-urlencoded" };
  const options = { method, headers: { ...headers, ...type }, body, redirect: "manual" };
  const told = JSON.parse(execFileSync(process.execPath, ["-e", SEND, JSON.stringify([url, options])]));
  return { getResponseCode: () => told.status, getContentText: () => told.text };
}

const world = vm.createContext({
  UrlFetchApp: { fetch: fetched },
  PropertiesService: { getScriptProperties: () => ({ getProperty: (name) => ({ COUNTERSIGN_KEY: given.key })[name] }) },
});
vm.runInContext(given.script, world);
try {
  console.log(JSON.stringify(world[given.call.function](...given.call.arguments)));
} catch (error) {
  console.error(error.message);
  process.exitCode = 1;
}
