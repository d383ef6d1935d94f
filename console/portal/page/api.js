// The only fetch of the page. All addresses start where this module came from, so that any prefix may stand in front.

import { sign } from "./key.js";

export const ROOT = new URL("../../", import.meta.url);
const SECONDS = 30;

/** No answer came: the network, or nothing is at this address. */
export class Offline extends Error {}

/**
 * Make one request: `{ status, json, text, header }`.
 * Throws Offline, or AbortError if `signal` ended it.
 */
export async function ask(method, path, { body = null, headers = {}, signal = null, key = undefined } = {}) {
  const stops = [AbortSignal.timeout(SECONDS * 1000), ...(signal ? [signal] : [])];
  let answer, text;
  try {
    answer = await fetch(new URL(path, ROOT), {
      method, body, headers: sign({ Accept: "application/json", ...headers }, key), signal: AbortSignal.any(stops),
      credentials: "omit", cache: "no-store", redirect: "error", referrerPolicy: "no-referrer", mode: "same-origin",
    });
    text = await answer.text();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Offline();
  }
  let json = null;
  try { json = JSON.parse(text); } catch { /* a front end's page, not our answer */ }
  return { status: answer.status, json, text, header: (name) => answer.headers.get(name) };
}

export const me = (key) => ask("GET", "-/me", { key });
export const became = (key, grant) => ask("GET", `-/me?${new URLSearchParams(grant ? { key, grant } : { key })}`);
export const fieldsOf = (grant) => ask("GET", `-/me?${new URLSearchParams({ grant })}`);

/** The request that a call is: what is tried is what is sent, but for one word in the address. */
export function request(call, { trial }) {
  const address = new URLSearchParams({ name: call.name, connection_name: call.connectionName });
  if (trial) address.set("validate_only", "true");
  const pairs = new URLSearchParams(call.pairs);
  const looks = call.method === "GET";
  const query = looks && call.pairs.length ? `${address}&${pairs}` : `${address}`;
  const headers = looks ? {} : { "Content-Type": "application/x-www-form-urlencoded" };
  if (call.key) headers["Idempotency-Key"] = call.key;
  return { method: call.method, path: `${call.path}?${query}`, body: looks ? null : `${pairs}`, headers };
}

export function make(call, { trial, signal = null }) {
  const { method, path, body, headers } = request(call, { trial });
  return ask(method, path, { body, headers, signal });
}
