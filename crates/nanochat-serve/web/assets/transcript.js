// The turns of a conversation on the page. Elements of turns are kept from one drawing to the next,
// so that a growing answer neither jumps nor loses a selection.

import { copyFrom, h, iconButton } from "./dom.js";
import { showMarkdown } from "./markdown.js";
import { path, samples, siblings, textOf } from "./tree.js";

const FINISH = {
  length: "reached the longest answer",
  stopped: "stopped",
  error: "cut off",
};

// A shorter wait in the queue is not worth a line.
const LONG_QUEUE_MS = 100;

export class Transcript {
  /**
   * `actions`: edit(node, text), regenerate(node), choose(node), step(node, by), compare(node), and
   * answerOf(node), the [Answer] that writes it or null.
   */
  constructor(place, actions) {
    this.place = place;
    this.actions = actions;
    this.views = new Map();
    this.editing = null;
    /** Groups of samples that the reader closed by choosing one. */
    this.closed = new Set();
  }

  show(doc, notice = null) {
    const focus = this.focused();
    if (this.doc !== doc) {
      this.place.replaceChildren();
      this.views.clear();
      this.doc = doc;
    }
    const items = path(doc).map((node) => this.item(doc, node));
    const wanted = new Set(items.map((item) => item.key));
    for (const [key, view] of this.views) {
      if (wanted.has(key)) continue;
      view.element.remove();
      this.views.delete(key);
    }
    let at = this.place.firstChild;
    for (const item of items) {
      const view = this.views.get(item.key) ?? this.create(item);
      if (view.element === at) at = at.nextSibling;
      else this.place.insertBefore(view.element, at);
      this.refresh(view, item);
    }
    this.notice?.remove();
    this.notice = notice;
    if (notice) this.place.append(notice);
    this.restore(focus);
  }

  /** Redraws one turn that grew. */
  update(doc, node) {
    const item = this.item(doc, node);
    const view = this.views.get(item.key);
    if (view) this.refresh(view, item, node);
  }

  item(doc, node) {
    const group = samples(doc, node);
    const together = group.length > 1 && doc.head === node.id && !this.closed.has(node.stream);
    const key = together
      ? `group ${node.stream}`
      : `${node.id}${this.editing === node.id ? " edit" : ""}`;
    return { doc, node, group: together ? group : null, key };
  }

  create(item) {
    const { node, group } = item;
    const view = { bodies: new Map(), side: h("div", { class: "side" }), key: item.key };
    const label = node.role === "user" ? "You" : "Model";
    const who = h("h2", { class: "who" }, label);
    let said;
    if (this.editing === node.id) said = this.editor(node);
    else if (group)
      said = h(
        "div",
        { class: `samples of${group.length}` },
        group.map((one, i) => this.card(view, one, i)),
      );
    else said = this.body(view, node);
    view.element = h(
      "article",
      { class: `turn ${node.role}${group ? " grouped" : ""}`, "aria-label": label },
      who,
      said,
      view.side,
    );
    this.views.set(item.key, view);
    return view;
  }

  body(view, node) {
    const body = h("div", { class: "said" });
    view.bodies.set(node.id, body);
    return body;
  }

  card(view, node, i) {
    const foot = h("footer", {});
    const card = h(
      "section",
      { class: "sample", "aria-label": `Sample ${i + 1}` },
      h("h3", { class: "who" }, `Sample ${i + 1}`),
      this.body(view, node),
      foot,
    );
    (view.cards ??= new Map()).set(node.id, { card, foot });
    return card;
  }

  refresh(view, item, only = null) {
    const { doc, node, group } = item;
    for (const one of group ?? [node]) {
      if (only && one !== only) continue;
      const body = view.bodies.get(one.id);
      if (body) drawParts(body, one, this.actions.answerOf(one)?.live ?? false);
      if (group) this.refreshCard(view.cards.get(one.id), doc, one);
    }
    const side = this.editing === node.id ? [] : this.side(doc, node, group);
    fillIfChanged(view.side, side);
  }

  refreshCard({ card, foot }, doc, node) {
    card.classList.toggle("current", doc.head === node.id);
    const live = this.actions.answerOf(node)?.live;
    const copyButton = iconButton(
      "copy",
      "Copy",
      (event) => copyFrom(event.currentTarget, textOf(node)),
      {
        "data-act": `copy-${node.id}`,
      },
    );
    fillIfChanged(foot, [
      h(
        "button",
        {
          type: "button",
          class: "outlined",
          disabled: Boolean(live),
          "data-act": `choose-${node.id}`,
          onclick: () => this.actions.choose(node),
        },
        "Continue with this",
      ),
      copyButton,
      FINISH[node.finish] && !live ? h("span", { class: "hint" }, FINISH[node.finish]) : null,
    ]);
  }

  side(doc, node, group) {
    const answer = this.actions.answerOf(node);
    const live = answer?.live ?? false;
    const act = (name, label, icon, run) => iconButton(icon, label, run, { "data-act": name });
    const buttons = [];
    if (node.role === "user") {
      buttons.push(act("edit", "Edit and ask again", "edit", () => this.edit(node)));
    } else if (!live) {
      buttons.push(act("again", "Answer again", "again", () => this.actions.regenerate(node)));
    }
    if (!group && !live) {
      buttons.push(
        act("copy", "Copy", "copy", (event) => copyFrom(event.currentTarget, textOf(node))),
      );
    }
    if (!group && !live && samples(doc, node).length > 1) {
      buttons.push(
        act("compare", "Show samples side by side", "columns", () => this.actions.compare(node)),
      );
    }
    return [
      this.versions(doc, node, live, group),
      h("div", { class: "acts" }, buttons),
      node.role === "assistant" ? facts(node, answer, group?.length ?? 1) : null,
    ];
  }

  versions(doc, node, live, group) {
    const all = siblings(doc, node);
    if (all.length <= (group?.length ?? 1)) return null;
    const at = all.indexOf(node);
    return h(
      "div",
      { class: "versions", role: "group", "aria-label": "Versions of this turn" },
      iconButton("left", "Previous version", () => this.actions.step(node, -1), {
        disabled: live || at === 0,
        "data-act": "previous",
      }),
      h("span", {}, `${at + 1}/${all.length}`),
      iconButton("right", "Next version", () => this.actions.step(node, 1), {
        disabled: live || at === all.length - 1,
        "data-act": "next",
      }),
    );
  }

  edit(node) {
    this.editing = node.id;
    this.actions.redraw();
    this.place.querySelector(".editor textarea")?.focus();
  }

  endEdit() {
    if (!this.editing) return false;
    this.editing = null;
    this.actions.redraw();
    return true;
  }

  editor(node) {
    const text = h("textarea", { rows: 3, "aria-label": "Your message" });
    text.value = textOf(node);
    const send = (event) => {
      event?.preventDefault();
      const value = text.value.trim();
      if (!value) return;
      this.editing = null;
      this.actions.edit(node, value);
    };
    text.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) send(event);
      if (event.key === "Escape") {
        event.preventDefault();
        this.endEdit();
      }
    });
    return h(
      "form",
      { class: "editor", onsubmit: send },
      text,
      h(
        "div",
        { class: "row" },
        h("button", { type: "submit", class: "filled" }, "Ask again"),
        h("button", { type: "button", class: "outlined", onclick: () => this.endEdit() }, "Cancel"),
        h("span", { class: "hint" }, "The earlier version is kept."),
      ),
    );
  }

  /** Which button of which turn has the focus, so that a redrawn one gets it back. */
  focused() {
    const act = document.activeElement?.dataset?.act;
    const turn = act && document.activeElement.closest(".turn");
    return turn && this.place.contains(turn)
      ? { act, index: [...this.place.children].indexOf(turn) }
      : null;
  }

  restore(focus) {
    if (!focus || document.activeElement !== document.body) return;
    const turn = this.place.children[focus.index];
    const same = turn?.querySelector(`[data-act="${focus.act}"]:not(:disabled)`);
    (same ?? turn?.querySelector("[data-act]:not(:disabled)"))?.focus();
  }
}

function drawParts(body, node, live) {
  if (node.role === "user") {
    body.textContent = textOf(node);
    body.classList.toggle("long", body.textContent.length > 240);
    return;
  }
  const parts = joinTools(node.parts);
  parts.forEach((part, i) => {
    let element = body.children[i];
    if (!element || element.dataset.type !== part.type) {
      element = h("div", { class: part.type === "text" ? "md" : "tool" });
      element.dataset.type = part.type;
      if (body.children[i]) body.children[i].replaceWith(element);
      else body.append(element);
    }
    if (element.shown === part.text) return;
    element.shown = part.text;
    // After a tool's block a sentence goes on: "42. " there begins no list.
    const text = i > 0 ? part.text.replace(/^(\s*\d+)([.)])(?=\s|$)/, "$1\\$2") : part.text;
    if (part.type === "text") showMarkdown(element, text);
    else element.replaceChildren(...tool(part));
  });
  while (body.childElementCount > parts.length) body.lastChild.remove();
  if (live && parts.length === 0) body.append(waiting());
  if (!live && parts.length === 0)
    body.append(h("p", { class: "hint", "data-type": "empty" }, "The model said nothing."));
  body.classList.toggle("live", live);
}

/** A call and its answer as one block. */
function joinTools(parts) {
  const joined = [];
  for (const part of parts) {
    const last = joined.at(-1);
    if (part.type === "tool_call")
      joined.push({ type: "tool", text: part.text, call: part.text, output: null });
    else if (part.type === "tool_output" && last?.type === "tool" && last.output === null) {
      last.output = part.text;
      last.text += ` = ${part.text}`;
    } else if (part.type === "tool_output")
      joined.push({ type: "tool", text: part.text, call: "", output: part.text });
    else joined.push(part);
  }
  return joined;
}

const tool = ({ call, output }) =>
  [
    h("span", { class: "tool-name" }, "Calculator"),
    h("code", {}, call),
    output === null ? null : h("span", { class: "equals" }, "="),
    output === null ? null : h("code", { class: "result" }, output),
  ].filter(Boolean);

const waiting = () =>
  h(
    "p",
    { class: "waiting", "data-type": "waiting" },
    h("span"),
    h("span"),
    h("span"),
    h("b", { class: "unseen" }, "Waiting for the first word"),
  );

/** Figures of an answer: as the server gave them at its end, until then as counted here. */
function facts(node, answer, n) {
  const rows = answer?.live ? counted(answer) : given(node.usage ?? {}, n);
  if (n === 1 && !answer?.live && FINISH[node.finish]) rows.push(FINISH[node.finish]);
  return h(
    "ul",
    { class: "facts" },
    rows.filter(Boolean).map((row) => h("li", {}, row)),
  );
}

function counted({ state, tokens, tokensPerSecond }) {
  const speed = tokensPerSecond ? `${figure(tokensPerSecond)} tok/s, ` : "";
  return [state === "reconnecting" && "reconnecting…", tokens > 0 && `${speed}${tokens} tokens`];
}

function given({ tokens_per_sec, completion_tokens, first_token_ms, queued_ms, forgot }, n) {
  const speed = tokens_per_sec ? `${figure(tokens_per_sec)} tok/s, ` : "";
  return [
    completion_tokens != null && `${speed}${completion_tokens * n} tokens`,
    first_token_ms != null && `first after ${figure(first_token_ms)} ms`,
    queued_ms >= LONG_QUEUE_MS && `queued ${figure(queued_ms)} ms`,
    forgot && (forgot === 1 ? "oldest turn forgotten" : `${forgot} oldest turns forgotten`),
  ];
}

const figure = (value) =>
  value >= 100 ? Math.round(value).toLocaleString("en") : value.toPrecision(2);

/** Replaces children only if they would read differently: a button that is pressed stays. */
function fillIfChanged(place, children) {
  const next = h("div", {}, children);
  if (place.innerHTML !== next.innerHTML) place.replaceChildren(...next.childNodes);
}
