// Keys: one table for what they do and for the list that "?" shows.

import { h, iconButton } from "./dom.js";
import { shortcutsOn } from "./settings.js";

/** Key, what it does, name of the action. Single keys act only outside of text fields. */
const KEYS = [
  ["/", "Write", "compose"],
  ["n", "New conversation", "create"],
  ["k", "Search conversations", "search"],
  ["b", "Show or hide the list of conversations", "sidebar"],
  ["s", "Settings", "settings"],
  ["t", "Dark, light, or as the system", "theme"],
  ["r", "Answer again", "regenerate"],
  ["e", "Edit your last message", "edit"],
  ["c", "Copy the last answer", "copy"],
  ["[", "Previous version of the last turn", "previous"],
  ["]", "Next version of the last turn", "next"],
  ["?", "This list", "help"],
];

const ALWAYS = [
  ["Enter", "Send"],
  ["Shift + Enter", "New line"],
  ["Esc", "Stop the answer; leave a field; close a panel"],
  ["Ctrl or ⌘ + K", "Search conversations, from anywhere"],
];

export function listen(actions) {
  document.addEventListener("keydown", (event) => {
    if (event.defaultPrevented || event.isComposing) return;
    const open = document.querySelector("dialog[open]");
    if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "k" && !open) {
      event.preventDefault();
      return actions.search();
    }
    if (event.ctrlKey || event.metaKey || event.altKey || open) return;
    const writing = event.target.closest?.("input, textarea, select, [contenteditable]");
    if (event.key === "Escape") {
      if (actions.escape(writing)) event.preventDefault();
      return;
    }
    if (writing || !shortcutsOn.get()) return;
    const row = KEYS.find(([key]) => key === event.key);
    if (!row) return;
    event.preventDefault();
    actions[row[2]]?.();
  });
}

export function openHelp() {
  const dialog = document.getElementById("help");
  const rows = (list) =>
    list.map(([key, what]) => h("div", {}, h("dt", {}, h("kbd", {}, key)), h("dd", {}, what)));
  dialog.replaceChildren(
    h(
      "div",
      { class: "sheet" },
      h(
        "header",
        {},
        h("h2", { id: "help-title" }, "Keys"),
        iconButton("close", "Close the list of keys", () => dialog.close()),
      ),
      h("dl", { class: "keys" }, rows(ALWAYS)),
      h(
        "h3",
        {},
        shortcutsOn.get()
          ? "Outside of text fields"
          : "Outside of text fields (turned off in Settings)",
      ),
      h("dl", { class: "keys" }, rows(KEYS)),
    ),
  );
  dialog.showModal();
}
