// Amounts: typed as 120.00, sent as 12000. How many digits a currency has comes from the server.

/** Digits behind the point of a currency; null where nobody can say. */
export const digits = (currency, exponents) => {
  const known = exponents[currency.toLowerCase()];
  return known === undefined ? exponents.default : known;
};

/** Minor units as people write them: `1,200.00 USD`. */
export const shown = (minor, currency, exponents) => `${figure(minor, currency, exponents)} ${unit(currency, exponents)}`;

/** The same without what it is counted in: `1,200.00`. `minor` is a whole number of any kind, or its text. */
export function figure(minor, currency, exponents) {
  const places = digits(currency, exponents) ?? 0;
  const [, sign, text] = /^(-?)(.*)$/.exec(String(minor)), padded = text.padStart(places + 1, "0");
  return sign + grouped(places ? padded.slice(0, -places) : padded) + (places ? `.${padded.slice(-places)}` : "");
}

/** What amounts of a currency are counted in: itself, or its minor units where nobody can say how many digits it has. */
export const unit = (currency, exponents) => (digits(currency, exponents) === null ? "minor units of " : "") + currency.toUpperCase();

/** What was typed, as minor units in text. Null if it is no amount of that currency: nothing is rounded or guessed. */
export function minor(typed, currency, exponents) {
  const places = digits(currency, exponents) ?? 0;
  const found = /^(-?)(\d{1,12})(?:\.(\d+))?$/.exec(typed.trim());
  if (!found) return null;
  const [, sign, whole, part = ""] = found;
  if (part.length > places) return null;
  return sign + (whole + part.padEnd(places, "0")).replace(/^0+(?=\d)/, "");
}

/** 12345 as `12,345`. */
export const grouped = (number) => String(number).replace(/\B(?=(\d{3})+$)/g, ",");
