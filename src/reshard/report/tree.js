"use strict";

// The tree of tensors: rows in sight only, search, keys.

function newNode(key, label, depth) {
  return { key, label, depth, children: new Map(), leaves: [], count: 0, bytes: 0, spans: new Set() };
}

const TREE = (() => {
  const root = newNode("", "", -1);
  for (const kind of REPORT.kinds) {
    for (const names of kind.names) {
      let node = root;
      let hashes = 0;
      for (const label of names.pattern.split(".")) {
        if (!node.children.has(label)) node.children.set(label, newNode(`${node.key}.${label}`, label, node.depth + 1));
        node = node.children.get(label);
        if (label === "#" && names.numbers) {
          for (const alternative of names.numbers.split("|")) node.spans.add(alternative.split(".")[hashes]);
          hashes += 1;
        }
      }
      node.leaves.push({ kind, names });
    }
  }
  return sum(joinChains(root));
})();

/** A node with one child and no tensor of its own is shown with it in one row. */
function joinChains(node) {
  const children = [...node.children.values()].map((child) => {
    while (
      child.children.size === 1 &&
      !child.leaves.length &&
      child.label !== "#" &&
      [...child.children.keys()][0] !== "#"
    ) {
      const [only] = child.children.values();
      child = { ...only, label: `${child.label}.${only.label}` };
    }
    return joinChains(child);
  });
  return { ...node, children };
}

function sum(node, depth = -1) {
  node.depth = depth;
  node.children.forEach((child) => sum(child, depth + 1));
  for (const part of [
    ...node.children,
    ...node.leaves.map(({ kind, names }) => ({ count: names.count, bytes: kind.nbytes * names.count })),
  ]) {
    node.count += part.count;
    node.bytes += part.bytes;
  }
  const numbers = [...new Set([...node.spans].flatMap(expand))].sort((a, b) => a - b);
  node.shown =
    node.label === "#" && numbers.length ? `${spansOf(numbers)}  (× ${shownCount(numbers.length)})` : node.label;
  return node;
}

/** The rows that are to be seen: what is open, or with a query what matches. */
function visibleRows() {
  const rows = [];
  const visit = (node) => {
    for (const child of node.children) {
      if (state.query) {
        const before = rows.length;
        rows.push(child);
        visit(child);
        if (rows.length === before + 1 && !child.leaves.some(({ names }) => found(names))) rows.pop();
      } else {
        rows.push(child);
        if (state.open.has(child.key)) visit(child);
      }
    }
  };
  visit(TREE);
  return rows;
}

const shownCut = (placement) => (product(placement.parts) === 1 ? words.whole : placement.parts.join("×"));

function cutOf(kind) {
  const before = shownCut(REPORT.source.placements[kind.source]);
  if (!CONVERSION) return before;
  const after = [...new Set(kind.targets.map((t) => shownCut(CONVERSION.target.placements[t])))].join(", ");
  return `${before} → ${after}`;
}

function rowOf(node, index) {
  const kinds = node.leaves.map((leaf) => leaf.kind);
  const folds = node.children.length > 0;
  const opened = state.query ? true : state.open.has(node.key);
  const said = (values) => {
    const all = [...new Set(values)];
    return all.length > 2 ? `${all[0]} …` : all.join(", ");
  };
  return make(
    "div",
    {
      class: `row${state.at === node.key ? " at" : ""}`,
      role: "treeitem",
      "aria-level": node.depth + 1,
      id: `row-${index}`,
      "aria-expanded": folds ? `${opened}` : null,
      "aria-selected": `${state.at === node.key}`,
      style: `top:${index * ROW_HEIGHT}px`,
      onclick: () => {
        choose(node);
        if (folds && !state.query) toggle(node);
        byId("tree").focus({ preventScroll: true });
      },
    },
    make(
      "span",
      { class: "label", style: `padding-left:${node.depth * 14}px`, title: node.shown },
      make("i", {}, folds ? (opened ? "▾" : "▸") : "·"),
      node.shown,
    ),
    make("span", {}, said(kinds.map((k) => (k.shape.length ? k.shape.join("×") : words.scalar)))),
    make("span", {}, said(kinds.map((k) => k.dtype))),
    make("span", {}, said(kinds.map(cutOf))),
    make("span", { class: "number" }, shownCount(node.count)),
    make("span", { class: "number" }, shownBytes(node.bytes)),
  );
}

let rows = [];

function drawRows(all = false) {
  const tree = byId("tree");
  const inner = tree.firstChild;
  inner.style.height = `${rows.length * ROW_HEIGHT}px`;
  tree.style.height = `${Math.min(Math.max(rows.length, 8) * ROW_HEIGHT, 600)}px`;
  const first = all ? 0 : Math.max(Math.floor(tree.scrollTop / ROW_HEIGHT) - 5, 0);
  const last = all
    ? Math.min(rows.length, 3000)
    : Math.min(first + Math.ceil(tree.clientHeight / ROW_HEIGHT) + 10, rows.length);
  inner.replaceChildren(...rows.slice(first, last).map((node, i) => rowOf(node, first + i)));
  const at = rows.findIndex((node) => node.key === state.at);
  tree.setAttribute("aria-activedescendant", at >= first && at < last ? `row-${at}` : "");
}

function drawTree() {
  rows = visibleRows();
  drawRows();
  const leaves = rows.filter((node) => node.leaves.some(({ names }) => found(names)));
  const tensors = leaves.reduce(
    (n, node) => n + node.leaves.filter(({ names }) => found(names)).reduce((m, { names }) => m + names.count, 0),
    0,
  );
  const lost =
    CONVERSION && state.query
      ? CONVERSION.fates.flatMap((f) => f.names.filter(found).map((names) => `${shownName(names)} (${words[f.fate]})`))
      : [];
  byId("matches").replaceChildren(
    state.query ? `${shownCount(tensors)} ${words.found}` : "",
    lost.length
      ? make("div", {}, `${words.leftOut}: ${lost.slice(0, 5).join("; ")}${lost.length > 5 ? " …" : ""}`)
      : "",
    REPORT.unlisted.tensors ? make("div", {}, `${shownCount(REPORT.unlisted.tensors)} ${words.unlisted}`) : "",
  );
}

function toggle(node) {
  if (!state.open.delete(node.key)) state.open.add(node.key);
  drawTree();
}

/** Open what leads to a node, so that it is seen without a query. */
function reveal(key, node = TREE) {
  for (const child of node.children) {
    if (key === child.key || key.startsWith(`${child.key}.`)) {
      if (child.children.length && key !== child.key) state.open.add(child.key);
      reveal(key, child);
    }
  }
}

function choose(node) {
  state.at = node.key;
  if (node.leaves.length) {
    const fits = node.leaves.findIndex(({ names }) => found(names));
    state.kind = { leaves: node.leaves, at: Math.max(fits, 0) };
    state.box = null;
    drawTensor();
  }
  drawRows();
}

function treeKeys(event) {
  const at = rows.findIndex((node) => node.key === state.at);
  const node = rows[at];
  const go = (i) => {
    if (!rows[i]) return;
    choose(rows[i]);
    const tree = byId("tree");
    if (i * ROW_HEIGHT < tree.scrollTop) tree.scrollTop = i * ROW_HEIGHT;
    if ((i + 1) * ROW_HEIGHT > tree.scrollTop + tree.clientHeight)
      tree.scrollTop = (i + 1) * ROW_HEIGHT - tree.clientHeight;
    drawRows();
  };
  const opened = node && (state.query !== "" || state.open.has(node.key));
  if (event.key === "ArrowDown") go(at + 1);
  else if (event.key === "ArrowUp") go(Math.max(at - 1, 0));
  else if (event.key === "Home") go(0);
  else if (event.key === "End") go(rows.length - 1);
  else if (event.key === "ArrowRight" && node && node.children.length) {
    if (opened) go(at + 1);
    else toggle(node);
  } else if (event.key === "ArrowLeft" && node && !state.query) {
    if (state.open.has(node.key)) toggle(node);
    else {
      for (let i = at - 1; i >= 0; i -= 1)
        if (rows[i].depth < node.depth) {
          go(i);
          break;
        }
    }
  } else if (event.key === "Enter" && node) {
    if (node.children.length && !state.query) toggle(node);
  } else return;
  event.preventDefault();
}
