"use strict";

// All of it, and the keys of the whole page.

function draw() {
  words = WORDS[state.language];
  document.documentElement.lang = state.language === "zh" ? "zh-CN" : "en";
  const what = RUN ? words.conversion : CONVERSION ? words.plan : words.checkpoint;
  const last = (path) => path.replace(/\/+$/, "").split("/").pop();
  const target = CONVERSION && CONVERSION.target.path;
  const path = target ? `${last(REPORT.source.path)} → ${last(target)}` : last(REPORT.source.path);
  document.querySelector("h1").replaceChildren(make("span", {}, what), " ", path);
  byId("search").placeholder = words.search;
  byId("search").setAttribute("aria-label", words.search);
  byId("language").textContent = words.language;
  drawTheme();
  byId("sections").replaceChildren(
    ...Object.keys(SECTIONS).map((name) => make("a", { href: `#${name}` }, words[name])),
  );
  document
    .querySelector("main")
    .replaceChildren(
      ...Object.entries(SECTIONS).map(([name, fill]) =>
        make("section", { id: name }, make("h2", {}, words[name]), fill()),
      ),
    );
  document.querySelector("footer").textContent = `${REPORT.made_by} · ${words.keys}`;
  drawTree();
  drawTensor();
}

function isDark() {
  const asked = document.documentElement.dataset.theme;
  return asked ? asked === "dark" : window.matchMedia("(prefers-color-scheme: dark)").matches;
}

function drawTheme() {
  byId("theme").textContent = isDark() ? words.light : words.dark;
}

function switchTheme() {
  document.documentElement.dataset.theme = isDark() ? "light" : "dark";
  drawTheme();
}

function switchLanguage() {
  state.language = state.language === "zh" ? "en" : "zh";
  draw();
}

byId("language").addEventListener("click", switchLanguage);
byId("theme").addEventListener("click", switchTheme);
byId("search").addEventListener("input", (event) => {
  state.query = event.target.value.trim();
  byId("tree").scrollTop = 0;
  drawTree();
});
byId("search").addEventListener("keydown", (event) => {
  const first = rows.find((node) => node.leaves.some(({ names }) => found(names)));
  if (event.key === "Enter" && first) {
    choose(first);
    reveal(first.key);
    byId("tree").focus();
  }
  if (event.key === "Escape") {
    event.target.value = "";
    state.query = "";
    drawTree();
    event.target.blur();
  }
});
document.addEventListener("keydown", (event) => {
  if (/^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.key === "/") {
    event.preventDefault();
    byId("search").focus();
    byId("tensors").scrollIntoView();
  }
  if (event.key.toLowerCase() === "l") switchLanguage();
  if (event.key.toLowerCase() === "t") switchTheme();
});
window.addEventListener("beforeprint", () => drawRows(true));
window.addEventListener("afterprint", () => drawRows());
window.addEventListener("resize", () => drawRows());

draw();
// what is first seen is a model folded to its layers, and one tensor of it: the largest
(function openFirst() {
  let largest = null;
  const visit = (node) => {
    if (node.leaves.length && (!largest || node.bytes > largest.bytes)) largest = node;
    node.children.forEach(visit);
  };
  visit(TREE);
  if (!largest) return;
  reveal(largest.key);
  drawTree();
  choose(largest);
})();
