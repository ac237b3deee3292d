"use strict";

// Names as patterns: whether a query means them, and how they are shown. Names only ever become text.

/** Whether some alternative of "0-1.0-63|2.5" has these numbers, from its dim `first` on. */
function hasNumbers(text, first, numbers) {
  return text.split("|").some((alternative) => {
    const sets = alternative.split(".");
    return numbers.every((n, i) => sets[first + i] !== undefined && inSpans(n, sets[first + i]));
  });
}

const inSpans = (n, spans) =>
  spans.split(",").some((span) => {
    const [a, b = a] = span.split("-").map(Number);
    return a <= n && n <= b;
  });

/** Whether a word of the query is in one of the names; "layers.7.w" also where the pattern says "layers.#.w". */
function matches(names, word) {
  const pattern = names.pattern.toLowerCase();
  if (pattern.includes(word)) return true;
  if (!names.numbers) return false;
  const numbers = [];
  const folded = word.replace(/(^|\.)(\d+)(?=\.|$)/g, (_, dot, n) => {
    numbers.push(Number(n));
    return `${dot}#`;
  });
  if (!numbers.length) return false;
  for (let at = pattern.indexOf(folded); at >= 0; at = pattern.indexOf(folded, at + 1)) {
    const first = pattern.slice(0, at).split("#").length - 1;
    if (hasNumbers(names.numbers, first, numbers)) return true;
  }
  return false;
}

const found = (names) =>
  state.query
    .toLowerCase()
    .split(/\s+/)
    .filter(Boolean)
    .every((word) => matches(names, word));

/** "layers.#.w" and "0-7,9" → "layers.{0-7,9}.w" */
function shownName(names) {
  if (!names.numbers) return names.pattern;
  return names.numbers
    .split("|")
    .map((alternative) => {
      const sets = alternative.split(".");
      let i = 0;
      return names.pattern.replace(/#/g, () => {
        const set = sets[i++];
        return /^\d+$/.test(set) ? set : `{${set}}`;
      });
    })
    .join("  ");
}
