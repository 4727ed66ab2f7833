// The document of a conversation: a tree of turns. Editing a question and asking again add
// siblings, so nothing that was said is lost; `head` is the turn that the reader stands on.

export const SCHEMA = "nanochat.conversation";

export function newDocument(settings, system = "") {
  const time = new Date().toISOString();
  return {
    id: crypto.randomUUID?.() ?? randomId(),
    rev: 0,
    title: "",
    created: time,
    updated: time,
    system,
    settings: { ...settings },
    head: null,
    nodes: [],
  };
}

/** A UUID where `crypto.randomUUID` is kept from pages that came over plain http. */
export function randomId() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  bytes[6] = (bytes[6] & 0x0f) | 0x40;
  bytes[8] = (bytes[8] & 0x3f) | 0x80;
  const hex = [...bytes].map((byte) => byte.toString(16).padStart(2, "0")).join("");
  return hex.replace(/^(.{8})(.{4})(.{4})(.{4})(.{12})$/, "$1-$2-$3-$4-$5");
}

export function addNode(doc, parent, role, text = null, stream = null) {
  const node = {
    id: crypto.randomUUID?.() ?? randomId(),
    parent,
    role,
    parts: text == null ? [] : [{ type: "text", text }],
    finish: null,
    stream,
    usage: null,
  };
  doc.nodes.push(node);
  return node;
}

export const find = (doc, id) => doc.nodes.find((node) => node.id === id) ?? null;

/** Turns from the first to `head`. */
export function path(doc, head = doc.head) {
  const byId = new Map(doc.nodes.map((node) => [node.id, node]));
  const turns = [];
  // A file from elsewhere may hold a ring of parents: never more turns than nodes.
  for (let at = byId.get(head); at && turns.length < byId.size; at = byId.get(at.parent))
    turns.push(at);
  return turns.reverse();
}

/** `node` and the other turns that stand in its place, oldest first. */
export const siblings = (doc, node) =>
  doc.nodes.filter((other) => other.parent === node.parent && other.role === node.role);

/** Answers that were drawn together with `node`, in the order of their samples. */
export const samples = (doc, node) =>
  node.stream == null
    ? [node]
    : siblings(doc, node).filter((other) => other.stream === node.stream);

/** The newest last turn below `node`. */
export function leaf(doc, node) {
  for (let at = node, steps = doc.nodes.length; steps > 0; steps--) {
    const next = doc.nodes.findLast((other) => other.parent === at.id);
    if (!next) return at;
    at = next;
  }
  return node;
}

/** What was said, without tool calls. */
export const textOf = (node) =>
  node.parts
    .filter((part) => part.type === "text")
    .map((part) => part.text)
    .join("");

/** The conversation up to `head` as the API takes it: a turn with tool calls goes as its parts. */
export function messages(doc, head) {
  const content = (node) =>
    node.parts.some(({ type }) => type !== "text") ? node.parts : textOf(node);
  const said = path(doc, head).map((node) => ({ role: node.role, content: content(node) }));
  return doc.system.trim() ? [{ role: "system", content: doc.system }, ...said] : said;
}

export function titleFrom(text) {
  const line = text.trim().split("\n")[0].replace(/\s+/g, " ");
  return line.length <= 60 ? line : `${line.slice(0, 59).trimEnd()}…`;
}

/**
 * Two versions of one conversation that grew apart in two tabs become one: every turn of either is
 * kept. Where both have a turn, the one that is further along wins. Place, title and settings are
 * those of `ours`; a title that only they gave is taken.
 */
export function merge(ours, theirs) {
  const nodes = new Map(theirs.nodes.map((node) => [node.id, node]));
  for (const node of ours.nodes) {
    const other = nodes.get(node.id);
    if (!other || further(node, other)) nodes.set(node.id, node);
  }
  return {
    ...theirs,
    ...ours,
    rev: theirs.rev,
    title: ours.renamed ? ours.title : theirs.title || ours.title,
    nodes: [...nodes.values()],
  };
}

function further(a, b) {
  if (Boolean(a.finish) !== Boolean(b.finish)) return Boolean(a.finish);
  return length(a) >= length(b);
}

const length = (node) => node.parts.reduce((sum, part) => sum + part.text.length, 0);

/** A document out of something that was read from a file. Throws with what is wrong with it. */
export function parseDocument(value) {
  if (!value || typeof value !== "object" || !Array.isArray(value.nodes)) {
    throw new Error('it has no list of turns ("nodes")');
  }
  const blank = newDocument({});
  const nodes = value.nodes.map((node, i) => parseNode(node, i));
  const ids = new Set(nodes.map((node) => node.id));
  if (ids.size !== nodes.length) throw new Error("two turns have the same id");
  for (const node of nodes) if (!ids.has(node.parent)) node.parent = null;
  const text = (name) => (typeof value[name] === "string" ? value[name] : blank[name]);
  const settings = value.settings && typeof value.settings === "object" ? value.settings : {};
  return {
    ...blank,
    title: text("title"),
    created: text("created"),
    updated: text("updated"),
    system: text("system"),
    settings: { ...settings },
    head: ids.has(value.head) ? value.head : (nodes.at(-1)?.id ?? null),
    nodes,
  };
}

function parseNode(node, i) {
  const where = `turn ${i + 1}`;
  if (!node || typeof node.id !== "string") throw new Error(`${where} has no id`);
  if (node.role !== "user" && node.role !== "assistant") throw new Error(`${where} has no role`);
  if (!Array.isArray(node.parts)) throw new Error(`${where} has no parts`);
  const parts = node.parts.map((part) => {
    if (
      !["text", "tool_call", "tool_output"].includes(part?.type) ||
      typeof part.text !== "string"
    ) {
      throw new Error(`${where} has a part that is neither text nor a tool's`);
    }
    return { type: part.type, text: part.text };
  });
  return {
    id: node.id,
    parent: typeof node.parent === "string" ? node.parent : null,
    role: node.role,
    parts,
    finish:
      typeof node.finish === "string" ? node.finish : node.role === "assistant" ? "stop" : null,
    stream: typeof node.stream === "string" ? node.stream : null,
    usage: node.usage && typeof node.usage === "object" ? node.usage : null,
  };
}
