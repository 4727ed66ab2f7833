// Where conversations are kept: by the server, if it keeps them, else in this browser (IndexedDB).
// Both hold the same documents and refuse a save that is based on an older revision, so that two
// tabs never overwrite each other.

import { getJson, request } from "./stream.js";
import { merge, textOf } from "./tree.js";

const PAGE = 100;

/** A save that came second: `current` is the document that came first. */
export class Conflict extends Error {
  constructor(current) {
    super("another tab saved this conversation first");
    this.current = current;
  }
}

export const openHistory = (info) => (info.history ? new ServerHistory() : BrowserHistory.open());

class ServerHistory {
  place = "server";

  async list(q = "", before = null) {
    const query = new URLSearchParams({ limit: PAGE });
    if (q) query.set("q", q);
    if (before) query.set("before", before);
    return getJson(`/api/conversations?${query}`);
  }

  load(id) {
    return getJson(`/api/conversations/${encodeURIComponent(id)}`);
  }

  /** Gives the new revision. Throws [Conflict]. */
  async save(doc) {
    const condition = doc.rev > 0 ? { "If-Match": String(doc.rev) } : { "If-None-Match": "*" };
    try {
      const { rev } = await getJson(`/api/conversations/${encodeURIComponent(doc.id)}`, {
        method: "PUT",
        headers: condition,
        json: doc,
      });
      return rev;
    } catch (error) {
      if (error.status === 409)
        throw new Conflict(currentOf(error.body) ?? (await this.load(doc.id)));
      throw error;
    }
  }

  rename(id, title) {
    return request(`/api/conversations/${encodeURIComponent(id)}`, {
      method: "PATCH",
      json: { title },
    });
  }

  delete(id) {
    return request(`/api/conversations/${encodeURIComponent(id)}`, { method: "DELETE" });
  }
}

const currentOf = (body) =>
  [body, body?.current, body?.conversation].find((it) => Array.isArray(it?.nodes));

class BrowserHistory {
  place = "browser";

  static async open() {
    const history = new BrowserHistory();
    try {
      const opening = indexedDB.open("nanochat", 1);
      opening.onupgradeneeded = () => {
        opening.result.createObjectStore("conversations", { keyPath: "id" });
        // What the list shows: it is read often, and whole conversations are long.
        opening.result.createObjectStore("summaries", { keyPath: "id" });
      };
      history.db = await done(opening);
    } catch {
      // Private windows of some browsers have no IndexedDB: kept until the tab closes.
      history.place = "tab";
      history.memory = { conversations: memoryStore(), summaries: memoryStore() };
    }
    return history;
  }

  /** Runs `work` on both stores in one transaction; resolves when it is on disk. */
  async within(mode, work) {
    if (this.memory) return work(this.memory);
    const transaction = this.db.transaction(["conversations", "summaries"], mode);
    const closed = new Promise((resolve, reject) => {
      transaction.oncomplete = resolve;
      transaction.onabort = () =>
        reject(transaction.error ?? new Error("the browser refused to store it"));
    });
    closed.catch(() => null);
    const result = await work({
      conversations: transaction.objectStore("conversations"),
      summaries: transaction.objectStore("summaries"),
    });
    await closed;
    return result;
  }

  async list(q = "", before = null) {
    const wanted = q.trim().toLowerCase();
    const all = await this.within("readonly", ({ conversations, summaries }) =>
      done((wanted ? conversations : summaries).getAll()),
    );
    const found = all
      .filter(({ updated }) => !before || updated < before)
      .map((doc) => ({ ...summary(doc), snippet: wanted ? snippet(doc, wanted) : "" }))
      .filter((item) => !wanted || item.snippet || item.title.toLowerCase().includes(wanted));
    found.sort((a, b) => (a.updated < b.updated ? 1 : -1));
    return { conversations: found.slice(0, PAGE), more: found.length > PAGE };
  }

  async load(id) {
    const doc = await this.within("readonly", (stores) => done(stores.conversations.get(id)));
    if (doc) return doc;
    throw Object.assign(new Error("this conversation is not in this browser"), { status: 404 });
  }

  async save(doc) {
    return this.within("readwrite", async (stores) => {
      const current = await done(stores.conversations.get(doc.id));
      if (current && current.rev !== doc.rev) throw new Conflict(current);
      const rev = (current?.rev ?? 0) + 1;
      await this.put(stores, structuredClone({ ...doc, rev }));
      return rev;
    });
  }

  async rename(id, title) {
    return this.within("readwrite", async (stores) => {
      const doc = await done(stores.conversations.get(id));
      if (doc) await this.put(stores, { ...doc, title, rev: doc.rev + 1 });
    });
  }

  async put(stores, doc) {
    await done(stores.conversations.put(doc));
    await done(stores.summaries.put(summary(doc)));
  }

  async delete(id) {
    return this.within("readwrite", async (stores) => {
      await done(stores.conversations.delete(id));
      await done(stores.summaries.delete(id));
    });
  }
}

const summary = ({ id, title, updated }) => ({ id, title, updated });

/** Resolves with what a request of IndexedDB, or of the stand-in for it, gives. */
const done = (request) =>
  new Promise((resolve, reject) => {
    if (!(request instanceof IDBRequest)) return resolve(request);
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

function memoryStore() {
  const map = new Map();
  return {
    get: (id) => structuredClone(map.get(id)),
    getAll: () => [...map.values()].map((doc) => structuredClone(doc)),
    put: (doc) => void map.set(doc.id, structuredClone(doc)),
    delete: (id) => void map.delete(id),
  };
}

function snippet(doc, wanted) {
  if (!wanted) return "";
  for (const node of doc.nodes) {
    const text = textOf(node);
    const at = text.toLowerCase().indexOf(wanted);
    if (at >= 0)
      return text.slice(Math.max(0, at - 30), at + wanted.length + 50).replace(/\s+/g, " ");
  }
  return "";
}

/**
 * Saves documents one after another, each in its newest state; a document that another tab saved
 * first is merged with that version and saved again. Other tabs of this browser are told.
 */
export class Saver {
  constructor(history) {
    this.history = history;
    this.running = new Map();
    this.again = new Set();
    this.channel = "BroadcastChannel" in globalThis ? new BroadcastChannel("nanochat") : null;
    /** Called with the document after turns of another tab were taken in. */
    this.onmerge = () => {};
    /** Called with the document after each save. */
    this.onsave = () => {};
  }

  save(doc) {
    if (doc.temporary) return Promise.resolve();
    doc.updated = new Date().toISOString();
    const running = this.running.get(doc.id);
    if (running) {
      this.again.add(doc.id);
      return running;
    }
    const work = this.work(doc).finally(() => this.running.delete(doc.id));
    this.running.set(doc.id, work);
    return work;
  }

  async work(doc) {
    do {
      this.again.delete(doc.id);
      await this.once(doc);
    } while (this.again.has(doc.id));
    this.onsave(doc);
    this.channel?.postMessage({ id: doc.id, rev: doc.rev });
  }

  async once(doc) {
    for (let tries = 0; tries < 5; tries++) {
      try {
        const { renamed, ...plain } = doc;
        doc.rev = await this.history.save(plain);
        return;
      } catch (error) {
        if (error instanceof Conflict) this.takeIn(doc, error.current);
        // Deleted in another tab while this one goes on: what is said here is kept.
        else if (error.status === 404 || error.status === 412) doc.rev = 0;
        else throw error;
      }
    }
    throw new Error("other tabs keep saving this conversation; close one of them");
  }

  /** Makes `doc` the union of itself and `current`, in place. */
  takeIn(doc, current) {
    // Turns keep their identity: answers that are being written hold on to their node.
    const own = new Map(doc.nodes.map((node) => [node.id, node]));
    const merged = merge(doc, current);
    merged.nodes = merged.nodes.map((node) => {
      const mine = own.get(node.id);
      return mine ? Object.assign(mine, node) : node;
    });
    Object.assign(doc, merged);
    this.onmerge(doc);
  }
}
