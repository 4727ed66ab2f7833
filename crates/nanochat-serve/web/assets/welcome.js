// What stands where turns will stand: who is here, and a few things to ask.

import { h } from "./dom.js";

/** Things that a model trained on the built-in corpus can do. */
const EXAMPLES = [
  ["Sums, with the calculator", "What is 12 + 30?"],
  ["Stories", "Tell me a story about a fox."],
  ["Facts", "What is the capital of France?"],
  ["Itself", "What can you do?"],
];

export function welcome(info, place, ask) {
  const { model } = info;
  return h(
    "section",
    { class: "welcome" },
    h("h2", {}, "A small model, trained from nothing."),
    h(
      "p",
      { class: "lead" },
      `${model.id} has ${millions(model.parameters)} parameters in ${model.n_layer} layers `,
      "and sees ",
      `${model.context.toLocaleString("en")} tokens at once. It runs on this server`,
      info.device ? ` (${info.device})` : "",
      " and nothing you write goes anywhere else. It is often wrong, and quick about it.",
    ),
    h("h3", {}, "Ask it something"),
    h(
      "ul",
      { class: "examples" },
      EXAMPLES.map(([kind, text]) =>
        h(
          "li",
          {},
          h(
            "button",
            { type: "button", onclick: () => ask(text) },
            h("span", { class: "kind" }, kind),
            h("span", { class: "ask" }, text),
          ),
        ),
      ),
    ),
    h("p", { class: "hint" }, WHERE[place]),
  );
}

const WHERE = {
  server: "Conversations are kept by the server.",
  browser: "Conversations are kept in this browser only; export them from the list.",
  tab: "This browser keeps nothing: conversations end with this tab, unless you export them.",
};

export function millions(count) {
  if (count >= 1e9) return `${(count / 1e9).toPrecision(3)} billion`;
  if (count >= 1e6) return `${(count / 1e6).toPrecision(3)} million`;
  return count.toLocaleString("en");
}
