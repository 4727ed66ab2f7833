// Modules of the page by themselves, run in the browser.

import { check, equal } from "./harness.mjs";

const inPage = (name, run) => ({
  name,
  async flow(stage) {
    const page = await stage.open();
    const wrong = await page.evaluate(run);
    check(wrong.length === 0, wrong.join("\n"));
  },
});

export default [
  inPage("conversations: merging two versions keeps every turn of both", async () => {
    const { addNode, merge, newDocument, path, textOf } = await import("/assets/tree.js");
    const wrong = [];
    const base = newDocument({});
    const first = addNode(base, null, "user", "first");
    base.head = first.id;
    const ours = structuredClone(base);
    const theirs = structuredClone(base);
    const a = addNode(ours, first.id, "assistant", "ours");
    ours.head = a.id;
    const b = addNode(theirs, first.id, "assistant", "theirs");
    theirs.head = b.id;
    theirs.rev = 7;
    const both = merge(ours, theirs);
    if (both.nodes.length !== 3) wrong.push(`${both.nodes.length} turns`);
    if (both.rev !== 7) wrong.push(`revision ${both.rev}`);
    if (path(both).map(textOf).join() !== "first,ours") wrong.push("the place was lost");
    // Of one turn in two states, the finished one counts; of two unfinished ones, the longer.
    const half = structuredClone(both);
    half.nodes.find((node) => node.id === a.id).parts[0].text = "our";
    if (merge(half, both).nodes.find((node) => node.id === a.id).parts[0].text !== "ours")
      wrong.push("text was lost");
    return wrong;
  }),
  inPage("conversations: a ring of parents, or a head that is not there, ends", async () => {
    const { leaf, parseDocument, path } = await import("/assets/tree.js");
    const wrong = [];
    const node = (id, parent) => ({ id, parent, role: "user", parts: [] });
    const ring = parseDocument({ nodes: [node("a", "b"), node("b", "a")], head: "a" });
    if (path(ring).length > 2) wrong.push("the path does not end");
    leaf(ring, ring.nodes[0]);
    if (path(parseDocument({ nodes: [node("a", "nobody")], head: "c" })).length !== 1)
      wrong.push("the turn is lost");
    for (const bad of [
      null,
      3,
      {},
      { nodes: [{}] },
      { nodes: [{ id: "a", role: "tool", parts: [] }] },
      { nodes: [{ id: "a", role: "user", parts: [{ type: "html", text: "" }] }] },
    ]) {
      try {
        parseDocument(bad);
        wrong.push(`${JSON.stringify(bad)} was taken`);
      } catch (error) {
        if (!(error instanceof Error) || error.message.length < 10)
          wrong.push(`no reason for ${JSON.stringify(bad)}`);
      }
    }
    return wrong;
  }),
  inPage(
    "streams: events that arrive in any pieces are whole, and a cut one is left out",
    async () => {
      const { events } = await import("/assets/stream.js");
      const wrong = [];
      const text =
        'id: 1\ndata: {"a":"é😀"}\n\n: a comment\n\nid: 2\r\ndata: two\ndata: lines\r\n\r\nid: 3\ndata: [DONE]\n\nid: 4\ndata: cu';
      const bytes = new TextEncoder().encode(text);
      for (const size of [1, 2, 3, 7, bytes.length]) {
        const body = new ReadableStream({
          start(controller) {
            for (let at = 0; at < bytes.length; at += size)
              controller.enqueue(bytes.slice(at, at + size));
            controller.close();
          },
        });
        const found = [];
        for await (const { id, data } of events(new Response(body))) found.push(`${id} ${data}`);
        const wanted = '1 {"a":"é😀"}|2 two\nlines|3 [DONE]';
        if (found.join("|") !== wanted) wrong.push(`in pieces of ${size}: ${found.join("|")}`);
      }
      return wrong;
    },
  ),
  inPage(
    "Markdown: a text that grows looks as if it had come whole; earlier blocks stay",
    async () => {
      const { showMarkdown } = await import("/assets/markdown.js");
      const text =
        "# One\n\nA [link][r] and `code`.\n\n- a\n- b\n\n```python\nx = 1\n```\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n[r]: https://example.com\n";
      const wrong = [];
      const whole = document.createElement("div");
      showMarkdown(whole, text);
      await new Promise((resolve) => setTimeout(resolve, 300));
      const grown = document.createElement("div");
      let first = null;
      for (let end = 1; end <= text.length; end++) {
        showMarkdown(grown, text.slice(0, end));
        if (end === 10) first = grown.firstElementChild;
      }
      await new Promise((resolve) => setTimeout(resolve, 50));
      if (grown.innerHTML !== whole.innerHTML)
        wrong.push(`${grown.innerHTML}\ninstead of\n${whole.innerHTML}`);
      if (grown.firstElementChild !== first) wrong.push("the heading was drawn again");
      return wrong;
    },
  ),
  inPage("Markdown: an answer that is a number is no list", async () => {
    const { showMarkdown } = await import("/assets/markdown.js");
    const wrong = [];
    for (const text of ["42.", "7)", "So:\n\n42.", "-"]) {
      const place = document.createElement("div");
      showMarkdown(place, text);
      if (place.textContent !== text.replace("\n\n", "") || place.querySelector("li"))
        wrong.push(`${text}: ${place.innerHTML}`);
    }
    return wrong;
  }),
  inPage("Markdown: hard cases are quick", async () => {
    const { showMarkdown } = await import("/assets/markdown.js");
    const wrong = [];
    const cases = [
      "*".repeat(5000),
      "[".repeat(5000),
      "> ".repeat(2000),
      "`".repeat(5001),
      "a*b_".repeat(3000),
      "|".repeat(4000),
      "- ".repeat(1500),
      "<".repeat(5000),
      "![](".repeat(2000),
    ];
    for (const text of cases) {
      const start = performance.now();
      showMarkdown(document.createElement("div"), text);
      const took = performance.now() - start;
      if (took > 1500) wrong.push(`${text.slice(0, 8)}… took ${Math.round(took)} ms`);
    }
    return wrong;
  }),
  inPage("charts: ticks are round and inside; scales go there and back", async () => {
    const { scale, ticks } = await import("/assets/charts.js");
    const wrong = [];
    for (const [domain, log] of [
      [[0, 1], false],
      [[0.97, 8.3], true],
      [[1, 1e6], true],
      [[6890, 7940], false],
      [[0.1, 0.11], true],
    ]) {
      const found = ticks(domain, 5, log);
      if (found.length < 2 || found.length > 12) wrong.push(`${found.length} ticks for ${domain}`);
      if (found.some((value) => value < domain[0] - 1e-9 || value > domain[1] * (1 + 1e-9)))
        wrong.push(`ticks outside of ${domain}`);
      const axis = scale(domain, [50, 400], log);
      for (const value of found)
        if (Math.abs(axis.value(axis.at(value)) - value) > 1e-6 * value)
          wrong.push(`${value} does not come back`);
    }
    return wrong;
  }),
  inPage("smoothing has no bias at its start", async () => {
    const { smooth } = await import("/assets/runs.js");
    const flat = smooth(
      Array.from({ length: 5 }, (_, x) => ({ x, y: 3 })),
      0.9,
    );
    return flat.every((point) => Math.abs(point.y - 3) < 1e-12) ? [] : ["a flat line is bent"];
  }),
  {
    name: "the page and all it loads weigh at most 400 KB, and only what is used is fetched",
    scripted: true,
    async flow(stage) {
      const mock = await stage.serve();
      await stage.open();
      const asked = mock.requests.filter((line) => line.startsWith("GET /assets/"));
      check(
        !asked.some((line) => line.includes("hljs")),
        "highlighting is fetched before there is code",
      );
      const { readdirSync, statSync } = await import("node:fs");
      const folder = new URL("../../web/assets/", import.meta.url);
      const bytes = readdirSync(folder).reduce(
        (sum, name) => sum + statSync(new URL(name, folder)).size,
        0,
      );
      check(bytes <= 400 * 1024, `${bytes} bytes`);
      equal(
        asked.filter((line, i) => asked.indexOf(line) !== i).length,
        0,
        "files that were fetched twice",
      );
    },
  },
];
