/* What there is: totals of each class, where its boxes lie, how the run went. */
"use strict";

(() => {
  const { element, count, plural, decimals, histogram, drawMap } = cxrReport;

  function classCard(name, totals, c) {
    const { summary } = cxrReport;
    const map = element("canvas", { class: "position", role: "img",
      "aria-label": `Where boxes of ${name} lie; the patient's right is on the left` });
    drawMap(map, totals.position, 32, 32, summary.mean);
    const edges = summary.size_edges;
    const link = element("a", { href: `#gallery?${new URLSearchParams({ class: name, sort: "probability" })}` }, name);
    const empty = totals.findings === 0;
    return element("article", { class: "class-card", "data-class": c },
      element("h3", {}, link),
      element("p", { class: "figures" },
        `${plural(totals.findings, "finding")} in ${plural(totals.images, "image")}`),
      element("p", { class: "figures" },
        `mean score ${decimals(totals.mean_score ?? NaN)}, mean probability ${decimals(totals.mean_probability ?? NaN)}`),
      empty ? element("p", { class: "quiet" }, "nothing was found") : element("div", { class: "class-pictures" },
        element("div", { class: "chest" },
          summary.mean ? element("img", { src: "mean.jpg", alt: "", draggable: "false" }) : null, map,
          element("span", { class: "side" }, "R"), element("span", { class: "side" }, "L")),
        element("div", {},
          element("p", { class: "caption" }, "score, 0 to 1"),
          histogram(totals.score_histogram, `Scores of ${name}`, (i) => (i / 20).toFixed(2), ""),
          element("p", { class: "caption" }, `box area, ${edges[0]} to 100% (log)`),
          histogram(totals.size_histogram, `Sizes of boxes of ${name}`, (i) => edges[i].toPrecision(2), "%"))));
  }

  function table(caption, head, rows) {
    return element("table", {},
      element("caption", {}, caption),
      element("thead", {}, element("tr", {}, ...head.map((name) => element("th", { scope: "col" }, name)))),
      element("tbody", {}, ...rows.map((cells) => element("tr", {}, ...cells.map((cell, i) =>
        element(i ? "td" : "th", i ? {} : { scope: "row" }, cell))))));
  }

  function throughput(run) {
    if (!run) return element("p", { class: "quiet" }, "How fast the run was is kept with mine --profile.");
    const all = run.stages.reduce((sum, stage) => sum + stage.seconds, 0) || 1;
    const rows = run.stages.map(({ name, seconds }) => [name, seconds.toFixed(1), `${((100 * seconds) / all).toFixed(0)}%`]);
    return element("div", {},
      element("p", {}, `${decimals(run.images_per_second, 1)} images a second for ${decimals(run.seconds, 1)} s, limited by ${run.limit}`),
      table("Threads' time by stage", ["stage", "seconds", "share"], rows));
  }

  function errors({ total, reasons, first }) {
    if (!total) return element("p", {}, "Every image could be read.");
    return element("div", {},
      element("p", {}, `${plural(total, "image")} could not be read; errors.parquet has them all.`),
      table("Reasons", ["reason", "images"], reasons.map(({ reason, count: n }) => [reason, count(n)])),
      element("details", {}, element("summary", {}, `The first ${count(first.length)}`),
        table("Images", ["image", "reason"], first.map(({ image_id, reason }) => [image_id, reason]))));
  }

  function show(main) {
    const { summary } = cxrReport;
    const { counts } = summary;
    main.replaceChildren(
      element("section", { class: "overview" },
        element("h2", {}, "Overview"),
        element("p", { id: "totals" },
          `${plural(counts.findings, "finding")} of ${count(summary.classes.length)} classes ` +
          `in ${plural(counts.images, "image")}, ${count(counts.errors)} of them unreadable. ` +
          `${count(counts.shown)} can be looked at, in ${plural(counts.shown_images, "image")}.`),
        summary.synthetic ? element("p", { class: "note" },
          "Mined by the bundled model, which has seen drawn pictures only: these are no results on patients.") : null,
        ...summary.left_out.map((sentence) => element("p", { class: "note left-out" }, sentence)),
        element("div", { id: "classes" }, ...summary.per_class.map((totals, c) => classCard(summary.classes[c], totals, c))),
        element("div", { class: "columns" },
          element("section", {}, element("h3", {}, "Throughput"), throughput(summary.throughput)),
          element("section", {}, element("h3", {}, "Errors"), errors(summary.errors)),
          element("section", {}, element("h3", {}, "Settings"),
            table("What decided the rows", ["setting", "value"], summary.run.map(({ name, value }) => [name, value]))))));
  }

  cxrReport.overview = { show };
})();
