/* The findings as columns: filtered, sorted and marked without a look at more than numbers. */
"use strict";

(() => {
  const { load, notice } = cxrReport;

  // What a filter may say, with what it is when it says nothing.
  const RANGES = { score: [0, 1], probability: [0, 1], size: [0, 100], iou: [0, 1] };
  const SORTS = ["archive", "probability", "score", "size", "iou"];
  const MARKS = ["none", "accept", "reject"];

  const nothing = () => ({
    classes: [], text: "", mark: "", best: false, sort: "archive", down: true, page: 0, ...RANGES,
  });

  // A filter from the address, and back: only what differs from nothing.
  function fromQuery(query) {
    const given = new URLSearchParams(query);
    const filter = nothing();
    const names = cxrReport.summary.classes;
    filter.classes = given.getAll("class").map((name) => names.indexOf(name)).filter((c) => c >= 0);
    filter.text = given.get("text") ?? "";
    filter.mark = MARKS.includes(given.get("mark")) ? given.get("mark") : "";
    filter.best = given.get("best") === "1";
    if (SORTS.includes(given.get("sort"))) filter.sort = given.get("sort");
    filter.down = given.get("up") !== "1";
    filter.page = Math.max(0, parseInt(given.get("page") ?? "1", 10) - 1 || 0);
    for (const [name, [low, high]] of Object.entries(RANGES)) {
      const [from, to] = (given.get(name) ?? "").split("..").map(parseFloat);
      filter[name] = [Number.isFinite(from) ? from : low, Number.isFinite(to) ? to : high];
    }
    return filter;
  }

  function toQuery(filter) {
    const query = new URLSearchParams();
    for (const c of filter.classes) query.append("class", cxrReport.summary.classes[c]);
    if (filter.text) query.set("text", filter.text);
    if (filter.mark) query.set("mark", filter.mark);
    if (filter.best) query.set("best", "1");
    if (filter.sort !== "archive") query.set("sort", filter.sort);
    if (!filter.down) query.set("up", "1");
    if (filter.page) query.set("page", String(filter.page + 1));
    for (const [name, [low, high]] of Object.entries(RANGES))
      if (filter[name][0] !== low || filter[name][1] !== high) query.set(name, filter[name].join(".."));
    return query.toString();
  }

  class Findings {
    constructor(columns, images) {
      Object.assign(this, columns);
      this.ids = images.id;
      this.width = images.width;
      this.height = images.height;
      this.preview = images.preview;
      this.note = images.note; // of those that have one
      this.length = this.image.length;
      this.size = new Float32Array(this.length); // percent of the image's area
      for (let i = 0; i < this.length; i++) {
        const area = (this.x2[i] - this.x1[i]) * (this.y2[i] - this.y1[i]);
        const whole = this.width[this.image[i]] * this.height[this.image[i]];
        this.size[i] = whole ? (100 * area) / whole : 0;
      }
      this.marked = new Uint8Array(this.length); // index into MARKS
    }

    name(i) {
      return cxrReport.summary.classes[this.class[i]];
    }

    // The findings that pass, in the filter's order: their numbers.
    select(filter) {
      const allowed = new Uint8Array(cxrReport.summary.classes.length).fill(filter.classes.length ? 0 : 1);
      for (const c of filter.classes) allowed[c] = 1;
      const named = this.#named(filter.text);
      const mark = MARKS.indexOf(filter.mark);
      // A bound that is where nothing is left out must not leave out what lies beyond by rounding.
      const bounds = Object.entries(RANGES)
        .map(([name, [low, high]]) => [this[name], filter[name], low, high])
        .filter(([, [from, to], low, high]) => from > low || to < high)
        .map(([values, [from, to], low, high]) => [values, from > low ? from : -Infinity, to < high ? to : Infinity]);
      const found = new Uint32Array(this.length);
      let n = 0;
      for (let i = 0; i < this.length; i++) {
        if (!allowed[this.class[i]] || (filter.best && this.rank[i] !== 1)) continue;
        if (named && !named[this.image[i]]) continue;
        if (mark >= 0 && this.marked[i] !== mark) continue;
        if (bounds.every(([values, from, to]) => values[i] >= from && values[i] <= to)) found[n++] = i;
      }
      return this.#sorted(found.slice(0, n), filter);
    }

    #named(text) {
      if (!text) return null;
      const wanted = text.toLowerCase();
      return Uint8Array.from(this.ids, (id) => (id.toLowerCase().includes(wanted) ? 1 : 0));
    }

    #sorted(found, { sort, down }) {
      if (sort === "archive") return down ? found : found.reverse();
      const key = this[sort];
      const sign = down ? -1 : 1;
      // What has no value comes last either way.
      const value = (i) => (Number.isNaN(key[i]) ? Infinity : sign * key[i]);
      return found.sort((a, b) => value(a) - value(b) || a - b);
    }
  }

  // Marks are a reader's work: kept by the run, the image, the class and the rank, not by place in this page.
  // Each has an entry of its own in the browser's storage. Windows learn of each other's a moment late, so
  // that one entry for all would lose what another window has just set.
  class Marks {
    constructor(findings, key) {
      this.findings = findings;
      this.prefix = `cxr_fast ${key} `;
      this.of = new Map();
      this.row = new Map();
      for (let i = 0; i < findings.length; i++) this.row.set(this.key(i), i);
      this.#stored((storage) => {
        for (const name of Object.keys(storage))
          if (name.startsWith(this.prefix)) this.#put(name.slice(this.prefix.length), storage.getItem(name));
      }, "This browser keeps nothing for pages from the disk: export marks before you close the page.");
      addEventListener("storage", ({ key: name, newValue }) => {
        if (name?.startsWith(this.prefix)) this.#put(name.slice(this.prefix.length), newValue ?? "none");
      });
    }

    key(i) {
      return JSON.stringify([this.findings.ids[this.findings.image[i]], this.findings.name(i), this.findings.rank[i]]);
    }

    get(i) {
      return MARKS[this.findings.marked[i]];
    }

    set(i, mark) {
      this.merge([[this.key(i), mark]]);
    }

    // Many at once, by key; gives how many are new or other than before.
    merge(entries) {
      const changed = entries.filter(([key, mark]) => (this.of.get(key) ?? "none") !== mark);
      for (const [key, mark] of changed) this.#put(key, mark);
      this.#stored((storage) => {
        for (const [key, mark] of changed)
          if (mark === "none") storage.removeItem(this.prefix + key);
          else storage.setItem(this.prefix + key, mark);
      }, "This browser has no room for marks, or refuses it: export them before you close the page.");
      return changed.length;
    }

    clear() {
      this.merge([...this.of.keys()].map((key) => [key, "none"]));
    }

    counts() {
      const all = [...this.of.values()];
      return { accept: all.filter((m) => m === "accept").length, reject: all.filter((m) => m === "reject").length };
    }

    #put(key, mark) {
      if (!MARKS.includes(mark)) return;
      if (mark === "none") this.of.delete(key);
      else this.of.set(key, mark);
      const row = this.row.get(key);
      if (row !== undefined) this.findings.marked[row] = MARKS.indexOf(mark);
    }

    // The page goes on without storage; what is marked stays in its memory, and a sentence says so.
    #stored(use, otherwise) {
      try {
        use(localStorage);
      } catch (error) {
        notice(otherwise);
      }
    }
  }

  async function open() {
    const [summary, images, columns, truth] = await Promise.all(
      ["summary", "images", "findings", "truth"].map(load),
    );
    cxrReport.summary = summary;
    cxrReport.findings = new Findings(columns, images);
    cxrReport.marks = new Marks(cxrReport.findings, summary.key);
    cxrReport.truth = truth;
  }

  Object.assign(cxrReport, { open, fromQuery, toQuery, RANGES, SORTS });
})();
