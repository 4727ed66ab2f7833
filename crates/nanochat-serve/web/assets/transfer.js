// Conversations as files: JSON that can be read back in, Markdown for people.

import { download, toast } from "./dom.js";
import { parseDocument, path, SCHEMA } from "./tree.js";

export function exportJson(doc) {
  const { rev, renamed, ...plain } = doc;
  const file = { format: SCHEMA, version: 1, conversations: [plain] };
  download(`${fileName(doc)}.json`, "application/json", `${JSON.stringify(file, null, 2)}\n`);
}

export async function exportAll(history) {
  const docs = [];
  let before = null;
  for (let more = true; more;) {
    const page = await history.list("", before);
    for (const item of page.conversations) {
      const { rev, ...plain } = await history.load(item.id);
      docs.push(plain);
    }
    more = page.more && page.conversations.length > 0;
    before = page.conversations.at(-1)?.updated;
  }
  const file = { format: SCHEMA, version: 1, conversations: docs };
  download("nanochat-conversations.json", "application/json", `${JSON.stringify(file, null, 2)}\n`);
}

export function exportMarkdown(doc) {
  download(`${fileName(doc)}.md`, "text/markdown", toMarkdown(doc));
}

/** The turns on the way to `head`; tool calls as code. */
export function toMarkdown(doc) {
  const lines = [`# ${doc.title || "Conversation"}`, "", `${doc.created}`, ""];
  if (doc.system.trim()) lines.push("## System", "", doc.system.trim(), "");
  for (const node of path(doc)) {
    lines.push(node.role === "user" ? "## You" : "## Model", "");
    lines.push(node.parts.map(partToMarkdown).join("").trim(), "");
  }
  return `${lines.join("\n").trimEnd()}\n`;
}

const partToMarkdown = ({ type, text }) => {
  if (type === "text") return text;
  return type === "tool_call" ? ` \`${text} =\` ` : ` \`${text}\` `;
};

/** Reads files that the reader chooses; gives the documents, with ids of their own. */
export async function importFiles(files) {
  const docs = [];
  for (const file of files) {
    try {
      const value = JSON.parse(await file.text());
      const list =
        value?.format === SCHEMA ? value.conversations : Array.isArray(value) ? value : [value];
      for (const item of list) docs.push(parseDocument(item));
    } catch (error) {
      toast(`${file.name} was not imported: ${error.message}.`);
    }
  }
  return docs;
}

const fileName = (doc) =>
  (doc.title || "conversation")
    .replace(/[^\p{L}\p{N}]+/gu, "-")
    .replace(/^-+|-+$/g, "")
    .slice(0, 60)
    .toLowerCase() || "conversation";
