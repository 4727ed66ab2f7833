// Sampling and preferences: what can be set, where it is remembered, and the panel that shows it.

import { h, iconButton } from "./dom.js";

/** Key in the request, name, what it does, and the field's limits. */
export const SAMPLING = [
  [
    "temperature",
    "Temperature",
    "0 always takes the likeliest token; higher is more varied.",
    { min: 0, max: 2, step: 0.05 },
  ],
  [
    "top_k",
    "Top k",
    "Draw among the k likeliest tokens; 0 for all.",
    { min: 0, max: 1000, step: 1 },
  ],
  [
    "top_p",
    "Top p",
    "Draw among the likeliest tokens that together reach p; 1 for all.",
    { min: 0.01, max: 1, step: 0.01 },
  ],
  [
    "min_p",
    "Min p",
    "Leave out tokens less likely than p times the likeliest; 0 for none.",
    { min: 0, max: 1, step: 0.01 },
  ],
  [
    "repetition_penalty",
    "Repetition penalty",
    "Above 1, what was said already becomes less likely.",
    { min: 1, max: 2, step: 0.05 },
  ],
  ["max_tokens", "Longest answer", "In tokens.", { min: 1, max: 4096, step: 1 }],
  [
    "seed",
    "Seed",
    "The same seed and settings give the same answer; empty draws a new one.",
    { min: 0, max: 2 ** 32 - 1, step: 1 },
  ],
];

const NEUTRAL = { min_p: 0, repetition_penalty: 1, seed: null, n: 1, tools: true };
const STORED = "nanochat.settings";

/** The server's defaults with what the reader last chose. */
export function startingSettings(info) {
  return { ...NEUTRAL, ...info.defaults, ...read(STORED) };
}

export const remember = (settings) => localStorage.setItem(STORED, JSON.stringify(settings));
export const defaultSettings = (info) => ({ ...NEUTRAL, ...info.defaults });

/** Fields of the request; what is neutral is left out. */
export function samplingFields(settings, info) {
  const fields = {};
  for (const [key, , , { min, max }] of SAMPLING) {
    const value = settings[key];
    if (value == null || value === "" || !Number.isFinite(Number(value))) continue;
    if (key in NEUTRAL && Number(value) === NEUTRAL[key]) continue;
    fields[key] = Math.min(limit(key, max, info), Math.max(min, Number(value)));
  }
  const n = Math.min(info.limits?.n ?? 8, Math.max(1, Number(settings.n) || 1));
  if (n > 1) fields.n = n;
  // A conversation that outgrows the context goes on without its oldest turns.
  fields.nanochat = { truncate: true, ...(settings.tools === false ? { tools: false } : {}) };
  return fields;
}

const limit = (key, max, info) => (key === "max_tokens" ? (info.limits?.max_tokens ?? max) : max);

function read(key) {
  try {
    return JSON.parse(localStorage.getItem(key)) ?? {};
  } catch {
    return {};
  }
}

export const theme = {
  current: () => document.documentElement.dataset.theme ?? "auto",
  set(value) {
    if (value === "auto") {
      localStorage.removeItem("nanochat.theme");
      delete document.documentElement.dataset.theme;
    } else {
      localStorage.setItem("nanochat.theme", value);
      document.documentElement.dataset.theme = value;
    }
  },
  next() {
    const order = ["auto", "light", "dark"];
    const value = order[(order.indexOf(theme.current()) + 1) % order.length];
    theme.set(value);
    return value;
  },
};

export const shortcutsOn = {
  get: () => localStorage.getItem("nanochat.shortcuts") !== "off",
  set: (on) => localStorage.setItem("nanochat.shortcuts", on ? "on" : "off"),
};

/**
 * Shows the panel for one conversation. `change(patch)` is called with what was changed:
 * `{system}` or `{settings}`.
 */
export function openSettings(doc, info, change) {
  const dialog = document.getElementById("settings");
  const body = h(
    "form",
    { method: "dialog", class: "sheet" },
    h(
      "header",
      {},
      h("h2", { id: "settings-title" }, "Settings"),
      iconButton("close", "Close settings", () => dialog.close()),
    ),
    h("h3", {}, "This conversation"),
    h(
      "div",
      { class: "field" },
      h("label", { for: "set-system" }, "System prompt"),
      h(
        "textarea",
        {
          id: "set-system",
          rows: 3,
          "aria-describedby": "about-system",
          onchange: (event) => change({ system: event.target.value }),
        },
        doc.system,
      ),
      h(
        "p",
        { class: "hint", id: "about-system" },
        "Stands before the first turn. Small models may ignore it.",
      ),
    ),
    SAMPLING.map((row) => field(row, doc, info, change)),
    h(
      "label",
      { class: "check" },
      h("input", {
        type: "checkbox",
        checked: doc.settings.tools !== false,
        onchange: (event) => change({ settings: { tools: event.target.checked } }),
      }),
      "Calculator: the model may compute what it cannot say",
    ),
    h(
      "button",
      {
        type: "button",
        class: "outlined",
        onclick: () => {
          change({ settings: defaultSettings(info) });
          openSettings(doc, info, change);
        },
      },
      "Back to the server's defaults",
    ),
    h("h3", {}, "This browser"),
    themeChoice(),
    h(
      "label",
      { class: "check" },
      h("input", {
        type: "checkbox",
        checked: shortcutsOn.get(),
        onchange: (event) => shortcutsOn.set(event.target.checked),
      }),
      "Single-key shortcuts (“?” lists them)",
    ),
  );
  dialog.replaceChildren(body);
  if (!dialog.open) dialog.showModal();
}

function field([key, name, hint, { min, max, step }], doc, info, change) {
  const top = limit(key, max, info);
  const given = doc.settings[key];
  const set = (value) => {
    const number = value === "" ? null : Number(value);
    change({ settings: { [key]: number === null ? null : Math.min(top, Math.max(min, number)) } });
  };
  const number = h("input", {
    id: `set-${key}`,
    type: "number",
    min: String(min),
    max: String(top),
    step: String(step),
    value: given == null ? "" : String(given),
    inputmode: "decimal",
    "aria-describedby": `about-${key}`,
    onchange: (event) => {
      set(event.target.value);
      if (slider) slider.value = event.target.value;
    },
  });
  const slider = ["seed", "max_tokens", "top_k"].includes(key)
    ? null
    : h("input", {
        type: "range",
        min: String(min),
        max: String(top),
        step: String(step),
        value: String(given ?? min),
        "aria-label": name,
        oninput: (event) => {
          number.value = event.target.value;
          set(event.target.value);
        },
      });
  return h(
    "div",
    { class: "field" },
    h("label", { for: `set-${key}` }, name),
    h("div", { class: "row" }, slider, number),
    h("p", { class: "hint", id: `about-${key}` }, hint),
  );
}

function themeChoice() {
  const options = [
    ["auto", "As the system"],
    ["light", "Light"],
    ["dark", "Dark"],
  ];
  return h(
    "fieldset",
    { class: "choice" },
    h("legend", {}, "Appearance"),
    options.map(([value, name]) =>
      h(
        "label",
        {},
        h("input", {
          type: "radio",
          name: "theme",
          value,
          checked: theme.current() === value,
          onchange: () => theme.set(value),
        }),
        name,
      ),
    ),
  );
}
