/* Data files, and small things that every view uses.

A page that is opened from the disk may not fetch; it may load scripts, each of which calls receive. */
"use strict";

window.cxrReport = (() => {
  const received = new Map();

  // A column of numbers, or the value itself.
  function decoded(value) {
    if (Array.isArray(value)) return value.map(decoded);
    if (value === null || typeof value !== "object") return value;
    if (typeof value.type === "string" && typeof value.data === "string" && Object.keys(value).length === 2)
      return column(value);
    return Object.fromEntries(Object.entries(value).map(([key, part]) => [key, decoded(part)]));
  }

  const kinds = { uint8: Uint8Array, uint16: Uint16Array, uint32: Uint32Array, float32: Float32Array };

  function column({ type, data }) {
    const text = atob(data);
    const bytes = new Uint8Array(text.length);
    for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
    return new kinds[type](bytes.buffer); // little-endian, as every machine with a browser is today
  }

  function receive(name, value) {
    received.set(name, decoded(value));
  }

  // Give the value of data/NAME.js once it is there.
  function load(name) {
    return new Promise((resolve, reject) => {
      const file = `data/${name}.js`;
      const script = document.createElement("script");
      script.src = file;
      script.onload = () => {
        script.remove();
        if (!received.has(name))
          return reject(new Error(`${file} is damaged; write the report again with cxr-fast report.`));
        const value = received.get(name);
        received.delete(name);
        resolve(value);
      };
      script.onerror = () => {
        script.remove();
        reject(new Error(`${file} is missing: the report's folder is not whole; copy all of it, or write it again.`));
      };
      document.head.append(script);
    });
  }

  // Values of data files, the last few of them.
  function kept(most) {
    const values = new Map();
    return (name) => {
      let value = values.get(name);
      if (value === undefined) {
        value = load(name);
        value.catch(() => values.delete(name));
      }
      values.delete(name);
      values.set(name, value); // the youngest stands last
      if (values.size > most) values.delete(values.keys().next().value);
      return value;
    };
  }

  // An element; text goes in as text, whatever is in it.
  function element(tag, attributes = {}, ...children) {
    const svg = ["svg", "rect", "path", "line", "text", "title", "g"].includes(tag);
    const made = svg
      ? document.createElementNS("http://www.w3.org/2000/svg", tag)
      : document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) {
      if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
      else if (value === true) made.setAttribute(name, "");
      else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
    }
    made.append(...children.filter((child) => child !== null && child !== undefined));
    return made;
  }

  const whole = new Intl.NumberFormat("en");
  const count = (number) => whole.format(number);
  const plural = (number, word) => `${count(number)} ${word}${number === 1 ? "" : "s"}`;
  const decimals = (number, digits = 2) => (Number.isFinite(number) ? number.toFixed(digits) : "–");

  function say(text) {
    document.getElementById("live").textContent = text;
  }

  function notice(text) {
    const place = document.getElementById("notice");
    place.textContent = text;
    place.hidden = !text;
  }

  return { receive, load, kept, element, count, plural, decimals, say, notice };
})();
