/* Which view, by the address; keys; and what is said when something is missing. */
"use strict";

(() => {
  const { element, plural } = cxrReport;
  const KEYS = [
    ["j  k  arrows", "next, previous"], ["Enter", "open"], ["Esc", "back to the gallery"],
    ["a  r  c", "accept, reject, no mark"], ["1  2  3 …", "attention of that step"], ["0", "aggregated heatmap"],
    ["h", "layer on, off"], ["b  t", "boxes, true boxes on, off"], ["z", "zoom to the box of each, and back"],
    ["+  -  wheel", "nearer, further; drag to move"], ["i", "invert"], ["v", "zoom and brightness as they were"], ["n  p", "next, previous page of the gallery"],
    ["/", "search by image"], ["g then o, g, m", "overview, gallery, marks"], ["?", "these keys"],
  ];
  const main = document.getElementById("main");
  const help = document.getElementById("help");
  let view = "";
  let prefix = false; // whether g was pressed just before

  function views() {
    return {
      overview: cxrReport.overview, gallery: cxrReport.gallery, finding: cxrReport.viewer, marks: cxrReport.marking,
    };
  }

  function show(address) {
    const [name, query = ""] = address.slice(1).split(/\?(.*)/s);
    const before = view;
    prefix = false;
    help.close(); // Back while it is open
    view = name in views() ? name : "overview";
    document.body.dataset.view = view;
    for (const link of document.querySelectorAll("nav a")) {
      const here = link.dataset.view === (view === "finding" ? "gallery" : view);
      if (here) link.setAttribute("aria-current", "page");
      else link.removeAttribute("aria-current");
    }
    if (before !== view) { main.focus({ preventScroll: true }); main.scrollTo(0, 0); }
    views()[view].show(main, query, before);
  }

  // The one way to move. The view is there when this ends: the address's own event comes later, and a key pressed
  // meanwhile would be of the view before.
  function go(address, replace = false) {
    if (replace || address === location.hash) history.replaceState(null, "", address);
    else history.pushState(null, "", address);
    show(address);
  }

  const linkTo = (name) => document.querySelector(`nav [data-view=${name}]`).getAttribute("href");

  function onClick(event) {
    const link = event.target.closest?.("a[href^='#']");
    if (!link || event.button || event.ctrlKey || event.shiftKey || event.altKey || event.metaKey) return;
    event.preventDefault();
    if (link.className === "skip") main.focus();
    else go(link.getAttribute("href"));
  }

  function showHelp() {
    help.replaceChildren(
      element("h2", { id: "help-title" }, "Keys"),
      element("dl", {}, ...KEYS.flatMap(([keys, text]) => [element("dt", {}, element("kbd", {}, keys)), element("dd", {}, text)])),
      element("button", { type: "button", onclick: () => help.close() }, "Close"));
    help.showModal();
  }

  function onKey(event) {
    if (event.ctrlKey || event.altKey || event.metaKey || help.open) return;
    const { tagName, type } = event.target;
    if (tagName === "INPUT" && !["checkbox", "range"].includes(type)) {
      if (event.key !== "Escape") return;
      event.preventDefault(); // which would empty a search field
      event.target.value = event.target.defaultValue;
      event.target.blur();
      return;
    }
    if ((type === "range" || tagName === "SELECT") && /^(Arrow|Home|End|Page|Enter| )/.test(event.key)) return;
    if (event.repeat && /^[^jknp+=-]$/.test(event.key)) { // a held key marks no second finding
      event.preventDefault();
      return;
    }
    if (tagName === "SELECT" && event.key.length === 1) event.preventDefault(); // a letter is a command, no choice
    const after = prefix;
    prefix = false;
    const goes = { o: "overview", g: "gallery", m: "marks" };
    if (after && event.key in goes) go(linkTo(goes[event.key]));
    else if (event.key === "g") prefix = true;
    else if (event.key === "?") showHelp();
    else if (event.key === "/") {
      if (view !== "gallery") go(linkTo("gallery"));
      document.getElementById("filter-text").select();
    } else if (!views()[view].key?.(event.key)) return;
    event.preventDefault();
  }

  cxrReport.open().then(() => {
    const { summary } = cxrReport;
    document.title = `${summary.title} – cxr_fast report`;
    document.getElementById("title").textContent = summary.title;
    document.getElementById("counts").textContent =
      `${plural(summary.counts.findings, "finding")}, ${plural(summary.counts.images, "image")}`;
    document.getElementById("help-button").addEventListener("click", showHelp);
    cxrReport.go = go;
    addEventListener("hashchange", () => show(location.hash)); // Back, Forward, an address typed in
    addEventListener("click", onClick);
    addEventListener("storage", () => views()[view].refresh?.(main)); // marks of another window
    addEventListener("keydown", onKey);
    show(location.hash);
    main.removeAttribute("aria-busy");
  }).catch((error) => {
    main.removeAttribute("aria-busy");
    main.replaceChildren(element("p", { class: "problem" }, error.message));
  });
})();
