// Conversations in memory and where they are kept: opening, renaming, deleting, importing, saving,
// and taking in what other tabs say.

import { toast } from "./dom.js";
import { Saver } from "./history.js";
import { importFiles } from "./transfer.js";
import { find, leaf } from "./tree.js";

export class Library {
  /**
   * `page` is asked: `live(id)` whether an answer is on its way, `stop(id)` to end it, `draw(doc)`
   * to show a document that changed, `pickUp(doc)` to follow answers begun elsewhere, `closed(id)`
   * after a deletion, `list()` to read the list again.
   */
  constructor(history, page) {
    this.history = history;
    this.page = page;
    this.docs = new Map();
    this.saver = new Saver(history);
    this.saver.onmerge = (doc) => page.draw(doc);
    this.saver.onsave = () => page.list();
    this.saver.channel?.addEventListener("message", (event) => this.elsewhere(event.data));
  }

  async load(id) {
    return this.docs.get(id) ?? this.history.load(id);
  }

  /** Keeps `doc` in memory, and of the others those with an answer on its way. */
  hold(doc) {
    for (const id of this.docs.keys()) if (!this.page.live(id)) this.docs.delete(id);
    this.docs.set(doc.id, doc);
  }

  async save(doc) {
    try {
      await this.saver.save(doc);
      this.unsaved = false;
    } catch (error) {
      // Said once, not at every token that cannot be saved.
      if (!this.unsaved) {
        const again = () => this.save(doc);
        toast(`This conversation is not saved: ${error.message}.`, "Try again", again);
      }
      this.unsaved = true;
    }
  }

  async rename(id, title) {
    const open = this.docs.get(id);
    if (open) {
      open.title = title;
      open.renamed = true;
      this.page.draw(open);
      if (this.page.live(id) || open.nodes.length === 0) return this.save(open);
    }
    try {
      await this.history.rename(id, title);
      if (open) open.rev = (await this.history.load(id)).rev;
      this.page.list();
    } catch (error) {
      toast(`It was not renamed: ${error.message}.`);
    }
  }

  async remove(id) {
    try {
      const doc = await this.load(id);
      // Nothing saves it from here on; a save under way ends first, or it would come back.
      doc.temporary = true;
      this.page.stop(id);
      this.docs.delete(id);
      await this.saver.running.get(id);
      await this.history.delete(id);
      this.page.closed(id);
      toast(`“${doc.title || "Untitled"}” was deleted.`, "Undo", async () => {
        delete doc.temporary;
        doc.rev = 0;
        await this.save(doc);
        location.hash = `c=${id}`;
      });
    } catch (error) {
      toast(`It was not deleted: ${error.message}.`);
    }
    this.page.list();
  }

  async import(files) {
    const docs = await importFiles(files);
    for (const doc of docs) await this.save(doc);
    if (!docs.length) return;
    const one = docs.length === 1;
    toast(one ? "One conversation was imported." : `${docs.length} conversations were imported.`);
    location.hash = `c=${docs.at(-1).id}`;
  }

  /** Another tab saved a conversation. */
  async elsewhere({ id, rev }) {
    this.page.list();
    const doc = this.docs.get(id);
    if (!doc || doc.rev >= rev || this.page.live(id)) return;
    try {
      const atEnd = !doc.nodes.some((node) => node.parent === doc.head);
      this.saver.takeIn(doc, await this.history.load(id));
      const head = find(doc, doc.head);
      if (atEnd && head) doc.head = leaf(doc, head).id;
      this.page.pickUp(doc);
      this.page.draw(doc);
    } catch {
      // Deleted meanwhile: what is on the page stays until something is said.
    }
  }
}
