/* A reader's marks: how many, out as CSV, in again. */
"use strict";

(() => {
  const { element, count, plural, say } = cxrReport;
  const COLUMNS = ["image_id", "class", "rank", "x1", "y1", "x2", "y2", "score", "probability", "mark"];

  // Spreadsheets run what begins with these; an apostrophe before it is text to them, and is taken off on the way in.
  const safe = (text) => (/^'*[=+\-@\t\r]/.test(text) ? `'${text}` : text);
  const unsafe = (text) => (/^'+[=+\-@\t\r]/.test(text) ? text.slice(1) : text);
  const cell = (value) => {
    const text = typeof value === "number" ? String(value) : safe(value);
    return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
  };

  function csv() {
    const { marks, findings: f } = cxrReport;
    const lines = [COLUMNS.join(",")];
    // In the archive's order; what an earlier report showed and this one does not comes last.
    const place = ([key]) => marks.row.get(key) ?? Infinity;
    const ordered = [...marks.of].sort((one, two) => (place(one) === place(two) ? 0 : place(one) - place(two)));
    for (const [key, mark] of ordered) {
      const [id, name, rank] = JSON.parse(key);
      const i = marks.row.get(key); // a mark of an earlier report may have no row here
      const numbers = i === undefined ? Array(6).fill("")
        : [f.x1[i], f.y1[i], f.x2[i], f.y2[i], f.score[i], f.probability[i]].map((v) => Number(v.toPrecision(7)));
      lines.push([id, name, rank, ...numbers, mark].map(cell).join(","));
    }
    return lines.join("\r\n") + "\r\n";
  }

  // Rows of cells, quotes and line ends inside them included.
  function parsed(text) {
    const rows = [[]];
    let field = "", quoted = false, any = false;
    const end = () => { rows.at(-1).push(field); field = ""; };
    for (let i = 0; i < text.length; i++) {
      const letter = text[i];
      if (quoted) {
        if (letter !== '"') field += letter;
        else if (text[i + 1] === '"') { field += '"'; i++; }
        else quoted = false;
      } else if (letter === '"') { quoted = true; any = true; }
      else if (letter === ",") end();
      else if (letter === "\n") { end(); rows.push([]); any = false; }
      else if (letter !== "\r") field += letter;
    }
    if (field || any || rows.at(-1).length) end();
    return rows.filter((row) => row.length > 1 || row[0]);
  }

  function read(text) {
    const [head, ...rows] = parsed(text.replace(/^\ufeff/, ""));
    const place = ["image_id", "class", "rank", "mark"].map((name) => (head ?? []).indexOf(name));
    if (place.includes(-1))
      throw new Error("The file must be a CSV with the columns image_id, class, rank and mark, as Export writes it.");
    const entries = rows.map((row, number) => {
      const [id, name, rank, mark] = place.map((at) => unsafe(row[at] ?? ""));
      if (!["accept", "reject", "none"].includes(mark) || !/^\d+$/.test(rank))
        throw new Error(`Row ${number + 2} must have a rank and a mark (accept, reject or none), but has “${rank}” and “${mark}”; nothing was read.`);
      return [JSON.stringify([id, name, Number(rank)]), mark];
    });
    const { marks } = cxrReport;
    const known = entries.filter(([key]) => marks.row.has(key)).length;
    const changed = marks.merge(entries);
    return `${plural(entries.length, "row")} read: ${count(changed)} marks are new or other than before, ` +
      `${count(entries.length - known)} are of findings that this report does not show.`;
  }

  function save() {
    const address = URL.createObjectURL(new Blob([csv()], { type: "text/csv" }));
    element("a", { href: address, download: `marks-${cxrReport.summary.title}.csv` }).click();
    setTimeout(() => URL.revokeObjectURL(address), 10000);
  }

  function show(main) {
    const { accept, reject } = cxrReport.marks.counts();
    const told = element("p", { id: "told", role: "status" });
    const file = element("input", { type: "file", id: "import", accept: ".csv,text/csv", onchange: async () => {
      let sentence;
      try {
        sentence = read(await file.files[0].text());
      } catch (error) {
        sentence = error.message;
      }
      show(main);
      document.getElementById("told").textContent = sentence;
    } });
    const clear = element("button", { type: "button", id: "clear", disabled: accept + reject === 0, onclick: (event) => {
      if (event.detail > 1) return; // the second click of a double one asks nothing
      if (clear.dataset.sure) { cxrReport.marks.clear(); show(main); say("all marks taken back"); }
      else { clear.dataset.sure = "1"; clear.textContent = `Really take back ${plural(accept + reject, "mark")}?`; }
    } }, "Take back all marks");
    main.replaceChildren(element("section", { class: "marks" },
      element("h2", {}, "Marks"),
      element("p", { id: "mark-counts" }, `${count(accept)} accepted, ${count(reject)} rejected, of ${count(cxrReport.findings.length)} findings.`),
      element("p", { class: "quiet" }, "Marks stay in this browser, by run, image, class and rank. Export them to keep them, " +
        "and to use them: a table of findings that a reader trusts."),
      element("p", {}, element("button", { type: "button", id: "export", onclick: save }, "Export as CSV")),
      element("p", {}, element("label", {}, element("span", {}, "Read a CSV that was exported "), file)), told,
      element("p", {}, clear),
      element("p", {}, element("a", { href: "#gallery?mark=accept" }, "Show the accepted"), " · ",
        element("a", { href: "#gallery?mark=reject" }, "Show the rejected"), " · ",
        element("a", { href: "#gallery?mark=none" }, "Show those without a mark"))));
  }

  cxrReport.marking = { show, refresh: show, csv, read };
})();
