// The chat page: joins the document, the server and the views. Everything that a reader can do is a
// method of `Chat`.

import { Answer } from "./answer.js";
import { Composer } from "./composer.js";
import { announce, copyFrom, h, toast } from "./dom.js";
import { openHistory, Saver } from "./history.js";
import { listen, openHelp } from "./keys.js";
import { asking, errorNotice, unanswered } from "./notice.js";
import { openSettings, remember, samplingFields, startingSettings, theme } from "./settings.js";
import { Sidebar } from "./sidebar.js";
import { getJson } from "./stream.js";
import { exportAll, exportJson, exportMarkdown, importFiles } from "./transfer.js";
import { Transcript } from "./transcript.js";
import { addNode, find, leaf, messages, newDocument, path, siblings, textOf, titleFrom } from "./tree.js";
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
    this.docs = new Map();
    this.saver = new Saver(history);
    this.saver.onmerge = (doc) => doc === this.doc && this.draw();
    this.saver.onsave = () => this.sidebar.load();
    this.saver.channel?.addEventListener("message", (event) => this.elsewhere(event.data));
    this.transcript = new Transcript(document.getElementById("transcript"), {
      edit: (node, text) => this.edit(node, text),
      regenerate: (node) => this.ask(find(this.doc, node.parent)),
      choose: (node) => this.choose(node),
      compare: (node) => this.compare(node),
      step: (node, by) => this.step(node, by),
      answerOf: (node) => this.answers.get(this.doc.id)?.find((answer) => answer.nodes.includes(node)) ?? null,
      redraw: () => this.draw(),
    });
    this.composer = new Composer(document.getElementById("composer"), {
      send: (text) => this.send(text),
      stop: () => this.stop(),
      samples: (n) => this.change({ settings: { n } }),
    });
    this.composer.limit(info.limits?.n ?? 8);
    this.sidebar = new Sidebar(document.getElementById("conversations"), document.getElementById("search"), {
      list: (query, before) => history.list(query, before),
      rename: (id, title) => this.rename(id, title),
      remove: (id) => this.remove(id),
    });
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
    const known = this.docs.get(id);
    if (known) return this.use(known);
    try {
      const doc = await this.history.load(id);
      doc.settings = { ...startingSettings(this.info), ...doc.settings };
      this.use(doc);
      this.pickUp(doc);
    } catch (error) {
      this.create();
      toast(error.status === 404 ? "That conversation is not here any more." : `It could not be opened: ${error.message}.`);
    }
  }

  use(doc) {
    this.doc = doc;
    // Conversations with an answer on its way stay in memory; so does the one on the page.
    for (const id of this.docs.keys()) if (!this.live(id)) this.docs.delete(id);
    this.docs.set(doc.id, doc);
    this.transcript.editing = null;
    this.sidebar.current = doc.id;
    this.sidebar.draw();
    this.draw();
    if (doc.nodes.length) this.follow.toEnd();
    else scrollTo(0, 0);
  }

  /** Answers that were on their way when an earlier page was left. */
  pickUp(doc) {
    const streams = new Set();
    for (const node of doc.nodes) if (node.stream && !node.finish) streams.add(node.stream);
    for (const stream of streams) {
      const nodes = doc.nodes.filter((node) => node.stream === stream);
      const answer = this.watch(doc, find(doc, nodes[0].parent));
      answer.attach(nodes);
    }
  }

  async rename(id, title) {
    const open = this.docs.get(id);
    if (open) {
      open.title = title;
      open.renamed = true;
      this.draw();
      if (this.live(id) || open.nodes.length === 0) return this.save(open);
    }
    try {
      await this.history.rename(id, title);
      if (open) open.rev = (await this.history.load(id)).rev;
      this.sidebar.load();
    } catch (error) {
      toast(`It was not renamed: ${error.message}.`);
    }
  }

  async remove(id) {
    try {
      const doc = this.docs.get(id) ?? (await this.history.load(id));
      for (const answer of this.answers.get(id) ?? []) answer.stop();
      this.docs.delete(id);
      doc.temporary = true;
      await this.history.delete(id);
      if (this.doc.id === id) this.create();
      toast(`“${doc.title || "Untitled"}” was deleted.`, "Undo", async () => {
        delete doc.temporary;
        doc.rev = 0;
        await this.save(doc);
        this.open(id);
        location.hash = `c=${id}`;
      });
    } catch (error) {
      toast(`It was not deleted: ${error.message}.`);
    }
    this.sidebar.load();
  }

  async import(files) {
    const docs = await importFiles(files);
    for (const doc of docs) await this.save(doc);
    if (docs.length) {
      toast(docs.length === 1 ? "One conversation was imported." : `${docs.length} conversations were imported.`);
      location.hash = `c=${docs.at(-1).id}`;
    }
  }

  /** Another tab saved a conversation. */
  async elsewhere({ id, rev }) {
    this.sidebar.load();
    const doc = this.docs.get(id);
    if (!doc || doc.rev >= rev || this.live(id)) return;
    try {
      const last = !doc.nodes.some((node) => node.parent === doc.head);
      this.saver.takeIn(doc, await this.history.load(id));
      if (last && find(doc, doc.head)) doc.head = leaf(doc, find(doc, doc.head)).id;
      this.pickUp(doc);
      if (doc === this.doc) this.draw();
    } catch {
      // Deleted meanwhile: what is on the page stays until something is said.
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
    this.save(doc);
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
    this.answers.set(doc.id, [...(this.answers.get(doc.id) ?? []).filter((one) => one.live), answer]);
    const shown = () => doc === this.doc;
    const saving = setInterval(() => answer.nodes.length && this.save(doc), SAVE_EVERY_MS);
    let frame = null;
    const grown = new Set();
    answer.addEventListener("start", () => {
      location.hash = `c=${doc.id}`;
      this.save(doc);
      if (shown()) this.draw();
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
      this.save(doc);
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
    for (const answer of this.answers.get(this.doc.id) ?? []) answer.stop();
    announce("Stopped");
  }

  live(id) {
    return (this.answers.get(id) ?? []).some((answer) => answer.live);
  }

  step(node, by) {
    const all = siblings(this.doc, node);
    const next = all[all.indexOf(node) + by];
    if (!next) return;
    this.transcript.closed.add(next.stream);
    this.doc.head = leaf(this.doc, next).id;
    this.save(this.doc);
    this.draw();
  }

  choose(node) {
    this.transcript.closed.add(node.stream);
    this.doc.head = node.id;
    this.save(this.doc);
    this.draw();
    this.composer.input.focus();
  }

  compare(node) {
    this.transcript.closed.delete(node.stream);
    this.doc.head = node.id;
    this.save(this.doc);
    this.draw();
  }

  change({ system, settings }) {
    if (system !== undefined) this.doc.system = system;
    if (settings) {
      Object.assign(this.doc.settings, settings);
      remember(this.doc.settings);
    }
    if (this.doc.nodes.length) this.save(this.doc);
    this.drawComposer();
  }

  async save(doc) {
    try {
      await this.saver.save(doc);
      this.unsaved = false;
    } catch (error) {
      // Said once, not at every token that cannot be saved.
      if (!this.unsaved) toast(`This conversation is not saved: ${error.message}.`, "Try again", () => this.save(doc));
      this.unsaved = true;
    }
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
    else if (!place.firstChild) place.append(welcome(this.info, this.history.place, (text) => this.send(text)));
    this.transcript.show(doc, this.notice());
    this.drawComposer();
  }

  notice() {
    const doc = this.doc;
    const answer = this.answers.get(doc.id)?.at(-1);
    const turns = path(doc);
    const last = turns.at(-1);
    if (answer?.state === "failed" && answer.doc === doc && [last?.id, last?.parent].includes(answer.parent)) {
      answer.notice ??= errorNotice(answer.error, () => this.ask(find(doc, answer.parent)));
      return (answer.place ??= h("div", { class: "turn" }, answer.notice));
    }
    if (answer?.live && !answer.nodes.length) return asking();
    if (last?.role === "user" && !this.live(doc.id) && !this.transcript.editing) return h("div", { class: "turn" }, unanswered(() => this.ask(last)));
    return null;
  }

  cancelNotice() {
    for (const answer of this.answers.get(this.doc.id) ?? []) answer.notice?.cancel();
  }

  drawComposer() {
    const doc = this.doc;
    const answers = this.answers.get(doc.id) ?? [];
    const growing = answers.find((answer) => answer.live)?.tokens ?? 0;
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
        if (this.live(this.doc.id)) return this.stop(), true;
        if (writing) return writing.blur(), true;
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
      import: (files) => this.import(files),
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
    place.replaceChildren(errorNotice(error.status === undefined ? Object.assign(error, { status: 500 }) : error, start));
    if (error.status === 500) console.error(error);
  }
}

start();
