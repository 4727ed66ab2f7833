// The chat page: joins the document, the server and the views. Everything that a reader can do is a
// method of `Chat`.

import { Answer } from "./answer.js";
import { Composer } from "./composer.js";
import { announce, copyFrom, h, toast } from "./dom.js";
import { openHistory } from "./history.js";
import { listen, openHelp } from "./keys.js";
import { Library } from "./library.js";
import { asking, errorNotice, unanswered } from "./notice.js";
import { openSettings, remember, samplingFields, startingSettings, theme } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { getJson } from "./stream.js";
import { exportAll, exportJson, exportMarkdown } from "./transfer.js";
import { Transcript } from "./transcript.js";
import {
  addNode,
  find,
  leaf,
  messages,
  newDocument,
  path,
  siblings,
  textOf,
  titleFrom,
} from "./tree.js";
import { Follow, Reader, wireShell } from "./shell.js";
import { welcome } from "./welcome.js";

// An answer that is being written is saved this often, in case the page is closed for long.
const SAVE_EVERY_MS = 5000;

class Chat {
  constructor(info, history) {
    this.info = info;
    this.history = history;
    /** Answers by conversation: [Answer], live or ended with an error. */
    this.answers = new Map();
    this.shelf = new Library(history, {
      live: (id) => this.live(id),
      stop: (id) => this.answersOf(id).forEach((answer) => answer.stop()),
      draw: (doc) => doc === this.doc && this.draw(),
      pickUp: (doc) => this.pickUp(doc),
      closed: (id) => id === this.doc.id && this.create(),
      list: () => this.sidebar.load(),
    });
    this.transcript = new Transcript(document.getElementById("transcript"), {
      edit: (node, text) => this.edit(node, text),
      regenerate: (node) => this.ask(find(this.doc, node.parent)),
      choose: (node) => this.choose(node),
      compare: (node) => this.compare(node),
      step: (node, by) => this.step(node, by),
      answerOf: (node) =>
        this.answersOf(this.doc.id).find((answer) => answer.nodes.includes(node)) ?? null,
      redraw: () => this.draw(),
    });
    this.composer = new Composer(document.getElementById("composer"), {
      send: (text) => this.send(text),
      stop: () => this.stop(),
      samples: (n) => this.change({ settings: { n } }),
    });
    this.composer.limit(info.limits?.n ?? 8);
    this.sidebar = new Sidebar(
      document.getElementById("conversations"),
      document.getElementById("search"),
      {
        list: (query, before) => history.list(query, before),
        rename: (id, title) => this.shelf.rename(id, title),
        remove: (id) => this.shelf.remove(id),
      },
    );
    this.follow = new Follow(document.getElementById("latest"));
    this.reader = new Reader();
  }

  // Conversations

  create() {
    history.replaceState(null, "", location.pathname);
    this.use(newDocument(startingSettings(this.info)));
    this.composer.input.focus();
  }

  async open(id) {
    try {
      const doc = await this.shelf.load(id);
      doc.settings = { ...startingSettings(this.info), ...doc.settings };
      this.use(doc);
      this.pickUp(doc);
    } catch (error) {
      this.create();
      toast(
        error.status === 404
          ? "That conversation is not here any more."
          : `It could not be opened: ${error.message}.`,
      );
    }
  }

  use(doc) {
    this.doc = doc;
    this.shelf.hold(doc);
    this.transcript.editing = null;
    this.sidebar.current = doc.id;
    this.sidebar.draw();
    this.draw();
    if (doc.nodes.length) this.follow.toEnd();
    else scrollTo(0, 0);
  }

  /** Follows answers that another page, or an earlier one, began. */
  pickUp(doc) {
    if (this.live(doc.id)) return;
    const streams = new Set();
    for (const node of doc.nodes) if (node.stream && !node.finish) streams.add(node.stream);
    for (const stream of streams) {
      const nodes = doc.nodes.filter((node) => node.stream === stream);
      const answer = this.watch(doc, find(doc, nodes[0].parent));
      answer.attach(nodes);
    }
  }

  // Turns

  send(text) {
    if (this.live(this.doc.id)) return;
    const doc = this.doc;
    const node = addNode(doc, doc.head, "user", text);
    doc.head = node.id;
    doc.title ||= titleFrom(text);
    this.follow.toEnd();
    this.ask(node);
  }

  edit(node, text) {
    const doc = this.doc;
    const next = addNode(doc, node.parent, "user", text);
    doc.head = next.id;
    this.ask(next);
  }

  ask(parent) {
    const doc = this.doc;
    if (this.live(doc.id)) return;
    doc.head = parent.id;
    const answer = this.watch(doc, parent);
    this.shelf.save(doc);
    answer.ask({
      model: this.info.model.id,
      messages: messages(doc, parent.id),
      ...samplingFields(doc.settings, this.info),
    });
  }

  /** An [Answer] whose events reach the page. */
  watch(doc, parent) {
    this.cancelNotice();
    const answer = new Answer(doc, parent?.id ?? null);
    this.answers.set(doc.id, [...this.answersOf(doc.id).filter((one) => one.live), answer]);
    const shown = () => doc === this.doc;
    const saving = setInterval(() => answer.nodes.length && this.shelf.save(doc), SAVE_EVERY_MS);
    let frame = null;
    const grown = new Set();
    answer.addEventListener("start", () => {
      this.shelf.save(doc);
      if (!shown()) return;
      location.hash = `c=${doc.id}`;
      this.draw();
    });
    answer.addEventListener("text", (event) => {
      grown.add(event.detail);
      frame ??= requestAnimationFrame(() => {
        frame = null;
        if (shown()) {
          for (const node of grown) this.transcript.update(doc, node);
          this.reader.read(answer.nodes[0]);
          this.drawComposer();
          this.follow.keep();
        }
        grown.clear();
      });
    });
    answer.addEventListener("state", () => shown() && this.draw());
    answer.addEventListener("end", () => {
      clearInterval(saving);
      this.shelf.save(doc);
      if (shown()) {
        this.draw();
        this.reader.end(answer.nodes[0], answer.state);
        this.follow.keep();
      }
    });
    if (shown()) this.draw();
    return answer;
  }

  stop() {
    for (const answer of this.answersOf(this.doc.id)) answer.stop();
    announce("Stopped");
  }

  answersOf(id) {
    return this.answers.get(id) ?? [];
  }

  live(id) {
    return this.answersOf(id).some((answer) => answer.live);
  }

  step(node, by) {
    const all = siblings(this.doc, node);
    const next = all[all.indexOf(node) + by];
    if (!next) return;
    this.transcript.closed.add(next.stream);
    this.doc.head = leaf(this.doc, next).id;
    this.shelf.save(this.doc);
    this.draw();
  }

  choose(node) {
    this.transcript.closed.add(node.stream);
    this.doc.head = node.id;
    this.shelf.save(this.doc);
    this.draw();
    this.composer.input.focus();
  }

  compare(node) {
    this.transcript.closed.delete(node.stream);
    this.doc.head = node.id;
    this.shelf.save(this.doc);
    this.draw();
  }

  change({ system, settings }) {
    if (system !== undefined) this.doc.system = system;
    if (settings) {
      Object.assign(this.doc.settings, settings);
      remember(this.doc.settings);
    }
    if (this.doc.nodes.length) this.shelf.save(this.doc);
    this.drawComposer();
  }

  // Drawing

  draw() {
    const doc = this.doc;
    const title = doc.title || "New conversation";
    document.title = doc.title ? `${doc.title} · nanochat` : "nanochat";
    document.getElementById("title").textContent = title;
    const empty = doc.nodes.length === 0;
    document.body.classList.toggle("empty", empty);
    const place = document.getElementById("welcome");
    if (!empty) place.replaceChildren();
    else if (!place.firstChild)
      place.append(welcome(this.info, this.history.place, (text) => this.send(text)));
    this.transcript.show(doc, this.notice());
    this.drawComposer();
  }

  notice() {
    const doc = this.doc;
    const answer = this.answersOf(doc.id).at(-1);
    const turns = path(doc);
    const last = turns.at(-1);
    if (
      answer?.state === "failed" &&
      answer.doc === doc &&
      [last?.id, last?.parent].includes(answer.parent)
    ) {
      answer.notice ??= errorNotice(answer.error, () => this.ask(find(doc, answer.parent)));
      return (answer.place ??= h("div", { class: "turn" }, answer.notice));
    }
    if (answer?.live && !answer.nodes.length) return asking();
    if (last?.role === "user" && !this.live(doc.id) && !this.transcript.editing)
      return h(
        "div",
        { class: "turn" },
        unanswered(() => this.ask(last)),
      );
    return null;
  }

  cancelNotice() {
    for (const answer of this.answersOf(this.doc.id)) answer.notice?.cancel();
  }

  drawComposer() {
    const doc = this.doc;
    const answers = this.answersOf(doc.id);
    const answer = answers.find((one) => one.live);
    const growing = answer ? Math.round(answer.tokens / Math.max(1, answer.nodes.length)) : 0;
    const measured = path(doc).findLast((node) => node.usage)?.usage;
    this.composer.show({
      live: this.live(doc.id),
      n: doc.settings.n,
      used: (measured ? measured.prompt_tokens + measured.completion_tokens : 0) + growing,
      context: measured?.context ?? this.info.model.context,
    });
  }

  // Keys

  lastOf(role) {
    return path(this.doc).findLast((node) => node.role === role);
  }

  keys() {
    const { transcript, composer } = this;
    return {
      compose: () => composer.input.focus(),
      create: () => this.create(),
      search: () => {
        this.shell.show(true);
        document.getElementById("search").focus();
      },
      sidebar: () => this.shell.toggle(),
      settings: () => this.settings(),
      theme: () => announce(`Appearance: ${theme.next()}`),
      regenerate: () => {
        const node = this.lastOf("assistant");
        if (node) this.ask(find(this.doc, node.parent));
      },
      edit: () => {
        const node = this.lastOf("user");
        if (node && !this.live(this.doc.id)) transcript.edit(node);
      },
      copy: () => {
        const button = document.querySelector("article.assistant:last-of-type [data-act^=copy]");
        const node = this.lastOf("assistant");
        if (button && node) copyFrom(button, textOf(node));
      },
      previous: () => this.lastVersion(-1),
      next: () => this.lastVersion(1),
      help: openHelp,
      escape: (writing) => {
        if (this.shell.closeDrawer()) return true;
        if (this.live(this.doc.id)) return (this.stop(), true);
        if (writing) return (writing.blur(), true);
        return false;
      },
    };
  }

  lastVersion(by) {
    const node = path(this.doc).findLast((one) => siblings(this.doc, one).length > 1);
    if (node) this.step(node, by);
  }

  settings() {
    openSettings(this.doc, this.info, (patch) => this.change(patch));
  }

  async start() {
    this.shell = wireShell({
      create: () => this.create(),
      settings: () => this.settings(),
      help: openHelp,
      markdown: () => exportMarkdown(this.doc),
      json: () => exportJson(this.doc),
      all: () => exportAll(this.history),
      import: (files) => this.shelf.import(files),
      runs: this.info.runs,
    });
    listen(this.keys());
    addEventListener("hashchange", () => this.route());
    document.addEventListener("visibilitychange", () => document.hidden || this.sidebar.load());
    await this.route();
    this.sidebar.load();
  }

  route() {
    const id = /^#c=([\w-]+)$/.exec(location.hash)?.[1];
    if (id && id === this.doc?.id) return null;
    return id ? this.open(id) : this.create();
  }
}

async function start() {
  const place = document.getElementById("welcome");
  try {
    const info = await getJson("/api/info");
    const chat = new Chat(info, await openHistory(info));
    await chat.start();
    document.body.classList.add("ready");
    // Nothing can be focused before. On a phone the keyboard would cover the page.
    if (matchMedia("(pointer: fine)").matches) chat.composer.input.focus();
  } catch (error) {
    place.replaceChildren(
      errorNotice(
        error.status === undefined ? Object.assign(error, { status: 500 }) : error,
        start,
      ),
    );
    if (error.status === 500) console.error(error);
  }
}

start();
