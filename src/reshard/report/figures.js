"use strict";

// Figures as SVG, and the small arithmetic that they need. Nothing here knows the page.

const COLOURS = ["#56b4e9", "#e69f00", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#999999"];
const DARK = new Set(["#0072b2"]);
const CIVIDIS = [
  [0, 32, 77],
  [49, 68, 107],
  [102, 105, 112],
  [149, 143, 120],
  [203, 186, 105],
  [255, 234, 70],
];
const SVG_TAGS = new Set(["svg", "g", "rect", "text", "line", "path", "title", "defs", "linearGradient", "stop"]);
const MAX_PARTS = 4096;
const MAX_PANELS = 8;

function make(tag, attributes = {}, ...children) {
  const svg = SVG_TAGS.has(tag);
  const made = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== ""));
  return made;
}

/** A drawing of so many pixels; its viewBox lets a printed page make it smaller. */
const canvas = (width, height, attributes) =>
  make("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", ...attributes });

function shownBytes(n) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
  let at = 0;
  while (n >= 1024 && at < units.length - 1) {
    n /= 1024;
    at += 1;
  }
  return `${at ? n.toFixed(n < 10 ? 2 : 1) : Math.round(n)} ${units[at]}`;
}

const shownCount = (n) => n.toLocaleString("en-US");
const shownSeconds = (s) =>
  s < 60 ? `${s.toFixed(s < 10 ? 2 : 1)} s` : `${Math.floor(s / 60)} min ${Math.round(s % 60)} s`;
const product = (numbers) => numbers.reduce((a, b) => a * b, 1);

/** "0-2,5" → [0, 1, 2, 5] */
function expand(spans) {
  const out = [];
  for (const span of spans ? spans.split(",") : []) {
    const [first, last = first] = span.split("-").map(Number);
    for (let n = first; n <= last; n += 1) out.push(n);
  }
  return out;
}

/** [0, 1, 2, 5] → "0-2,5" */
function spansOf(numbers) {
  const runs = [];
  for (const n of numbers) {
    const last = runs[runs.length - 1];
    if (last && n === last[1] + 1) last[1] = n;
    else runs.push([n, n]);
  }
  return runs.map(([a, b]) => (a === b ? `${a}` : `${a}-${b}`)).join(",");
}

/** The place of a part, by its row-major number. */
function placeOf(number, parts) {
  const place = [];
  for (let d = parts.length - 1; d >= 0; d -= 1) {
    place[d] = number % parts[d];
    number = Math.floor(number / parts[d]);
  }
  return place;
}

function boxOf(number, shape, parts) {
  const place = placeOf(number, parts);
  const step = shape.map((n, d) => n / parts[d]);
  return { start: place.map((p, d) => p * step[d]), stop: place.map((p, d) => (p + 1) * step[d]) };
}

/** The dims shown downwards and across, -1 for none. Dims that are cut go first. */
function planeOf(parts) {
  if (parts.length < 2) return [-1, parts.length - 1];
  const cut = parts.map((n, d) => (n > 1 ? d : -1)).filter((d) => d >= 0);
  const last = parts.length - 1;
  if (cut.length >= 2) return [cut[0], cut[1]];
  if (!cut.length) return [0, last];
  return cut[0] === last ? [0, last] : [cut[0], last];
}

/**
 * How a tensor is cut: one panel for each place in the dims that a plane cannot show.
 * cut: {shape, parts, optParts, holders: for each part its ranks}. Gives the element and mark(box), which frames a box.
 */
function picture(cut, words, { rank, onpick, tip }) {
  const { shape, parts } = cut;
  const [down, across] = planeOf(parts);
  const rows = down < 0 ? 1 : parts[down];
  const columns = across < 0 ? 1 : parts[across];
  const others = parts.map((n, d) => d).filter((d) => d !== down && d !== across && parts[d] > 1);
  const count = product(parts);
  const out = make("div", { class: "pictures" });
  if (count > MAX_PARTS) {
    out.append(make("p", {}, `${shownCount(count)} ${words.part}: ${words.tooMany}`));
    return { element: out, mark() {} };
  }
  const width = 250;
  const ratio = down < 0 ? 0 : shape[down] / Math.max(shape[across], 1);
  const height = down < 0 ? 40 : Math.round(Math.min(Math.max(width * ratio, 110, Math.min(rows * 16, 260)), 260));
  const panels = new Map();
  for (let number = 0; number < count; number += 1) {
    const place = placeOf(number, parts);
    const key = others.map((d) => place[d]).join(",");
    if (!panels.has(key)) panels.set(key, []);
    panels.get(key).push({ number, row: down < 0 ? 0 : place[down], column: across < 0 ? 0 : place[across] });
  }
  const frames = [];
  for (const [key, cells] of [...panels].slice(0, MAX_PANELS)) {
    const svg = make("svg", {
      viewBox: `-1 -1 ${width + 2} ${height + 2}`,
      width: width + 2,
      height: height + 2,
      role: "img",
      class: "picture",
    });
    const at = key ? key.split(",").map(Number) : [];
    const title = others.map((d, i) => `dim ${d}: ${at[i] + 1} / ${parts[d]}`).join(", ");
    for (const cell of cells)
      svg.append(cellOf(cell, cut, { width: width / columns, height: height / rows, words, rank, onpick, tip }));
    const thin = down === 0 ? height / rows : width / columns;
    if (cut.optParts > 1 && thin > 5 && (down === 0 || across === 0))
      svg.append(...dashes(cut.optParts, down === 0 ? rows : columns, width, height, down === 0));
    const frame = make("rect", { class: "frame", visibility: "hidden" });
    svg.append(frame);
    frames.push({ frame, at, svg });
    out.append(make("figure", {}, svg, title ? make("figcaption", {}, title) : ""));
  }
  if (panels.size > MAX_PANELS) out.append(make("p", {}, `+ ${panels.size - MAX_PANELS}`));
  const mark = (box) => {
    for (const { frame, at } of frames) {
      const here =
        box &&
        others.every(
          (d, i) => box.start[d] < ((at[i] + 1) * shape[d]) / parts[d] && box.stop[d] > (at[i] * shape[d]) / parts[d],
        );
      frame.setAttribute("visibility", here ? "visible" : "hidden");
      if (!here) continue;
      const span = (d, room) =>
        d < 0 ? [0, room] : [(box.start[d] / shape[d]) * room, ((box.stop[d] - box.start[d]) / shape[d]) * room];
      const [x, w] = span(across, width);
      const [y, h] = span(down, height);
      for (const [name, value] of Object.entries({ x, y, width: w, height: h }))
        frame.setAttribute(name, value.toFixed(1));
    }
  };
  return { element: out, mark };
}

function cellOf(cell, cut, { width, height, words, rank, onpick, tip }) {
  const ranks = cut.holders[cell.number];
  const label = ranks.length ? spansOf(ranks) : words.missing;
  const said = ranks.length ? `${words.rank} ${label}` : words.missing;
  const chosen = rank !== null && ranks.includes(rank);
  const group = make("g", {
    class: `part${ranks.length ? "" : " gone"}${chosen ? " chosen" : rank === null ? "" : " dim"}`,
    onclick: () => onpick(cell.number),
    onmousemove: (event) =>
      tip(event, [`${words.part} ${cell.number}: ${said}`, shownBox(boxOf(cell.number, cut.shape, cut.parts))]),
    onmouseleave: () => tip(null),
  });
  const x = cell.column * width;
  const y = cell.row * height;
  const fill = ranks.length ? COLOURS[ranks[0] % COLOURS.length] : "none";
  group.append(
    make("rect", {
      x: x.toFixed(2),
      y: y.toFixed(2),
      width: width.toFixed(2),
      height: height.toFixed(2),
      fill,
    }),
  );
  const size = Math.min(12, height - 2);
  const room = Math.floor((width - 4) / (size * 0.6));
  const shown = label.length <= room ? label : ranks.length && room >= 4 ? `${label.slice(0, room - 1)}…` : "";
  if (shown && size >= 7) {
    group.append(
      make(
        "text",
        {
          x: (x + width / 2).toFixed(1),
          y: (y + height / 2 + size * 0.36).toFixed(1),
          "font-size": size,
          class: DARK.has(fill) ? "on-dark" : null,
        },
        shown,
      ),
    );
  }
  return group;
}

function dashes(optParts, count, width, height, lying) {
  const lines = [];
  for (let i = 1; i < count; i += 1) {
    if (i % optParts === 0) continue;
    const at = (i * (lying ? height : width)) / count;
    lines.push(
      make(
        "line",
        lying
          ? { x1: 0, x2: width, y1: at, y2: at, class: "opt" }
          : { x1: at, x2: at, y1: 0, y2: height, class: "opt" },
      ),
    );
  }
  return lines;
}

const shownBox = (box) => (box.start.length ? `[${box.start.map((a, d) => `${a}:${box.stop[d]}`).join(", ")}]` : "[]");

/** A number from 0 to 1 as a colour that is as far from others for the colour-blind as for anyone. */
function heatColour(share) {
  const at = Math.min(Math.max(share, 0), 1) * (CIVIDIS.length - 1);
  const low = Math.min(Math.floor(at), CIVIDIS.length - 2);
  const mixed = CIVIDIS[low].map((c, i) => Math.round(c + (CIVIDIS[low + 1][i] - c) * (at - low)));
  return `rgb(${mixed.join(",")})`;
}

/** Bytes by source rank (rows) and target rank (columns). Arrow keys walk through the squares. */
function heatMap(movement, words, tip) {
  const values = movement.nbytes;
  const rows = values.length;
  const columns = values[0].length;
  const side = Math.max(Math.min(Math.floor(640 / Math.max(rows, columns)), 44), 4);
  const wide = Math.max(side, Math.min(Math.floor(640 / columns), 72));
  const left = 84;
  const top = 34;
  const most = Math.max(...values.map((row) => Math.max(...row)), 1);
  const ranksOf = (i, step, count) => (step === 1 ? `${i}` : `${i * step}-${Math.min((i + 1) * step, count) - 1}`);
  const said = (r, c) => [
    `${words.fromSource} ${ranksOf(r, movement.source_step, movement.source_ranks)} → ${words.toTarget} ${ranksOf(c, movement.target_step, movement.target_ranks)}`,
    shownBytes(values[r][c]),
  ];
  const svg = canvas(left + columns * wide + 2, top + rows * side + 2, {
    class: "heat",
    tabindex: 0,
    "aria-label": words.movement,
  });
  const labels = (n, size, least, text, place) => {
    for (let i = 0; i < n; i += Math.max(Math.ceil(least / size), 1)) svg.append(make("text", place(i), text(i)));
  };
  labels(
    columns,
    wide,
    26,
    (i) => ranksOf(i, movement.target_step, movement.target_ranks).split("-")[0],
    (i) => ({ x: left + (i + 0.5) * wide, y: top - 6, "text-anchor": "middle" }),
  );
  labels(
    rows,
    side,
    14,
    (i) => ranksOf(i, movement.source_step, movement.source_ranks).split("-")[0],
    (i) => ({ x: left - 6, y: top + (i + 0.5) * side + 4, "text-anchor": "end" }),
  );
  svg.append(
    make("text", { x: left, y: 12 }, `${words.toTarget} →`),
    make("text", { x: 0, y: 12 }, `${words.fromSource} ↓`),
  );
  svg.append(make("rect", { x: left, y: top, width: columns * wide, height: rows * side, class: "ground" }));
  values.forEach((row, r) =>
    row.forEach((n, c) => {
      if (!n) return;
      const x = left + c * wide;
      const y = top + r * side;
      svg.append(
        make("rect", { x, y, width: wide, height: side, fill: heatColour(n / most), class: side > 8 ? "square" : "" }),
      );
      if (side >= 22 && wide >= 60) {
        svg.append(
          make(
            "text",
            {
              x: x + wide / 2,
              y: y + side / 2 + 4,
              "text-anchor": "middle",
              class: n / most > 0.55 ? "on-light" : "on-dark",
            },
            shownBytes(n),
          ),
        );
      }
    }),
  );
  const cursor = make("rect", { class: "cursor", width: wide, height: side, visibility: "hidden" });
  const status = make("p", { class: "status", "aria-live": "polite" }, " ");
  svg.append(cursor);
  let at = [0, 0];
  const go = (r, c, event) => {
    at = [Math.min(Math.max(r, 0), rows - 1), Math.min(Math.max(c, 0), columns - 1)];
    cursor.setAttribute("x", left + at[1] * wide);
    cursor.setAttribute("y", top + at[0] * side);
    cursor.setAttribute("visibility", "visible");
    status.textContent = said(...at).join(": ");
    if (event) tip(event, said(...at));
  };
  svg.addEventListener("mousemove", (event) => {
    const seen = svg.getBoundingClientRect();
    const r = Math.floor((event.clientY - seen.top - top) / side);
    const c = Math.floor((event.clientX - seen.left - left) / wide);
    if (r >= 0 && c >= 0 && r < rows && c < columns) go(r, c, event);
    else tip(null);
  });
  svg.addEventListener("mouseleave", () => tip(null));
  svg.addEventListener("keydown", (event) => {
    const step = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] }[event.key];
    if (!step) return;
    event.preventDefault();
    go(at[0] + step[0], at[1] + step[1]);
  });
  return make("div", {}, make("div", { class: "wide" }, svg), legend(most), status);
}

function legend(most) {
  const stops = CIVIDIS.map((c, i) =>
    make("stop", { offset: i / (CIVIDIS.length - 1), "stop-color": `rgb(${c.join(",")})` }),
  );
  return make(
    "div",
    { class: "legend" },
    "0 ",
    make(
      "svg",
      { width: 160, height: 12 },
      make("defs", {}, make("linearGradient", { id: "scale" }, stops)),
      make("rect", { width: 160, height: 12, fill: "url(#scale)" }),
    ),
    ` ${shownBytes(most)}`,
  );
}

/** A bar for each file; its outline is the file's size where more than what moved. */
function bars(files, words, tip) {
  const most = Math.max(...files.map((f) => Math.max(f.nbytes, f.moved)), 1);
  const height = 120;
  const wide = Math.min(Math.max(1100 / files.length, 0.5), 34);
  const svg = canvas(files.length * wide + 2, height + 18, { class: "bars" });
  const every = Math.max(Math.ceil(26 / wide), 1);
  files.forEach((file, i) => {
    const tall = (n) => (n / most) * height;
    const gap = wide > 6 ? 2 : 0;
    svg.append(
      make(
        "g",
        {
          onmousemove: (event) =>
            tip(event, [
              `${words.rank} ${file.rank}: ${file.path}`,
              `${shownBytes(file.moved)} / ${shownBytes(file.nbytes)}`,
            ]),
          onmouseleave: () => tip(null),
        },
        make("rect", { x: i * wide, y: 0, width: wide, height, fill: "transparent" }),
        make("rect", {
          x: i * wide + gap,
          y: height - tall(file.nbytes),
          width: wide - gap,
          height: Math.max(tall(file.nbytes), 1),
          class: "size",
        }),
        make("rect", {
          x: i * wide + gap,
          y: height - tall(file.moved),
          width: wide - gap,
          height: tall(file.moved),
          class: "moved",
        }),
      ),
    );
    if (i % every === 0)
      svg.append(make("text", { x: i * wide + wide / 2, y: height + 14, "text-anchor": "middle" }, file.rank));
  });
  return make("div", { class: "wide" }, svg);
}

/** A row for each worker, a slice of time dark by the bytes done in it; above them the sum of all. */
function timeLine(phase, words, tip) {
  const slices = Math.max(...phase.workers.map((w) => w.length), 1);
  const width = 680;
  const left = 90;
  const seconds = Math.max(phase.stop_s - phase.start_s, 1e-6);
  const lasts = (i) => Math.max(Math.min(phase.slice_s, seconds - i * phase.slice_s), phase.slice_s / 10);
  const sums = Array.from(
    { length: slices },
    (_, i) => phase.workers.reduce((sum, w) => sum + (w[i] || 0), 0) / lasts(i),
  );
  const rate = (n) => `${shownBytes(n)}/s`;
  const most = Math.max(...sums, 1);
  const busiest = Math.max(...phase.workers.flatMap((w) => w.map((n, i) => n / lasts(i))), 1);
  const top = 60;
  const svg = canvas(left + width + 2, top + 20 + phase.workers.length * 16 + 16, { class: "times" });
  const said = (i, n, who) => [`${(phase.start_s + i * phase.slice_s).toFixed(2)} s: ${who}`, rate(n)];
  const square = (i, n, attributes, who) =>
    make("rect", {
      x: left + (i * phase.slice_s * width) / seconds,
      width: (lasts(i) * width) / seconds,
      ...attributes,
      onmousemove: (event) => tip(event, said(i, n, who)),
      onmouseleave: () => tip(null),
    });
  sums.forEach((n, i) =>
    svg.append(
      square(i, n, { y: top - (n / most) * (top - 14), height: (n / most) * (top - 14), class: "moved" }, words.total),
    ),
  );
  svg.append(
    make("text", { x: left - 6, y: 18, "text-anchor": "end" }, rate(most)),
    make("line", { x1: left, x2: left + width, y1: top, y2: top, class: "axis" }),
  );
  phase.workers.forEach((worker, w) => {
    const y = top + 8 + w * 16;
    svg.append(make("text", { x: left - 6, y: y + 11, "text-anchor": "end" }, `${words.worker} ${w}`));
    worker.forEach((bytes, i) => {
      const n = bytes / lasts(i);
      if (n)
        svg.append(
          square(
            i,
            n,
            { y, height: 14, class: "busy", "fill-opacity": (0.2 + (0.8 * n) / busiest).toFixed(2) },
            `${words.worker} ${w}`,
          ),
        );
    });
  });
  const foot = top + 24 + phase.workers.length * 16;
  svg.append(
    make("text", { x: left, y: foot }, "0 s"),
    make("text", { x: left + width, y: foot, "text-anchor": "end" }, shownSeconds(seconds)),
  );
  return make("div", { class: "wide" }, svg);
}
