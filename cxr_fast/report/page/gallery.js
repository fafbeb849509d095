/* Findings by the page: filters, order, cards. Only the cards of one page exist. */
"use strict";

(() => {
  const { element, count, decimals, box, overlay, picture, say, fromQuery, toQuery, RANGES, SORTS } = cxrReport;
  const CARDS = 24;
  const WORDS = { archive: "archive", probability: "probability", score: "score", size: "box size", iou: "IoU with truth" };

  let filter = null;
  let order = new Uint32Array();

  const field = (id) => document.getElementById(id);

  // The address is the filter: Back, bookmarks and a link to a colleague work.
  function go(change) {
    cxrReport.go(addressOf({ ...filter, page: 0, ...change }));
  }

  function addressOf(of) {
    const query = toQuery(of);
    return query ? `#gallery?${query}` : "#gallery";
  }

  function select(query) {
    filter = fromQuery(query);
    order = cxrReport.findings.select(filter);
    return order;
  }

  // The filter without its page, as an address has it.
  const queryOf = (of) => toQuery({ ...of, page: 0 });
  const held = (query) => filter !== null && queryOf(filter) === queryOf(fromQuery(query));

  // The order that an address of a finding was written under: as it is, where it is of that filter, because
  // it must not shift below a reader who marks. Without the finding in it, the whole archive.
  function selectFor(query, i) {
    if (!held(query)) select(query);
    if (!order.includes(i)) select("");
    return order.indexOf(i);
  }

  // A finding by its number, and the filter that it was found by: read again, or in another window, the same.
  function finding(at) {
    const query = queryOf(filter);
    return `#finding?${order[at]}${query ? `&${query}` : ""}`;
  }

  const pages = () => Math.max(1, Math.ceil(order.length / CARDS));

  function range(name, label, step, unit) {
    const input = (which) => element("input", {
      type: "number", id: `filter-${name}-${which}`, min: RANGES[name][0], max: RANGES[name][1], step,
      "aria-label": `${label}, ${which === "from" ? "at least" : "at most"}`,
      onchange: () => {
        const ends = ["from", "to"].map((end) => parseFloat(field(`filter-${name}-${end}`).value));
        go({ [name]: ends.map((end, i) => (Number.isFinite(end) ? end : RANGES[name][i])) });
      },
    });
    return element("fieldset", { class: "range" }, element("legend", {}, label),
      input("from"), element("span", {}, "to"), input("to"), element("span", {}, unit));
  }

  const option = ([value, text]) => element("option", { value }, text);

  function choice(id, label, values, onchange) {
    return element("label", {}, element("span", {}, label), element("select", { id, onchange }, ...values.map(option)));
  }

  function filters() {
    const { summary } = cxrReport;
    const classes = element("fieldset", { id: "filter-class" }, element("legend", {}, "Class"),
      ...summary.classes.map((name, c) => element("label", { class: "check" },
        element("input", { type: "checkbox", value: c, onchange: () => go({
          classes: [...document.querySelectorAll("#filter-class input:checked")].map((one) => Number(one.value)) }) }),
        element("span", {}, name))));
    return element("form", { id: "filters", "aria-label": "Filters", onsubmit: (event) => event.preventDefault() },
      element("label", {}, element("span", {}, "Image contains"), element("input", { type: "search", id: "filter-text",
        onchange: (event) => go({ text: event.target.value }) })),
      classes,
      range("probability", "Probability", 0.05, ""),
      range("score", "Score", 0.05, ""),
      range("size", "Box size", 0.5, "%"),
      summary.truth ? range("iou", "IoU with truth", 0.05, "") : null,
      choice("filter-mark", "Mark", [["", "any"], ["none", "not marked"], ["accept", "accepted"], ["reject", "rejected"]],
        (event) => go({ mark: event.target.value })),
      element("label", { class: "check" }, element("input", { type: "checkbox", id: "filter-best",
        onchange: (event) => go({ best: event.target.checked }) }), element("span", {}, "best box of each only")),
      element("button", { type: "button", id: "filter-clear", onclick: () => cxrReport.go("#gallery") }, "Clear filters"));
  }

  function card(i, at) {
    const { findings: f, marks } = cxrReport;
    const image = f.image[i];
    const mark = marks.get(i);
    const frame = element("div", { class: "frame" }, picture(image),
      overlay(f.width[image], f.height[image], box("current", f.x1[i], f.y1[i], f.x2[i], f.y2[i])));
    frame.style.setProperty("--ratio", (f.width[image] || 1) / (f.height[image] || 1));
    return element("a", { class: `card ${mark}`, href: finding(at), "data-finding": i, "data-at": at,
      "aria-label": `${f.name(i)} in ${f.ids[image]}, score ${decimals(f.score[i])}, ${mark === "none" ? "not marked" : `${mark}ed`}` },
      element("div", { class: "thumb" }, frame),
      element("span", { class: "line" }, element("strong", {}, f.name(i)),
        element("span", { class: "mark-sign", "aria-hidden": "true" }, { accept: "✓", reject: "✕", none: "" }[mark])),
      element("span", { class: "line quiet" }, `prob. ${decimals(f.probability[i])} · score ${decimals(f.score[i])}`),
      element("span", { class: "line quiet id", title: f.ids[image] }, f.ids[image]));
  }

  function pager() {
    const button = (id, text, page) => element("button", { type: "button", id, onclick: () => go({ page: page() }) }, text);
    const sorts = SORTS.filter((name) => name !== "iou" || cxrReport.summary.truth).map((name) => [name, WORDS[name]]);
    return element("div", { class: "pager" },
      choice("sort", "Order", sorts, (event) => go({ sort: event.target.value, down: true })),
      choice("direction", "Direction", [["down", ""], ["up", ""]], (event) => go({ down: event.target.value === "down" })),
      element("p", { id: "hits" }),
      button("page-first", "First", () => 0),
      button("page-back", "Back", () => filter.page - 1),
      element("label", {}, element("span", { class: "unseen" }, "Page"), element("input", { type: "number", id: "page", min: 1,
        onchange: (event) => {
          const page = Math.min(Math.max(parseInt(event.target.value, 10) || 1, 1), pages());
          go({ page: page - 1 });
        } })),
      element("span", { id: "pages" }),
      button("page-next", "Next", () => filter.page + 1),
      button("page-last", "Last", () => pages() - 1));
  }

  // Fields stay what they are while the filter changes: the one that is being left would take the next click or
  // key with it.
  function fill() {
    const put = (id, value) => {
      const input = field(id);
      input.value = value;
      if (input.tagName === "INPUT") input.defaultValue = value; // what Esc goes back to
    };
    put("filter-text", filter.text);
    for (const name of Object.keys(RANGES).filter((one) => field(`filter-${one}-from`)))
      ["from", "to"].forEach((end, i) => put(`filter-${name}-${end}`, filter[name][i]));
    for (const input of document.querySelectorAll("#filter-class input")) input.checked = filter.classes.includes(Number(input.value));
    put("filter-mark", filter.mark);
    field("filter-best").checked = filter.best;
    put("sort", filter.sort);
    const words = filter.sort === "archive" ? ["first to last", "last to first"] : ["largest first", "smallest first"];
    [...field("direction").options].forEach((one, i) => { one.textContent = words[i]; });
    put("direction", filter.down ? "down" : "up");
    field("hits").textContent = `${count(order.length)} of ${count(cxrReport.findings.length)} findings`;
    put("page", filter.page + 1);
    field("page").max = pages();
    field("pages").textContent = `of ${count(pages())}`;
    for (const id of ["page-first", "page-back"]) field(id).disabled = filter.page === 0;
    for (const id of ["page-next", "page-last"]) field(id).disabled = filter.page + 1 >= pages();
  }

  function deal() {
    const focused = document.activeElement?.dataset.finding;
    const first = filter.page * CARDS;
    const cards = Array.from(order.subarray(first, first + CARDS), (i, k) => card(i, first + k));
    field("results").replaceChildren(cards.length ? element("div", { id: "cards" }, ...cards)
      : element("p", { class: "plate" }, "No finding passes these filters."));
    focusCard(focused);
  }

  const focusCard = (i) => document.querySelector(`.card[data-finding="${i}"]`)?.focus();

  // What was marked stays in the list while a reader turns its pages and comes back from a finding: pages that
  // shift below him would hide as many findings as he has marked.
  function show(main, query, before) {
    const after = fromQuery(query);
    const seen = before === "finding" ? cxrReport.viewer.current() : undefined; // a place in the order as it is
    if (held(query) && (before === "finding" || (before === "gallery" && filter.page !== after.page))) filter.page = after.page;
    else select(query);
    filter.page = Math.min(filter.page, pages() - 1);
    if (!field("filters"))
      main.replaceChildren(element("section", { class: "gallery" }, element("h2", { class: "unseen" }, "Gallery"), filters(),
        element("div", { class: "results" }, pager(), element("div", { id: "results" }))));
    fill();
    deal();
    focusCard(seen);
    document.querySelector("nav [data-view=gallery]").setAttribute("href", addressOf(filter));
    say(`${count(order.length)} findings, page ${filter.page + 1} of ${pages()}`);
  }

  // Move the focus among cards; over an edge, a page on.
  function move(by) {
    const cards = [...document.querySelectorAll("#cards .card")];
    const at = cards.indexOf(document.activeElement);
    const next = at < 0 ? 0 : at + by;
    if (cards[next]) cards[next].focus();
    else if (next < 0 ? filter.page > 0 : filter.page + 1 < pages()) {
      go({ page: filter.page + Math.sign(by) });
      const shown = document.querySelectorAll("#cards .card");
      shown[by > 0 ? 0 : shown.length - 1]?.focus();
    }
  }

  function key(pressed) {
    const columns = getComputedStyle(field("cards") ?? document.body).gridTemplateColumns.split(" ").length;
    const steps = { ArrowRight: 1, j: 1, ArrowLeft: -1, k: -1, ArrowDown: columns, ArrowUp: -columns };
    if (pressed in steps) move(steps[pressed]);
    else if (pressed === "n" || pressed === "PageDown") field("page-next").click();
    else if (pressed === "p" || pressed === "PageUp") field("page-back").click();
    else if ("arc".includes(pressed) && document.activeElement?.dataset.finding) {
      const i = Number(document.activeElement.dataset.finding);
      const focused = document.activeElement;
      cxrReport.viewer.mark(i, { a: "accept", r: "reject", c: "none" }[pressed]);
      const fresh = card(i, Number(focused.dataset.at));
      focused.replaceWith(fresh);
      fresh.focus();
    } else return false;
    return true;
  }

  cxrReport.gallery = {
    show, key, select, selectFor, finding, refresh: deal,
    get order() { return order; },
    address: (at) => addressOf({ ...filter, page: Math.floor(at / CARDS) }),
  };
})();
