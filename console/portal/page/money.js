// Amounts: typed as 120.00, sent as 12000. How many digits a currency has comes from the server.

/** Digits behind the point of a currency; null where nobody can say. */
export const digits = (currency, exponents) => {
  const known = exponents[currency.toLowerCase()];
  return known === undefined ? exponents.default : known;
};

/** Minor units as people write them: `1,200.00 USD`. */
export function shown(minor, currency, exponents) {
  const places = digits(currency, exponents), name = currency.toUpperCase();
  if (places === null) return `${grouped(minor)} minor units of ${name}`;
  const sign = Number(minor) < 0 ? "-" : "";
  const text = String(minor).replace("-", "").padStart(places + 1, "0");
  const whole = places ? text.slice(0, -places) : text;
  return `${sign}${grouped(whole)}${places ? `.${text.slice(-places)}` : ""} ${name}`;
}

/** What was typed, as minor units in text. Null if it is no amount of that currency: nothing is rounded or guessed. */
export function minor(typed, currency, exponents) {
  const places = digits(currency, exponents);
  const found = /^(-?)(\d{1,12})(?:\.(\d+))?$/.exec(typed.trim());
  if (!found || places === null) return null;
  const [, sign, whole, part = ""] = found;
  if (part.length > places) return null;
  return sign + (whole + part.padEnd(places, "0")).replace(/^0+(?=\d)/, "");
}

/** 12345 as `12,345`. */
export const grouped = (number) => String(number).replace(/\B(?=(\d{3})+$)/g, ",");
