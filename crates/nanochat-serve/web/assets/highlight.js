// Colours for code: highlight.js reads it, and its tree of scopes becomes elements here. A language
// is fetched when it is first met.

const LANGUAGES = {
  bash: ["sh", "shell", "zsh", "console"],
  c: ["h"],
  cpp: ["c++", "cc", "hpp", "cuda", "cu"],
  diff: ["patch"],
  go: ["golang"],
  ini: ["toml"],
  java: [],
  javascript: ["js", "jsx", "mjs", "typescript", "ts", "tsx"],
  json: ["jsonl", "json5"],
  python: ["py"],
  rust: ["rs"],
  sql: [],
  xml: ["html", "svg"],
  yaml: ["yml"],
};

// Longer code stays plain: colouring it at every token would take longer than a frame.
const LONGEST = 20_000;

const loaded = new Map();

/** The name that highlight.js has for the language of a fence, or null. */
export function languageOf(info) {
  const word = info
    .trim()
    .split(/[\s{,]/)[0]
    .toLowerCase();
  if (Object.hasOwn(LANGUAGES, word)) return word;
  return Object.keys(LANGUAGES).find((name) => LANGUAGES[name].includes(word)) ?? null;
}

/** Fills `element` with `code`: plain at once, in colour when the language has been fetched. */
export function colour(element, code, language) {
  element.textContent = code;
  if (!language || code.length > LONGEST) return;
  const ready = loaded.get(language);
  if (ready?.hljs) return void paint(element, code, language, ready.hljs);
  load(language).then((hljs) => {
    if (hljs && element.textContent === code) paint(element, code, language, hljs);
  });
}

function load(language) {
  let entry = loaded.get(language);
  if (!entry) {
    entry = { hljs: null, promise: null };
    entry.promise = Promise.all([
      import("./vendor-hljs.js"),
      import(`./vendor-hljs-${language}.js`),
    ])
      .then(([core, grammar]) => {
        core.default.registerLanguage(language, grammar.default);
        return (entry.hljs = core.default);
      })
      .catch(() => null);
    loaded.set(language, entry);
  }
  return entry.promise;
}

function paint(element, code, language, hljs) {
  const { _emitter } = hljs.highlight(code, { language, ignoreIllegals: true });
  if (_emitter?.rootNode) element.replaceChildren(...scopes(_emitter.rootNode));
}

function scopes(node) {
  return node.children.map((child) => {
    if (typeof child === "string") return child;
    const span = document.createElement("span");
    if (child.scope) span.className = `hl-${child.scope.split(".")[0]}`;
    span.append(...scopes(child));
    return span;
  });
}
