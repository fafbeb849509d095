/* How near and how bright: zoom about the pointer, the part that is seen, brightness, contrast, inversion. */
"use strict";

(() => {
  const { element } = cxrReport;
  const MOST = 8;
  const TONE = { brightness: 1, contrast: 1, inverted: false };

  // These stay from finding to finding: brightness, and whether each is opened at its box.
  const tone = { ...TONE };
  let near = false;
  // These are of one finding: how much larger than whole, and the point of the image in the middle of the stage.
  let zoom = 1, middle = [0.5, 0.5];
  let moved = false; // by the reader, from where it opened
  let target = null; // the corners of the box, in parts of the image
  let zoomed = () => {};

  const frame = () => document.getElementById("frame");

  // The stage and the whole image in it, in pixels of the screen.
  function sizes() {
    const stage = document.getElementById("stage");
    const [width, height] = [stage.clientWidth, stage.clientHeight];
    const ratio = parseFloat(frame().style.getPropertyValue("--ratio"));
    const whole = Math.min(width, height * ratio);
    return { stage: [width, height], whole: [whole, whole / ratio] };
  }

  const limited = (at) => Math.min(Math.max(at, 1), MOST);

  function look(at, x, y) {
    const { stage, whole } = sizes();
    const before = zoom;
    zoom = limited(at);
    // No edge of the image comes further in than the stage's.
    middle = [x, y].map((value, k) => {
      const half = stage[k] / (2 * whole[k] * zoom);
      return half >= 0.5 ? 0.5 : Math.min(Math.max(value, half), 1 - half);
    });
    apply();
    if (zoom !== before) zoomed();
  }

  function apply() {
    const { style } = frame();
    style.setProperty("--zoom", zoom);
    style.translate = middle.map((value) => `${100 * (0.5 - value)}%`).join(" ");
    style.setProperty("--tone", `brightness(${tone.brightness}) contrast(${tone.contrast}) invert(${Number(tone.inverted)})`);
    for (const [id, pressed] of [["toggle-near", near], ["toggle-inverted", tone.inverted]])
      document.getElementById(id).setAttribute("aria-pressed", String(pressed));
    for (const name of ["brightness", "contrast"]) document.getElementById(name).value = tone[name];
  }

  // The box in the middle, filling three fifths of the stage; or the whole image.
  function settle() {
    moved = false;
    if (!near) return look(1, 0.5, 0.5);
    const { stage, whole } = sizes();
    const [x1, y1, x2, y2] = target;
    const fill = [x2 - x1, y2 - y1].map((side, k) => (0.6 * stage[k]) / Math.max(side * whole[k], 1));
    look(Math.min(...fill), (x1 + x2) / 2, (y1 + y2) / 2);
  }

  // What lies under a point of the stage, so many pixels from its middle, stays there.
  function zoomBy(factor, dx = 0, dy = 0) {
    const { whole } = sizes();
    moved = true;
    const before = zoom;
    const after = limited(zoom * factor);
    const point = middle.map((value, k) => value + [dx, dy][k] / (whole[k] * before));
    look(after, ...point.map((value, k) => value - [dx, dy][k] / (whole[k] * after)));
  }

  function onWheel(event) {
    event.preventDefault();
    const stage = document.getElementById("stage").getBoundingClientRect();
    zoomBy(Math.exp(-event.deltaY / 400), event.clientX - stage.x - stage.width / 2, event.clientY - stage.y - stage.height / 2);
  }

  function onMove(event) {
    if (!event.currentTarget.hasPointerCapture(event.pointerId)) return; // begun elsewhere
    moved = true;
    const { whole } = sizes();
    look(zoom, ...middle.map((value, k) => value - [event.movementX, event.movementY][k] / (whole[k] * zoom)));
  }

  function reset() {
    Object.assign(tone, TONE);
    near = false;
    settle();
  }

  const toggleNear = () => { near = !near; settle(); };
  const toggleInverted = () => { tone.inverted = !tone.inverted; apply(); };

  function key(pressed) {
    const keys = {
      z: toggleNear, i: toggleInverted, v: reset, "+": () => zoomBy(1.25), "=": () => zoomBy(1.25), "-": () => zoomBy(0.8),
    };
    if (!Object.hasOwn(keys, pressed)) return false;
    keys[pressed]();
    return true;
  }

  const stage = (label, child) => element("div", {
    id: "stage", role: "img", "aria-label": label, onwheel: onWheel, onpointermove: onMove,
    onpointerdown: (event) => { if (event.button === 0) event.currentTarget.setPointerCapture(event.pointerId); },
  }, child);

  function controls() {
    const slider = (name, text) => element("label", { class: "slider" }, element("span", {}, text), element("input", {
      type: "range", id: name, min: 0.4, max: 2.5, step: 0.05, value: tone[name],
      oninput: (event) => { tone[name] = Number(event.target.value); apply(); } }));
    const button = (id, text, onclick, letter) => element("button", { type: "button", id, onclick }, text, element("kbd", {}, letter));
    return [
      slider("brightness", "Brightness"), slider("contrast", "Contrast"),
      element("div", { class: "toggles", role: "group", "aria-label": "Picture" },
        button("toggle-near", "Zoom to box", toggleNear, "z"), button("toggle-inverted", "Invert", toggleInverted, "i"),
        button("reset-picture", "Reset", reset, "v")),
    ];
  }

  // Of a finding whose stage and controls are on the page, before it is painted; tells of every zoom from then on.
  function open(corners, onZoom) {
    target = corners;
    zoomed = () => {};
    settle();
    zoomed = onZoom;
  }

  addEventListener("resize", () => {
    if (!document.getElementById("stage")) return;
    if (moved) look(zoom, ...middle);
    else settle();
  });

  cxrReport.lens = { stage, controls, open, key, get zoom() { return zoom; } };
})();
