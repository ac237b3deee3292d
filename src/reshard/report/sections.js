"use strict";

// The sections of the page.

/** A number as one reads it out: 0123-4567-… */
const grouped = (number) => number.match(/.{1,4}/g).join("-");

const tile = (value, label) => make("div", { class: "tile" }, make("b", {}, value), make("span", {}, label));

/** A tile of so many things; English says one file, two files. */
const counted = (n, things) => tile(shownCount(n), n === 1 ? things.replace(/s$/, "") : things);

/** What kind of checkpoint it is; the program speaks English. */
const familyOf = (told) =>
  state.language === "zh" ? FAMILIES_ZH.reduce((text, [said, zh]) => text.replace(said, zh), told) : told;

function summary() {
  const source = REPORT.source;
  const { unlisted } = REPORT;
  const named = (k) => k.names.reduce((m, x) => m + x.count, 0);
  const tensors = REPORT.kinds.reduce((n, k) => n + named(k), unlisted.tensors);
  const elements = REPORT.kinds.reduce((n, k) => n + product(k.shape) * named(k), unlisted.elements);
  const tiles = (side) => [
    tile(shownBytes(side.files.reduce((n, f) => n + f.nbytes, 0)), words.size),
    counted(side.files.length, words.files),
    counted(new Set(side.files.map((f) => f.rank)).size, words.ranks),
    side.stages > 1 ? counted(side.stages, words.stages) : "",
  ];
  const states = REPORT.kinds.filter((k) => k.state);
  const row = (title, path, found, family) =>
    make(
      "div",
      { class: "tiles" },
      make("div", { class: "which" }, make("b", {}, title), make("span", { class: "path" }, path), family ? make("span", { class: "family" }, familyOf(family)) : ""),
      found,
    );
  const out = [
    row(CONVERSION ? words.source : words.checkpoint, source.path, [
      ...tiles(source),
      counted(tensors, words.count.toLowerCase()),
      tile(shownCount(elements), words.elements),
      states.length ? tile(shownBytes(states.reduce((n, k) => n + k.nbytes * named(k), 0)), words.states) : "",
    ], source.family),
  ];
  if (CONVERSION) {
    const { bill, target } = CONVERSION;
    out.push(
      row(words.target, target.path, [
        ...tiles(target),
        tile(shownBytes(bill.largest_file_nbytes), words.largest),
        tile(shownBytes(bill.smallest_file_nbytes), words.smallest),
      ], TARGETS[state.language][target.family]),
    );
    out.push(
      row(words.plan, "", [
        tile(shownBytes(bill.read_nbytes), words.read),
        tile((bill.needed_nbytes ? bill.read_nbytes / bill.needed_nbytes : 1).toFixed(2), words.needed),
        tile(shownBytes(bill.written_nbytes), words.written),
        tile(shownBytes(bill.memory_nbytes), words.memory),
        counted(bill.workers, words.workers),
        counted(bill.tasks, words.groups),
        bill.shared_nbytes ? tile(shownBytes(bill.shared_nbytes), words.shared) : "",
        bill.linked_files ? tile(shownCount(bill.linked_files), words.linked) : "",
      ]),
    );
  }
  const texts = Object.entries(REPORT.texts);
  if (REPORT.warnings.length)
    out.push(
      make(
        "div",
        { class: "warnings" },
        make("h3", {}, words.warnings),
        make(
          "ul",
          {},
          REPORT.warnings.map((w) => make("li", {}, w)),
        ),
      ),
    );
  if (texts.length)
    out.push(
      make(
        "details",
        {},
        make("summary", {}, `${words.strings} (${texts.length})`),
        make(
          "table",
          {},
          texts.map(([k, v]) => make("tr", {}, make("td", {}, k), make("td", { class: "path" }, v))),
        ),
      ),
    );
  return out;
}

function tensors() {
  const heads = [words.name, words.shape, words.dtype, words.cut, words.count, words.bytes];
  return [
    make("div", { id: "matches", "aria-live": "polite" }),
    make(
      "div",
      { class: "split" },
      make(
        "div",
        { class: "trees" },
        make(
          "div",
          { class: "row head" },
          heads.map((w, i) => make("span", { class: i > 3 ? "number" : "" }, w)),
        ),
        make(
          "div",
          {
            id: "tree",
            role: "tree",
            tabindex: 0,
            "aria-label": words.tensors,
            onkeydown: treeKeys,
            onscroll: () => drawRows(),
          },
          make("div"),
        ),
      ),
      make("div", { id: "tensor" }),
    ),
  ];
}

function balance() {
  const block = (title, files, value) => {
    const values = files.map(value);
    const mean = values.reduce((a, b) => a + b, 0) / values.length;
    const [least, most] = [values.reduce((a, b) => Math.min(a, b)), values.reduce((a, b) => Math.max(a, b))];
    const share = (n) => (mean ? `${((n / mean) * 100).toFixed(0)}% ${words.ofMean}` : "");
    return make(
      "div",
      {},
      make("h3", {}, title),
      bars(files, words, tip),
      make(
        "p",
        { class: "said" },
        `${words.mean} ${shownBytes(mean)} · ${words.most} ${shownBytes(most)}, ${share(most)} · ${words.least} ${shownBytes(least)}, ${share(least)} · ${words.total} ${shownBytes(mean * values.length)}`,
      ),
    );
  };
  if (!CONVERSION)
    return [
      block(
        words.bySourceSize,
        REPORT.source.files.map((f) => ({ ...f, moved: f.nbytes })),
        (f) => f.nbytes,
      ),
    ];
  return [
    block(words.bySource, REPORT.source.files, (f) => f.moved),
    block(words.byTarget, CONVERSION.target.files, (f) => f.moved),
  ];
}

function movement() {
  const { movement: moved } = CONVERSION;
  const out = [heatMap(moved, words, tip)];
  if (moved.source_step * moved.target_step > 1)
    out.push(make("p", { class: "said" }, `${words.each} ${moved.source_step} × ${moved.target_step} ${words.ranks}`));
  out.push(
    make("p", { class: "said" }, `${words.total} ${shownBytes(moved.nbytes.flat().reduce((a, b) => a + b, 0))}`),
  );
  return out;
}

function fates() {
  const sums = new Map();
  const add = (what, names, nbytes) => {
    const [count, bytes, all] = sums.get(what) || [0, 0, []];
    const n = names.reduce((m, x) => m + x.count, 0);
    sums.set(what, [count + n, bytes + n * nbytes, [...all, ...names]]);
  };
  for (const kind of REPORT.kinds) {
    add(words.kept, kind.names, kind.nbytes);
    if (kind.source_dtype !== kind.dtype)
      add(`${words.cast}: ${kind.source_dtype} → ${kind.dtype}`, kind.names, kind.nbytes);
    if (kind.merged) add(words.merged, kind.names, kind.nbytes);
    if (kind.varied) add(words.varied, kind.names, kind.nbytes);
    const replicated = kind.targets.some((t) => {
      const p = CONVERSION.target.placements[t];
      return p.cells.length > new Set(p.cells).size;
    });
    if (replicated) add(words.replicated, kind.names, kind.nbytes);
  }
  const lines = [...sums].map(([what, [count, bytes, names]]) => [what, count, shownBytes(bytes), names]);
  for (const fate of CONVERSION.fates) {
    const reason = state.language === "zh" ? reasonInChinese(fate.reason) : fate.reason;
    lines.push([`${words[fate.fate]}: ${reason}`, fate.count, "", fate.names]);
  }
  return [
    make(
      "table",
      { class: "fates" },
      make(
        "thead",
        {},
        make(
          "tr",
          {},
          ["", words.count, words.bytes, words.name].map((w) => make("th", {}, w)),
        ),
      ),
      make(
        "tbody",
        {},
        lines.map(([what, count, bytes, names]) =>
          make(
            "tr",
            {},
            make("td", {}, what),
            make("td", { class: "number" }, shownCount(count)),
            make("td", { class: "number" }, bytes),
            make("td", {}, nameList(names)),
          ),
        ),
      ),
    ),
  ];
}

function nameList(names) {
  const list = make("ul");
  return make(
    "details",
    {
      ontoggle: () => {
        if (!list.childElementCount)
          list.append(
            ...names.slice(0, 500).map((n) => make("li", {}, shownName(n))),
            names.length > 500 ? make("li", {}, "…") : "",
          );
      },
    },
    make("summary", {}, names.length ? shownName(names[0]) + (names.length > 1 ? " …" : "") : ""),
    list,
  );
}

function run() {
  if (!RUN) return [make("p", {}, words.notRun)];
  const tiles = [
    tile(shownSeconds(RUN.seconds), words.time),
    tile(shownBytes(RUN.read_nbytes), words.read),
    tile(shownBytes(RUN.written_nbytes), words.written),
    tile(`${shownBytes(RUN.seconds ? RUN.written_nbytes / RUN.seconds : 0)}/s`, words.rate),
    RUN.shared_nbytes ? tile(shownBytes(RUN.shared_nbytes), words.shared) : "",
    RUN.skipped_files ? tile(RUN.skipped_files, words.skipped) : "",
  ];
  return [
    make("div", { class: "tiles" }, tiles),
    ...RUN.phases.map((phase) =>
      make(
        "div",
        {},
        make("h3", {}, words[phase.what] || phase.what),
        timeLine(phase, words, tip),
        make("p", { class: "said" }, `${words.idle} ${phase.slice_s} s`),
      ),
    ),
  ];
}

function proof() {
  const facts = [];
  if (RUN)
    facts.push(
      RUN.verified_nbytes ? `${shownBytes(RUN.verified_nbytes)} ${words.verified}` : words.notVerified,
      RUN.checksum ? words.hashed : words.notHashed,
    );
  const out = [
    make(
      "ul",
      {},
      facts.map((f) => make("li", {}, f)),
    ),
  ];
  for (const print of REPORT.prints) {
    out.push(
      make("p", {}, `${words.fingerprint}: `, make("code", {}, grouped(print.number))),
      make("p", {}, `${words.weights}: `, make("code", {}, grouped(print.weights))),
    );
  }
  if (!REPORT.prints.length) out.push(make("p", { class: "faint" }, words.noPrint));
  if (CONVERSION) {
    out.push(
      make("p", {}, `${words.identity}: `, make("code", {}, CONVERSION.identity)),
      make(
        "details",
        {},
        make("summary", {}, words.madeOf),
        make(
          "table",
          {},
          Object.entries(CONVERSION.made_of)
            .filter(([, v]) => v)
            .map(([k, v]) => make("tr", {}, make("td", {}, k), make("td", { class: "path" }, v))),
        ),
      ),
    );
  }
  return out;
}

const SECTIONS = {
  summary,
  tensors,
  ...(CONVERSION ? { movement } : {}),
  balance,
  ...(CONVERSION ? { fates, run } : {}),
  proof,
};
