/* One finding: the image, the attention of each step over it, boxes, facts, and the reader's mark. */
"use strict";

(() => {
  const { element, count, decimals, box, overlay, picture, drawMap, step, erased, say, kept } = cxrReport;
  const chunk = kept(4); // maps of so many times 64 images are held

  // How a reader likes it stays from finding to finding.
  const view = { layer: "all", shown: true, opacity: 0.5, boxes: true, truth: true };
  let at = 0; // the place in the gallery's order
  let map = null;

  const now = () => cxrReport.gallery.order[at];

  async function mapOf(i) {
    const { summary, findings: f } = cxrReport;
    if (summary.layers === "none") return null;
    const number = Math.floor(f.image[i] / summary.layers_per_chunk);
    const { maps } = await chunk(`layers-${String(number).padStart(6, "0")}`);
    return maps.find((one) => one.image === f.image[i] && one.class === f.class[i]) ?? null;
  }

  function layers() {
    const { summary } = cxrReport;
    if (summary.layers === "none") return [["none", "No heatmap"]];
    const steps = summary.layers === "steps" ? Array.from({ length: summary.steps }, (_, t) => [String(t + 1), `Step ${t + 1}`]) : [];
    return [...steps, ["all", "Aggregate"]];
  }

  function paint() {
    const canvas = document.getElementById("map");
    const { findings: f, truth } = cxrReport;
    const i = now();
    canvas.hidden = !map || !view.shown;
    canvas.style.opacity = view.opacity;
    const t = parseInt(view.layer, 10);
    if (map) {
      drawMap(canvas, t ? step(map, t) : map.heatmap, map.height, map.width, true);
    }
    for (const button of document.querySelectorAll("#layers button"))
      button.setAttribute("aria-pressed", String(view.shown && button.dataset.layer === view.layer));
    const drawn = [], width = f.width[f.image[i]];
    const seen = width / cxrReport.lens.zoom; // letters stay as large as they are on the whole image
    if (map && view.shown && t > 1) drawn.push(erased(map, t, width, f.height[f.image[i]]));
    document.getElementById("layer-note").textContent =
      map && view.shown && t > 1 ? "Dotted: erased by earlier steps." : "";
    if (view.truth)
      for (let g = 0; g < truth.image.length; g++)
        if (truth.image[g] === f.image[i] && truth.class[g] === f.class[i])
          drawn.push(box("truth", truth.x1[g], truth.y1[g], truth.x2[g], truth.y2[g], "true", seen));
    if (view.boxes)
      for (const other of [...siblings(i).filter((k) => k !== i), i])
        drawn.push(box(other === i ? "current" : "other", f.x1[other], f.y1[other], f.x2[other], f.y2[other],
          decimals(f.score[other]), seen));
    document.getElementById("boxes").replaceChildren(...drawn);
    for (const [id, name] of [["toggle-boxes", "boxes"], ["toggle-truth", "truth"], ["toggle-map", "shown"]])
      document.getElementById(id)?.setAttribute("aria-pressed", String(view[name]));
    const mark = cxrReport.marks.get(i);
    for (const button of document.querySelectorAll("#mark button"))
      button.setAttribute("aria-pressed", String(button.dataset.mark === mark && mark !== "none"));
    document.getElementById("stage").dataset.mark = mark;
  }

  // Findings of the same image and class, and one of each other class of the image; rows of an image stand together.
  function siblings(i, ofClass = true) {
    const { findings: f } = cxrReport;
    const found = [];
    let first = i;
    while (first > 0 && f.image[first - 1] === f.image[i]) first--;
    for (let k = first; k < f.length && f.image[k] === f.image[i]; k++)
      if (ofClass ? f.class[k] === f.class[i] : f.class[k] !== f.class[i] && (k === first || f.class[k] !== f.class[k - 1]))
        found.push(k);
    return found;
  }

  function mark(i, value) {
    const { marks, findings: f } = cxrReport;
    marks.set(i, value);
    say(`${f.name(i)}: ${value === "none" ? "mark taken back" : `${value}ed`}`);
  }

  // A mark moves on to the next one: two keys a finding.
  function marked(value) {
    mark(now(), value);
    if (value !== "none" && at + 1 < cxrReport.gallery.order.length) go(at + 1);
    else paint();
  }

  // Back leaves the viewer, wherever the reader has walked in it.
  const go = (place, replace = true) => cxrReport.go(cxrReport.gallery.finding(place), replace);

  const toggle = (name) => { view[name] = !view[name]; paint(); };

  function layer(name) {
    view.layer = name;
    view.shown = true;
    paint();
    say(name === "all" ? "the aggregated heatmap" : `step ${name}`);
  }

  function facts(i) {
    const { findings: f, summary } = cxrReport;
    const size = `${decimals(f.x2[i] - f.x1[i], 0)} × ${decimals(f.y2[i] - f.y1[i], 0)} px, ${decimals(f.size[i], 1)}%`;
    const rows = [
      ["Rank", `${f.rank[i]}${summary.counts.shown < summary.counts.findings ? "" : ` of ${siblings(i).length}`}`], ["Score", decimals(f.score[i], 3)],
      ["Probability", decimals(f.probability[i], 3)], ["Box", size],
      ["Corners", `${decimals(f.x1[i], 0)}, ${decimals(f.y1[i], 0)} – ${decimals(f.x2[i], 0)}, ${decimals(f.y2[i], 0)}`],
      ["Image", `${count(f.width[f.image[i]])} × ${count(f.height[f.image[i]])} px`],
    ];
    if (summary.truth) rows.push(["IoU with truth", Number.isNaN(f.iou[i]) ? "no true box of this class" : decimals(f.iou[i])]);
    return element("dl", { id: "facts" }, ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)]));
  }

  function others(i) {
    const { findings: f, gallery } = cxrReport;
    const rows = siblings(i, false);
    if (!rows.length) return null;
    return element("div", {}, element("h3", {}, "Also in this image"), element("ul", { id: "others" },
      ...rows.map((k) => element("li", {}, element("button", { type: "button", onclick: () => {
        const place = gallery.order.indexOf(k);
        if (place >= 0) go(place);
        else {
          gallery.select(`text=${encodeURIComponent(f.ids[f.image[i]])}`);
          go(gallery.order.indexOf(k), false); // into another list, from which Back leads here
        }
      } }, `${f.name(k)}  ${decimals(f.probability[k])}`)))));
  }

  function show(main, query) {
    const { findings: f, gallery, lens, summary } = cxrReport;
    const [number, rest = ""] = query.split(/&(.*)/s);
    at = gallery.selectFor(rest, parseInt(number, 10));
    if (at < 0) { cxrReport.go("#gallery", true); return; }
    const address = gallery.finding(at); // not the one that was asked for, where that has another list
    if (address !== location.hash) history.replaceState(null, "", address);
    const focused = document.activeElement?.id;
    const scrolled = document.getElementById("panel")?.scrollTop ?? 0;
    const i = now(), image = f.image[i];
    const frame = element("div", { class: "frame", id: "frame" }, picture(image),
      element("canvas", { id: "map", hidden: true, "aria-hidden": "true" }), overlay(f.width[image], f.height[image],
        element("g", { id: "boxes" })));
    frame.style.setProperty("--ratio", (f.width[image] || 1) / (f.height[image] || 1));
    const button = (attributes, text, key) => element("button", { type: "button", ...attributes },
      text, key ? element("kbd", {}, key) : null);
    const stage = lens.stage(`${f.name(i)} in ${f.ids[image]}`, frame);
    const panel = element("aside", { id: "panel", "aria-label": "This finding" },
      element("p", { class: "steps" },
        button({ id: "previous", disabled: at === 0, onclick: () => go(at - 1) }, "Previous", "k"),
        element("span", { id: "place" }, `${count(at + 1)} of ${count(gallery.order.length)}`),
        button({ id: "next", disabled: at + 1 >= gallery.order.length, onclick: () => go(at + 1) }, "Next", "j")),
      element("h2", {}, f.name(i)),
      element("p", { class: "id", id: "image-id", title: f.ids[image] }, f.ids[image]),
      f.note[image] ? element("p", { class: "note", id: "image-note" }, f.note[image]) : null,
      element("div", { id: "mark", role: "group", "aria-label": "Mark" },
        button({ id: "mark-accept", "data-mark": "accept", onclick: (event) => event.detail > 1 || marked("accept") }, "✓ Accept", "a"),
        button({ id: "mark-reject", "data-mark": "reject", onclick: (event) => event.detail > 1 || marked("reject") }, "✕ Reject", "r"),
        button({ id: "mark-none", "data-mark": "none", onclick: () => marked("none") }, "Clear", "c")),
      element("div", { id: "layers", role: "group", "aria-label": "Layers" },
        ...layers().map(([name, text]) => button({ id: `layer-${name}`, "data-layer": name, disabled: name === "none", onclick: () => layer(name) }, text,
          name === "all" ? "0" : parseInt(name, 10) ? name : ""))),
      element("p", { class: "quiet", id: "layer-note" }),
      element("div", { class: "toggles", role: "group", "aria-label": "Shown" },
        button({ id: "toggle-map", disabled: summary.layers === "none", onclick: () => toggle("shown") }, "Layer", "h"),
        button({ id: "toggle-boxes", onclick: () => toggle("boxes") }, "Boxes", "b"),
        summary.truth ? button({ id: "toggle-truth", onclick: () => toggle("truth") }, "Truth", "t") : null),
      element("label", { class: "slider" }, element("span", {}, "Opacity"), element("input", { type: "range", id: "opacity",
        min: 0, max: 1, step: 0.05, value: view.opacity, disabled: summary.layers === "none",
        oninput: (event) => { view.opacity = Number(event.target.value); paint(); } })),
      ...lens.controls(), facts(i), others(i),
      element("a", { id: "to-gallery", href: gallery.address(at) }, "Back to the gallery ", element("kbd", {}, "Esc")));
    main.replaceChildren(element("section", { class: "viewer" }, stage, panel));
    panel.scrollTop = scrolled;
    if (focused) document.getElementById(focused)?.focus();
    map = null;
    const width = f.width[image] || 1, height = f.height[image] || 1;
    lens.open([f.x1[i] / width, f.y1[i] / height, f.x2[i] / width, f.y2[i] / height], paint);
    paint();
    say(`${f.name(i)}, ${count(at + 1)} of ${count(gallery.order.length)}`);
    mapOf(i).then((found) => {
      if (now() === i && document.getElementById("map")) { map = found; paint(); }
    }, (error) => cxrReport.notice(error.message));
  }

  function key(pressed) {
    const { order, address } = cxrReport.gallery;
    if (["j", "ArrowRight", "ArrowDown"].includes(pressed)) { if (at + 1 < order.length) go(at + 1); }
    else if (["k", "ArrowLeft", "ArrowUp"].includes(pressed)) { if (at > 0) go(at - 1); }
    else if (pressed === "Escape") cxrReport.go(address(at));
    else if (pressed === "a") marked("accept");
    else if (pressed === "r") marked("reject");
    else if (pressed === "c") marked("none");
    else if (pressed === "b") toggle("boxes");
    else if (pressed === "t") toggle("truth");
    else if (pressed === "h") toggle("shown");
    else if (pressed === "0") layer("all");
    else if (layers().some(([name]) => name === pressed)) layer(pressed);
    else return cxrReport.lens.key(pressed);
    return true;
  }

  cxrReport.viewer = { show, key, mark, current: now, refresh: paint };
})();
