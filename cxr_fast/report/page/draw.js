/* Pictures: the image, a map over it, boxes over both. */
"use strict";

(() => {
  const { element } = cxrReport;

  const file = (image) =>
    `previews/${String(Math.floor(image / 1000)).padStart(3, "0")}/${String(image).padStart(6, "0")}.jpg`;

  // Attention of step t, 0 to 255, on the cells that are left; -1 on those that were erased before.
  function step({ cam, erased_at: erasedAt }, t) {
    const alive = (i) => erasedAt[i] === 0 || erasedAt[i] >= t;
    let low = Infinity, high = -Infinity;
    for (let i = 0; i < cam.length; i++)
      if (alive(i)) { low = Math.min(low, cam[i]); high = Math.max(high, cam[i]); }
    const scale = high > low ? 255 / (high - low) : 0;
    return Int16Array.from(cam, (value, i) => (alive(i) ? Math.round((value - low) * scale) : -1));
  }

  // Around the cells that were erased before step t, as the path of an SVG in pixels of the image.
  function erased({ erased_at: erasedAt, height, width }, t, imageWidth, imageHeight) {
    const gone = (y, x) => y >= 0 && x >= 0 && y < height && x < width &&
      erasedAt[y * width + x] > 0 && erasedAt[y * width + x] < t;
    const w = imageWidth / width, h = imageHeight / height;
    let d = "";
    for (let y = 0; y <= height; y++)
      for (let x = 0; x <= width; x++) {
        if (gone(y, x) !== gone(y - 1, x)) d += `M${x * w} ${y * h}h${w}`;
        if (gone(y, x) !== gone(y, x - 1)) d += `M${x * w} ${y * h}v${h}`;
      }
    return element("path", { class: "erased", d });
  }

  // A map as a canvas of a pixel a cell, which the browser smooths when it stretches it.
  function drawMap(canvas, levels, height, width, fading = false) {
    canvas.width = width;
    canvas.height = height;
    const context = canvas.getContext("2d");
    const picture = context.createImageData(width, height);
    const { ramp } = cxrReport.summary; // red, green, blue of each of 256 levels
    for (let i = 0; i < levels.length; i++) {
      const level = levels[i];
      const erased = level < 0;
      for (let k = 0; k < 3; k++) picture.data[4 * i + k] = erased ? 120 : ramp[3 * level + k];
      // What draws no attention leaves the image as it is.
      picture.data[4 * i + 3] = erased ? 150 : fading ? Math.min(255, 1.25 * level) : 255;
    }
    context.putImageData(picture, 0, 0);
  }

  // With its score beside it, where there is one: letters of 1.9% of the image's width.
  function box(kind, x1, y1, x2, y2, label = "", width = 0) {
    const at = { x: x1, y: y1, width: Math.max(x2 - x1, 0), height: Math.max(y2 - y1, 0) };
    const drawn = element("g", { class: `box ${kind}` },
      element("rect", { ...at, class: "under" }), element("rect", { ...at, class: "line" }));
    if (label) {
      const size = width * 0.019;
      const y = y1 > 1.5 * size ? y1 - 0.4 * size : y1 + 1.1 * size;
      drawn.append(element("text", { x: x1 + 0.2 * size, y, "font-size": size }, label));
    }
    return drawn;
  }

  // An SVG over an image, in the image's own pixels.
  const overlay = (width, height, ...children) =>
    element("svg", { viewBox: `0 0 ${width || 1} ${height || 1}`, preserveAspectRatio: "none", "aria-hidden": "true" },
      ...children);

  function picture(image, className = "") {
    const { findings } = cxrReport;
    const plate = (text) => element("p", { class: `plate ${className}` }, text);
    if (!findings.preview[image]) return plate("no picture: give the folder that was mined with --images");
    const shown = element("img", { src: file(image), alt: "", class: className, draggable: "false", decoding: "async",
      onerror: () => shown.replaceWith(plate(`${file(image)} is missing: the report's folder is not whole`)) });
    return shown;
  }

  // Bars of a histogram, with what each is in words.
  function histogram(counts, label, edge, unit) {
    const most = Math.max(...counts, 1);
    const bars = counts.map((value, i) => element("rect", {
      x: i * 10 + 1, width: 8, y: 40 - (38 * value) / most, height: (38 * value) / most,
    }, element("title", {}, `${edge(i)} to ${edge(i + 1)}${unit}: ${cxrReport.count(value)}`)));
    return element("svg", {
      viewBox: `0 0 ${counts.length * 10} 40`, class: "histogram", role: "img", preserveAspectRatio: "none",
      "aria-label": label,
    }, element("line", { x1: 0, x2: counts.length * 10, y1: 40, y2: 40 }), ...bars);
  }

  Object.assign(cxrReport, { step, erased, drawMap, box, overlay, picture, histogram });
})();
