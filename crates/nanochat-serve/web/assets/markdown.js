// Markdown to elements. markdown-it reads it into tokens; each token that is known here becomes an
// element, with text as text nodes. Raw HTML stays text, images become links (the page asks no
// other host for anything), and a link is followed only to http, https or mailto.

import "./vendor-markdown-it.js";

import { copyFrom, h, icon } from "./dom.js";
import { colour, languageOf } from "./highlight.js";

const parser = globalThis.markdownit({ html: false, linkify: true, breaks: false });

const BLOCKS = new Set(
  "p h1 h2 h3 h4 h5 h6 ul ol li blockquote hr table thead tbody tr th td em strong s br".split(" "),
);

/**
 * Shows `source` in `place`. Blocks that did not change since the last call stay as they are, so a
 * text that grows redraws its last block only and a selection above it survives.
 */
export function showMarkdown(place, source) {
  const blocks = split(source);
  const old = place.markdownBlocks ?? [];
  let same = 0;
  while (same < blocks.length && same < old.length && blocks[same].source === old[same].source)
    same++;
  for (const block of old.slice(same)) block.element.remove();
  for (const block of blocks.slice(same)) {
    block.element = build(block.tokens);
    place.append(block.element);
  }
  place.markdownBlocks = [...old.slice(0, same), ...blocks.slice(same)];
}

/** Top-level blocks: their tokens and the lines that they came from. */
function split(source) {
  const tokens = parser.parse(source, {});
  const lines = source.split("\n");
  const blocks = [];
  let start = 0;
  for (let i = 0; i < tokens.length; i++) {
    if (tokens[i].level !== 0 || tokens[i].nesting === 1) continue;
    const part = tokens.slice(start, i + 1);
    const [from, to] = part[0].map ?? [0, lines.length];
    // Link definitions elsewhere can change what a block means: the rendered children tell.
    const links = part
      .flatMap((token) => token.children ?? [])
      .filter((t) => t.type === "link_open");
    const key = links.map((link) => link.attrGet("href")).join(" ");
    blocks.push({
      tokens: part,
      source: `${part[0].type}\n${lines.slice(from, to).join("\n")}\n${key}`,
    });
    start = i + 1;
  }
  return blocks;
}

function build(tokens) {
  const root = document.createDocumentFragment();
  fill(root, tokens);
  return root.firstElementChild ?? h("p");
}

function fill(root, tokens) {
  const open = [root];
  for (let i = 0; i < tokens.length; i++) {
    const token = tokens[i];
    const top = open.at(-1);
    if (emptyList(tokens, i)) {
      top.append(h("p", {}, `${tokens[i + 1].info ?? ""}${token.markup}`));
      i += 3;
    } else if (token.type === "inline") fill(top, token.children);
    else if (token.nesting === 1) {
      const element = opening(token);
      // A table scrolls by itself: a wide one must not widen the page.
      if (token.tag === "table")
        top.append(
          h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "Table" }, element),
        );
      else if (element) top.append(element);
      open.push(element ?? top);
    } else if (token.nesting === -1) open.pop();
    else top.append(leaf(token));
  }
}

/** Whether a list with one empty item begins here: "42." is an answer, not the 42nd of a list. */
const emptyList = (tokens, i) =>
  ["ordered_list_open", "bullet_list_open"].includes(tokens[i].type) &&
  tokens[i + 2]?.type === "list_item_close" &&
  tokens[i + 3]?.nesting === -1;

function opening(token) {
  if (token.hidden) return null;
  if (token.type === "link_open") return link(token.attrGet("href"));
  if (!BLOCKS.has(token.tag)) return h("span");
  // The page has headings of its own: those of an answer begin below them.
  const heading = /^h([1-6])$/.exec(token.tag);
  const element = h(heading ? `h${Math.min(6, Number(heading[1]) + 2)}` : token.tag);
  if (heading) element.className = `md-${token.tag}`;
  const align = /text-align:(left|center|right)/.exec(token.attrGet("style") ?? "");
  if (align) element.className = `align-${align[1]}`;
  if (token.tag === "ol" && token.attrGet("start")) element.start = Number(token.attrGet("start"));
  return element;
}

function leaf(token) {
  switch (token.type) {
    case "fence":
    case "code_block":
      return codeBlock(token.content, token.info ?? "");
    case "code_inline":
      return h("code", {}, token.content);
    case "softbreak":
      return "\n";
    case "hardbreak":
      return h("br");
    case "hr":
      return h("hr");
    case "image": {
      const element = link(token.attrGet("src"));
      element.append(token.content || "image");
      return element;
    }
    default:
      return token.content;
  }
}

function link(href) {
  let url = null;
  try {
    url = new URL(href, location.href);
  } catch {
    // Not an address: shown as text.
  }
  if (!url || !["http:", "https:", "mailto:"].includes(url.protocol)) return h("span");
  return h("a", { href: url.href, target: "_blank", rel: "noopener noreferrer nofollow" });
}

function codeBlock(content, info) {
  const code = content.replace(/\n$/, "");
  const body = h("code");
  const name = info.trim().split(/\s/)[0];
  colour(body, code, languageOf(info));
  const button = h(
    "button",
    { type: "button", class: "quiet", onclick: () => copyFrom(button, code) },
    icon("copy"),
    "Copy",
    h("span", { class: "unseen" }, " code"),
  );
  return h(
    "figure",
    { class: "code" },
    h("figcaption", {}, h("span", {}, name || "text"), button),
    h(
      "pre",
      { tabindex: "0", role: "group", "aria-label": `Code${name ? `, ${name}` : ""}` },
      body,
    ),
  );
}
