// The list of conversations: grouped by day, searched, renamed, deleted.

import { h, iconButton } from "./dom.js";

const DAY = 86_400_000;

export class Sidebar {
  /** `actions`: open(id), rename(id, title), remove(id), list(query, before). */
  constructor(place, search, actions) {
    this.place = place;
    this.search = search;
    this.actions = actions;
    this.current = null;
    this.items = [];
    this.more = false;
    this.renaming = null;
    let timer = null;
    search.addEventListener("input", () => {
      clearTimeout(timer);
      timer = setTimeout(() => this.load(), 150);
    });
    search.addEventListener("keydown", (event) => {
      if (event.key === "ArrowDown") {
        event.preventDefault();
        place.querySelector("a")?.focus();
      }
    });
    place.addEventListener("keydown", (event) => this.arrows(event));
  }

  /** Reads the list again; of two loads that overlap, the later one counts. */
  async load() {
    const query = this.search.value.trim();
    const turn = (this.turn = (this.turn ?? 0) + 1);
    try {
      const page = await this.actions.list(query, null);
      if (turn !== this.turn) return;
      this.items = page.conversations;
      this.more = page.more;
      this.error = null;
    } catch (error) {
      if (turn !== this.turn) return;
      this.error = error.message;
    }
    this.draw();
  }

  async loadMore() {
    const page = await this.actions.list(
      this.search.value.trim(),
      this.items.at(-1)?.updated ?? null,
    );
    this.items.push(...page.conversations);
    this.more = page.more && page.conversations.length > 0;
    this.draw();
  }

  draw() {
    if (this.renaming) return;
    const held = this.place.contains(document.activeElement)
      ? document.activeElement.dataset.key
      : null;
    const groups = [];
    for (const item of this.items) {
      const name = dayName(item.updated, Date.now());
      if (groups.at(-1)?.name !== name) groups.push({ name, items: [] });
      groups.at(-1).items.push(item);
    }
    const query = this.search.value.trim();
    const empty = query ? `Nothing found for “${query}”.` : "Conversations are listed here.";
    this.place.replaceChildren(
      ...(this.error
        ? [h("p", { class: "hint" }, `The list could not be read: ${this.error}.`)]
        : []),
      ...(!this.error && !groups.length ? [h("p", { class: "hint" }, empty)] : []),
      ...groups.map(({ name, items }) =>
        h(
          "section",
          {},
          h("h3", {}, name),
          h(
            "ul",
            {},
            items.map((item) => this.row(item, query)),
          ),
        ),
      ),
      ...(this.more
        ? [
            h(
              "button",
              { type: "button", class: "outlined", onclick: () => this.loadMore() },
              "Show more",
            ),
          ]
        : []),
    );
    if (held) this.place.querySelector(`[data-key="${CSS.escape(held)}"]`)?.focus();
  }

  row(item, query) {
    const title = item.title || "Untitled";
    const here = item.id === this.current;
    return h(
      "li",
      { class: here ? "here" : null },
      h(
        "a",
        {
          href: `#c=${item.id}`,
          "aria-current": here ? "page" : null,
          "data-key": `open ${item.id}`,
          ondblclick: (event) => (event.preventDefault(), this.rename(item)),
        },
        h("span", { class: "title" }, title),
        query && item.snippet ? h("span", { class: "snippet" }, item.snippet) : null,
      ),
      h(
        "div",
        { class: "acts" },
        iconButton("edit", `Rename “${title}”`, () => this.rename(item), {
          "data-key": `rename ${item.id}`,
        }),
        iconButton("trash", `Delete “${title}”`, () => this.remove(item), {
          "data-key": `delete ${item.id}`,
        }),
      ),
    );
  }

  rename(item) {
    const link = this.place.querySelector(`[data-key="${CSS.escape(`open ${item.id}`)}"]`);
    const row = link?.parentElement;
    if (!row) return;
    const field = h("input", {
      type: "text",
      value: item.title,
      maxlength: 200,
      "aria-label": "Title",
    });
    let ended = false;
    const end = (save) => {
      if (ended) return;
      ended = true;
      this.renaming = null;
      const title = field.value.trim();
      if (save && title && title !== item.title) {
        item.title = title;
        this.actions.rename(item.id, title);
      }
      this.draw();
      this.place.querySelector(`[data-key="${CSS.escape(`open ${item.id}`)}"]`)?.focus();
    };
    field.addEventListener("keydown", (event) => {
      event.stopPropagation();
      if (event.key === "Enter" && !event.isComposing) end(true);
      if (event.key === "Escape") end(false);
    });
    field.addEventListener("blur", () => end(true));
    this.renaming = item.id;
    row.replaceChildren(field);
    field.select();
  }

  remove(item) {
    const at = this.items.indexOf(item);
    this.items.splice(at, 1);
    this.draw();
    const next = this.items[at] ?? this.items[at - 1];
    const key = next && CSS.escape(`open ${next.id}`);
    (key ? this.place.querySelector(`[data-key="${key}"]`) : this.search)?.focus();
    this.actions.remove(item.id);
  }

  arrows(event) {
    if (!["ArrowDown", "ArrowUp"].includes(event.key) || !event.target.matches("a")) return;
    event.preventDefault();
    const links = [...this.place.querySelectorAll("a")];
    const at = links.indexOf(event.target) + (event.key === "ArrowDown" ? 1 : -1);
    if (at < 0) this.search.focus();
    else links[at]?.focus();
  }
}

/** Today, Yesterday, Last 7 days, or the month, by the reader's own midnight. */
export function dayName(iso, now) {
  const midnight = new Date(now).setHours(0, 0, 0, 0);
  const time = new Date(iso).getTime();
  if (!(time < midnight)) return "Today";
  if (time >= midnight - DAY) return "Yesterday";
  if (time >= midnight - 7 * DAY) return "Last 7 days";
  return new Date(time).toLocaleDateString("en", { month: "long", year: "numeric" });
}
