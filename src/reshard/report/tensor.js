"use strict";

// One tensor: how it is cut on the source and on the target.

/** The files that hold each part, and their ranks. */
function holdersOf(side, placement) {
  const files = Array.from({ length: product(placement.parts) }, () => []);
  expand(placement.files).forEach((file, i) => files[placement.cells[i]].push(file));
  return { files, ranks: files.map((held) => [...new Set(held.map((f) => side.files[f].rank))].sort((a, b) => a - b)) };
}

function drawTensor() {
  const panel = byId("tensor");
  if (!state.kind) {
    panel.replaceChildren(make("p", { class: "faint" }, words.pick));
    return;
  }
  const { leaves, at } = state.kind;
  const { kind, names } = leaves[at];
  const marks = [];
  const pick = (box) => {
    state.box = box;
    marks.forEach((mark) => mark(box));
  };
  const chooser =
    leaves.length > 1
      ? make(
          "select",
          {
            id: "alike",
            "aria-label": words.name,
            onchange: (event) => {
              state.kind.at = Number(event.target.value);
              state.box = null;
              drawTensor();
            },
          },
          leaves.map((leaf, i) =>
            make(
              "option",
              { value: i, selected: i === at },
              `${shownName(leaf.names)}  ${leaf.kind.dtype}[${leaf.kind.shape.join(", ")}]`,
            ),
          ),
        )
      : "";
  const facts = [
    `${kind.dtype}[${kind.shape.join(", ")}]`,
    shownBytes(kind.nbytes),
    names.count > 1 ? `× ${shownCount(names.count)}` : "",
  ];
  const fates = [
    kind.source_dtype !== kind.dtype ? `${words.cast}: ${kind.source_dtype} → ${kind.dtype}` : "",
    kind.state ? words.state : "",
    kind.merged ? words.merged : "",
    kind.varied ? words.varied : "",
    names.source ? `${words.was} ${names.source}` : "",
  ].filter(Boolean);
  panel.replaceChildren(
    make("h3", {}, shownName(names)),
    chooser,
    make("p", {}, facts.filter(Boolean).join(" · ")),
    fates.length
      ? make(
          "p",
          { class: "tags" },
          fates.map((f) => make("span", {}, f)),
        )
      : "",
    originsOf(kind),
    make(
      "div",
      { class: "sides" },
      sideOf("source", REPORT.source, [kind.source], kind, pick, marks),
      CONVERSION ? sideOf("target", CONVERSION.target, kind.targets, kind, pick, marks) : "",
    ),
  );
  marks.forEach((mark) => mark(state.box));
}

/** Whose rows a tensor has that is put together of others. */
function originsOf(kind) {
  if (!kind.origins.length) return "";
  const ranks = new Set(REPORT.source.files.map((file) => file.rank)).size > 1;
  const heads = [words.rows, words.ofTensor, words.itsRows, ...(ranks ? [words.rank] : [])];
  const row = (cells, kindOfCell) => make("tr", {}, cells.map((cell) => make(kindOfCell, {}, String(cell))));
  const rowOf = ([start, stop, name, first, rank]) =>
    row([`${start}–${stop - 1}`, name, `${first}–${first + stop - start - 1}`, ...(ranks ? [rank] : [])], "td");
  const body = make("tbody", {}, kind.origins.slice(0, 24).map(rowOf));
  const more = kind.origins.length > 24 ? showAll(kind.origins.length, () => body.replaceChildren(...kind.origins.map(rowOf))) : "";
  return make(
    "div",
    { id: "origins" },
    rowFinder(kind, ranks),
    make("table", {}, make("caption", {}, words.rowsOf), make("thead", {}, row(heads, "th")), body),
    more,
  );
}

const showAll = (count, show) =>
  make(
    "button",
    {
      type: "button",
      onclick: (event) => {
        show();
        event.target.remove();
      },
    },
    `${words.showAll} ${shownCount(count)}`,
  );

/** A field for the number of a row, which tells the stored row that it is. */
function rowFinder(kind, ranks) {
  const last = kind.origins[kind.origins.length - 1][1] - 1;
  const answer = make("output", { id: "row-is", for: "row" });
  const asked = make("input", {
    id: "row",
    type: "number",
    min: 0,
    max: last,
    placeholder: `0–${last}`,
    oninput: () => {
      const n = asked.value === "" ? -1 : Number(asked.value);
      const at = kind.origins.find(([start, stop]) => start <= n && n < stop);
      const whose = at ? `${words.rowIs} ${n - at[0] + at[3]} ${words.rowIn} ${at[2]}${ranks ? `, ${words.rank} ${at[4]}` : ""}` : "";
      answer.textContent = n < 0 ? "" : whose || `${words.noRow} (0–${last})`;
    },
  });
  return make("p", {}, make("label", { for: "row" }, words.rowAsked), " ", asked, " ", answer);
}

function sideOf(which, side, numbers, kind, pick, marks) {
  const chosen = state.ranks[which];
  const input = make("input", {
    type: "number",
    min: 0,
    value: chosen === null ? "" : chosen,
    "aria-label": `${words[which]}: ${words.highlight}`,
    onchange: (event) => {
      state.ranks[which] = event.target.value === "" ? null : Number(event.target.value);
      drawTensor();
    },
  });
  const out = make(
    "section",
    { class: "side" },
    make("h4", {}, CONVERSION ? words[which] : words.checkpoint, make("label", {}, words.highlight, " ", input)),
  );
  for (const number of numbers) {
    const placement = side.placements[number];
    const { files, ranks } = holdersOf(side, placement);
    const cut = { shape: kind.shape, parts: placement.parts, optParts: placement.opt_parts, holders: ranks };
    const drawn = picture(cut, words, {
      rank: chosen,
      tip,
      onpick: (n) => pick(boxOf(n, kind.shape, placement.parts)),
    });
    marks.push(drawn.mark);
    out.append(
      make("p", { class: "said" }, saidOf(side, placement, kind.shape, ranks)),
      drawn.element,
      partsTable(side, placement, kind.shape, files, pick),
    );
  }
  return out;
}

function saidOf(side, placement, shape, ranks) {
  const [down, across] = planeOf(placement.parts);
  const axis = (d, word) =>
    d < 0
      ? ""
      : `dim ${d} ${word}: ${shownCount(shape[d])}${placement.parts[d] > 1 ? ` = ${placement.parts[d]} ${words.inParts} ${shownCount(shape[d] / placement.parts[d])}` : ""}`;
  const all = [...new Set(ranks.flat())];
  const stages = [...new Set(all.map((r) => Math.floor(r / side.devices)))].sort((a, b) => a - b);
  const counts = ranks.filter((r) => r.length).map((r) => r.length);
  const [low, high] = [Math.min(...counts), Math.max(...counts)];
  return [
    side.stages > 1 ? `${words.stage} ${spansOf(stages)} ${words.of} ${side.stages}` : "",
    axis(down, words.downwards),
    axis(across, words.across),
    !counts.length
      ? ""
      : high === 1
        ? words.oneCopy
        : `${words.copies} ${low === high ? low : `${low}-${high}`} ${words.ranks}`,
    placement.opt_parts > 1 ? `${words.optimizer} ${placement.opt_parts} ${words.more}` : "",
    placement.missing.length
      ? `${side === REPORT.source ? words.missingParts : words.notMade}: ${placement.missing.length}`
      : "",
    placement.absent_ranks ? `${words.absentRanks}: ${placement.absent_ranks}` : "",
  ]
    .filter(Boolean)
    .join(" · ");
}

function partsTable(side, placement, shape, files, pick) {
  const count = files.length;
  const row = (n) =>
    make(
      "tr",
      { onclick: () => pick(boxOf(n, shape, placement.parts)) },
      make("td", { class: "number" }, n),
      make("td", {}, shownBox(boxOf(n, shape, placement.parts))),
      make(
        "td",
        {},
        spansOf([...new Set(files[n].map((f) => side.files[f].rank))].sort((a, b) => a - b)) || words.missing,
      ),
      make(
        "td",
        { class: "path" },
        files[n]
          .slice(0, 2)
          .map((f) => side.files[f].path)
          .join(", ") + (files[n].length > 2 ? " …" : ""),
      ),
    );
  const table = make(
    "table",
    {},
    make(
      "thead",
      {},
      make(
        "tr",
        {},
        [words.part, words.box, words.rank, words.file].map((w) => make("th", {}, w)),
      ),
    ),
  );
  const body = make(
    "tbody",
    {},
    Array.from({ length: Math.min(count, 64) }, (_, n) => row(n)),
  );
  table.append(body);
  const rest = () => {
    for (let n = 64; n < count; n += 1) body.append(row(n));
  };
  const more = count > 64 ? showAll(count, rest) : "";
  return make("details", {}, make("summary", {}, words.table), table, more);
}
