// The caller key. It lives in this closure and nowhere else: no element, address, storage or log holds it.

let credential = null;

const UNSEEN = /[\u00ad\u200b-\u200f\u202a-\u202e\u2060-\u2064\ufeff]/g;
const QUOTES = /^["'`\u2018\u2019\u201c\u201d]+|["'`\u2018\u2019\u201c\u201d,;]+$/g;
const FOREIGN = /(^|[^A-Za-z0-9])(sk|rk|pk)_(live|test)_|(^|[^A-Za-z0-9])(sk|rk)_|whsec_|AIza[0-9A-Za-z_-]{8}|-----BEGIN/;
const DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
const LENGTH = 53;

/** What was pasted, without what was wrapped around it: `{ key, took, foreign }`. `foreign`: another's secret. */
export function read(pasted) {
  const took = [];
  let text = pasted.replace(UNSEEN, "");
  if (text !== pasted) took.push("characters that nobody sees");
  if (/\S\s*[\r\n]\s*\S/.test(text)) took.push("a line break");
  text = text.trim();
  for (let before = null; before !== text;) { // a scheme may stand there twice
    before = text;
    text = text.replace(QUOTES, "").trim();
    if (text !== before) note(took, "the quotes around it");
    const scheme = /^(?:(x-api-key|authorization)\s*[:=]\s*|(bearer|basic|token)\s+)/i.exec(text);
    if (scheme) {
      note(took, `“${(scheme[1] ?? scheme[2]).replace(/^./, (c) => c.toUpperCase()).replace("X-api", "x-api")}”`);
      text = text.slice(scheme[0].length);
      if (scheme[2]?.toLowerCase() === "basic") text = password(text);
    }
  }
  const key = text.replace(/\s+/g, "");
  return { key, took, foreign: FOREIGN.test(pasted) && !key.startsWith("csk_") };
}

const note = (took, what) => { if (!took.includes(what)) took.push(what); };

/** Of a Basic credential: the one of its two parts that is a caller key. */
function password(text) {
  let decoded;
  try { decoded = atob(text.trim()); } catch { return text; }
  return decoded.split(":").find((part) => part.startsWith("csk_")) ?? text;
}

/** What is wrong with the form of a key that is not known: how many characters are missing, "mistyped", or null. */
export function flaw(key) {
  if (!/^csk_[0-9A-Za-z]+$/.test(key)) return null; // a key of another form is as good
  if (key.length < LENGTH) return LENGTH - key.length;
  return key.length > LENGTH || checksum(key.slice(0, -6)) !== key.slice(-6) ? "mistyped" : null;
}

function checksum(text) {
  let crc = 0xffffffff;
  for (const character of text) {
    crc ^= character.charCodeAt(0);
    for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0xedb88320 : crc >>> 1;
  }
  let number = (crc ^ 0xffffffff) >>> 0, written = "";
  for (let digit = 0; digit < 6; digit++, number = Math.floor(number / 62)) written = DIGITS[number % 62] + written;
  return written;
}

/** Keep it, until the tab closes or it is forgotten. */
export const keep = (key) => { credential = key; };
export const forget = () => { credential = null; };
export const kept = () => credential !== null;

/** Add the credential to a request's headers: a caller key, or a pasted ID token of Google. */
export function sign(headers, key = credential) {
  if (key === null) return headers;
  return /^ey[\w-]+\.[\w-]+\.[\w-]+$/.test(key)
    ? { ...headers, Authorization: `Bearer ${key}` } : { ...headers, "x-api-key": key };
}
