"use strict";

// The values of the report, what the reader has chosen, and the tip at the pointer.

const REPORT = JSON.parse(document.getElementById("values").textContent);
const CONVERSION = REPORT.conversions[0] || null;
const RUN = REPORT.runs[0] || null;
const ROW_HEIGHT = 26;
const state = {
  language: navigator.language.startsWith("zh") ? "zh" : "en",
  query: "",
  open: new Set(),
  at: null,
  kind: null,
  ranks: { source: null, target: null },
  box: null,
};
let words = WORDS[state.language];
const byId = (id) => document.getElementById(id);

function tip(event, lines = []) {
  const box = byId("tip");
  box.hidden = !event;
  if (!event) return;
  box.replaceChildren(...lines.map((line) => make("div", {}, line)));
  const x = Math.min(event.clientX + 14, window.innerWidth - box.offsetWidth - 8);
  const y = Math.min(event.clientY + 14, window.innerHeight - box.offsetHeight - 8);
  box.style.transform = `translate(${Math.max(x, 4)}px, ${Math.max(y, 4)}px)`;
}
