// Elements from plain values. Text only ever becomes text nodes: nothing here, or anywhere in the
// page, parses a string as HTML.

/** `h("p", {class: "a", onclick: f}, "text", child)`; what is `null` or `false` is left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes ?? {})) {
    if (value == null || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "class") element.className = value;
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

const SVG = "http://www.w3.org/2000/svg";

/** The same for SVG; every attribute is set as text. */
export function svg(tag, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value != null && value !== false) element.setAttribute(name, String(value));
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

// Strokes on a 20 x 20 field.
const PATHS = {
  plus: "M10 4v12M4 10h12",
  menu: "M3 6h14M3 10h14M3 14h9",
  sliders: "M3 6h7M14 6h3M3 14h3M10 14h7M12 4v4M8 12v4",
  send: "M10 16V4M5 9l5-5 5 5",
  stop: "M6 6h8v8H6z",
  copy: "M7 7h9v9H7zM4 13V4h9",
  check: "M4 10.5l4 4 8-9",
  edit: "M4 16l1-4 8-8 3 3-8 8zM11.5 5.5l3 3",
  again: "M15.5 8A6 6 0 1 0 16 11.5M16 4v4h-4",
  left: "M12 5l-5 5 5 5",
  right: "M8 5l5 5-5 5",
  down: "M10 4v12M5 11l5 5 5-5",
  trash: "M4 6h12M8 6V4h4v2M6 6l.7 10h6.6L14 6",
  close: "M5 5l10 10M15 5L5 15",
  columns: "M3 4h6v12H3zM11 4h6v12h-6z",
  help: "M7.5 7.5a2.5 2.5 0 1 1 3.6 2.3c-.8.4-1.1.9-1.1 1.7M10 14.6v.4",
  theme: "M10 3a7 7 0 1 0 0 14zM10 3a7 7 0 0 1 0 14",
  chart: "M3 4v12h14M6 12l3-4 3 2 4-5",
};

/** An icon that screen readers pass over; its button carries the name. */
export function icon(name) {
  return svg(
    "svg",
    { class: "icon", viewBox: "0 0 20 20", "aria-hidden": "true", focusable: "false" },
    svg("path", { d: PATHS[name] }),
  );
}

/** A button with an icon and a name; `label` is shown only if `text` is true. */
export function iconButton(name, label, onclick, { text = false, ...rest } = {}) {
  return h(
    "button",
    {
      type: "button",
      class: text ? "quiet" : "quiet square",
      title: text ? null : label,
      onclick,
      ...rest,
    },
    icon(name),
    text ? label : h("span", { class: "unseen" }, label),
  );
}

/** Copies text and says so on the button for a moment. */
export async function copyFrom(button, text) {
  const done = await copy(text);
  const old = button.querySelector(".icon");
  if (!old) return;
  old.replaceWith(icon(done ? "check" : "close"));
  announce(done ? "Copied" : "Copying was refused by the browser");
  setTimeout(() => button.querySelector(".icon")?.replaceWith(old), 1500);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Plain http on another host has no clipboard API: select a hidden field instead.
    const field = h("textarea", { class: "unseen", "aria-hidden": "true", tabindex: "-1" });
    field.value = text;
    const focused = document.activeElement;
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    focused?.focus();
    return done;
  }
}

/** Says `text` in the live region, for screen readers. */
export function announce(text) {
  const region = document.getElementById("announcer");
  if (region) region.append(h("p", {}, text));
  while (region?.childElementCount > 6) region.firstChild.remove();
}

/** A message at the foot of the page that leaves by itself, with one thing to do about it. */
export function toast(text, action, act) {
  const place = document.getElementById("toasts");
  const close = () => note.remove();
  const note = h(
    "div",
    { class: "toast" },
    h("span", {}, text),
    action && h("button", { type: "button", onclick: () => (close(), act()) }, action),
    iconButton("close", "Dismiss", close),
  );
  place.append(note);
  announce(text);
  setTimeout(close, action ? 10000 : 5000);
}

/** Hands a text to the browser as a file. */
export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  const link = h("a", { href: url, download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
}
