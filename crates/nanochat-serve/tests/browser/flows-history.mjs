// Conversations that stay: list, rename, delete, search, files, two tabs.

import { readFileSync } from "node:fs";

import { answers, check, equal, questions, saved, say, titles } from "./harness.mjs";

const stored = (name, history) => ({
  name: `after a reload the conversation is there (${name})`,
  scripted: true,
  async flow(stage) {
    await stage.serve({ history });
    const page = await stage.open();
    await say(page, "Remember me");
    await say(page, "And this");
    const before = await answers(page);
    await saved(page);
    await page.reload();
    await page.waitForFunction(() => document.querySelectorAll("article.assistant").length === 2);
    equal(JSON.stringify(await answers(page)), JSON.stringify(before), "the answers");
    equal((await titles(page))[0], "Remember me", "its title in the list");
  },
});

const tabs = (name, history) => ({
  name: `two tabs keep each other's turns (${name})`,
  scripted: true,
  async flow(stage) {
    const mock = await stage.serve({ history });
    const one = await stage.open();
    await say(one, "From the start");
    await saved(one);
    // The second tab hears nothing of the first: only the refusal of its save tells it.
    const hash = await one.evaluate(() => location.hash);
    await one.context().addInitScript(() => delete window.BroadcastChannel);
    const two = await stage.tab(one.context(), `/${hash}`);
    await two.waitForSelector("article.assistant");
    let held = true;
    mock.script.push({ text: "for one", hold: () => held }, { text: "for two", hold: () => held });
    await say(one, "Asked in one", { wait: false });
    await one.waitForFunction(() => document.querySelectorAll("article.assistant").length === 2);
    await say(two, "Asked in two", { wait: false });
    held = false;
    for (const page of [one, two]) {
      await page.waitForFunction(() => document.querySelector("#send span").textContent === "Send");
      await saved(page);
    }
    await one.waitForTimeout(400);
    const three = await stage.tab(one.context(), `/${hash}`);
    await three.waitForSelector("article.assistant");
    const seen = [];
    seen.push(...(await questions(three)), ...(await answers(three)));
    const step = three
      .locator("article.user [data-act=previous]:enabled, article.user [data-act=next]:enabled")
      .first();
    await step.click();
    seen.push(...(await questions(three)), ...(await answers(three)));
    for (const text of ["From the start", "Asked in one", "Asked in two", "for one", "for two"]) {
      check(seen.includes(text), `“${text}” was lost: ${seen.join(" | ")}`);
    }
  },
});

export default [
  stored("kept by the server", true),
  stored("kept by the browser", false),
  tabs("kept by the server", true),
  tabs("kept by the browser", false),
  {
    name: "after a reload the conversation is there",
    async flow(stage) {
      const page = await stage.open();
      await say(page, "Remember me");
      const before = await answers(page);
      await saved(page);
      await page.reload();
      await page.waitForSelector("article.assistant");
      equal(JSON.stringify(await answers(page)), JSON.stringify(before), "the answers");
    },
  },
  {
    name: "a conversation is renamed",
    async flow(stage) {
      const page = await stage.open();
      await say(page, "Old title");
      await saved(page);
      await page.click("#conversations li.here .acts button >> nth=0");
      await page.fill("#conversations input", "A better title");
      await page.press("#conversations input", "Enter");
      await page.waitForFunction(
        () => document.querySelector("#title").textContent === "A better title",
      );
      await page.waitForTimeout(300);
      await say(page, "One more turn");
      await saved(page);
      await page.reload();
      await page.waitForSelector("article.assistant");
      await page.waitForSelector("#conversations li");
      check((await titles(page)).includes("A better title"), "the new title did not stay");
    },
  },
  {
    name: "a conversation is deleted, and brought back by undo",
    async flow(stage) {
      const page = await stage.open();
      await say(page, "Delete this one");
      await saved(page);
      await page.click("#conversations li.here .acts button >> nth=1");
      await page.waitForSelector(".toast");
      check(!(await titles(page)).includes("Delete this one"), "it is still listed");
      await page.click(".toast >> text=Undo");
      await page.waitForFunction(() =>
        [...document.querySelectorAll("#conversations .title")].some(
          (one) => one.textContent === "Delete this one",
        ),
      );
      await page.reload();
      await page.waitForSelector("article.assistant");
      await page.click("#conversations li.here .acts button >> nth=1");
      await page.waitForTimeout(300);
      await page.reload();
      await page.waitForSelector("body.ready");
      await page.waitForTimeout(300);
      check(!(await titles(page)).includes("Delete this one"), "it came back by itself");
    },
  },
  ...[true, false].map((history) => ({
    name: `search finds words inside of answers (kept by the ${history ? "server" : "browser"})`,
    scripted: true,
    async flow(stage) {
      const mock = await stage.serve({ history });
      mock.script.push({ text: "The word is heliotrope." });
      const page = await stage.open();
      await say(page, "Tell me a word");
      await saved(page);
      await page.click("#new");
      await say(page, "Something else");
      await saved(page);
      await page.fill("#search", "heliotrope");
      await page.waitForFunction(
        () => document.querySelectorAll("#conversations .title").length === 1,
      );
      equal((await titles(page))[0], "Tell me a word", "what was found");
      check((await page.innerText("#conversations .snippet")).includes("heliotrope"), "no snippet");
      await page.fill("#search", "nowhere at all");
      await page.waitForFunction(() =>
        document.querySelector("#conversations").innerText.includes("Nothing found"),
      );
    },
  })),
  {
    name: "a browser that stores nothing keeps conversations while the tab is open, and says so",
    scripted: true,
    async flow(stage) {
      await stage.serve({ history: false });
      const page = await stage.open();
      await page.addInitScript(() => {
        IDBFactory.prototype.open = () => {
          throw new Error("not in a private window");
        };
      });
      await page.goto(stage.url);
      await page.waitForSelector("body.ready");
      check((await page.innerText(".welcome")).includes("end with this tab"), "it does not say so");
      await say(page, "Keep this a while");
      await saved(page);
      await page.click("#new");
      await say(page, "Another one");
      await saved(page);
      await page.click("text=Keep this a while");
      await page.waitForFunction(
        () => document.querySelector("article.user .said").innerText === "Keep this a while",
      );
    },
  },
  {
    name: "1,000 conversations in the browser: the list is quick and comes in pages",
    scripted: true,
    async flow(stage) {
      await stage.serve({ history: false });
      const page = await stage.open();
      const took = await page.evaluate(async () => {
        const { openHistory } = await import("/assets/history.js");
        const { addNode, newDocument } = await import("/assets/tree.js");
        const history = await openHistory({ history: false });
        for (let i = 0; i < 1000; i++) {
          const doc = newDocument({});
          doc.title = `Talk ${i}`;
          doc.updated = new Date(1.7e12 + i * 1e6).toISOString();
          addNode(doc, null, "user", "words ".repeat(400));
          await history.save(doc);
        }
        const start = performance.now();
        await history.list();
        return performance.now() - start;
      });
      check(took < 500, `the list took ${Math.round(took)} ms`);
      await page.reload();
      await page.waitForFunction(
        () => document.querySelectorAll("#conversations .title").length === 100,
      );
      await page.click("text=Show more");
      await page.waitForFunction(
        () => document.querySelectorAll("#conversations .title").length === 200,
      );
      equal((await titles(page))[199], "Talk 800", "the last of the second page");
    },
  },
  {
    name: "conversations are grouped by day",
    scripted: true,
    async flow(stage) {
      const store = new Map();
      const days = [0, 1, 3, 40].map((days) =>
        new Date(Date.now() - days * 86_400_000 + (days === 0 ? -1 : 0)).toISOString(),
      );
      days.forEach((updated, i) =>
        store.set(`c-${i}`, {
          id: `c-${i}`,
          rev: 1,
          title: `Talk ${i}`,
          created: updated,
          updated,
          system: "",
          settings: {},
          head: null,
          nodes: [],
        }),
      );
      await stage.serve({ store });
      const page = await stage.open();
      await page.waitForSelector("#conversations h3");
      const names = await page.locator("#conversations h3").allInnerTexts();
      equal(names.slice(0, 3).join(), "Today,Yesterday,Last 7 days", "the groups");
      equal(names.length, 4, "number of groups");
    },
  },
  {
    name: "export and import give the same conversation, branches too",
    async flow(stage) {
      const page = await stage.open();
      await say(page, "First question");
      await page.click("[data-act=again]");
      await page.waitForSelector(".versions");
      await page.waitForFunction(() => document.querySelector("#send span").textContent === "Send");
      await saved(page);
      const before = await answers(page);
      await page.click("#export summary");
      const [json] = await Promise.all([page.waitForEvent("download"), page.click("#export-json")]);
      await page.click("#export summary");
      const [markdown] = await Promise.all([
        page.waitForEvent("download"),
        page.click("#export-markdown"),
      ]);
      equal(json.suggestedFilename(), "first-question.json", "the file's name");
      const text = readFileSync(await markdown.path(), "utf8");
      check(
        text.includes("# First question") && text.includes("## You") && text.includes("## Model"),
        `Markdown: ${text}`,
      );
      const old = await page.evaluate(() => location.hash);
      await page.setInputFiles("#import-file", await json.path());
      await page.waitForFunction((hash) => location.hash !== hash, old);
      await page.waitForSelector("article.assistant .versions");
      equal(JSON.stringify(await answers(page)), JSON.stringify(before), "the answers");
    },
  },
  {
    name: "a file that is no conversation is refused with the reason",
    async flow(stage) {
      const page = await stage.open();
      await page.setInputFiles("#import-file", {
        name: "x.json",
        mimeType: "application/json",
        buffer: Buffer.from('{"nodes": [{"id": 1}]}'),
      });
      await page.waitForSelector(".toast");
      check(
        (await page.innerText(".toast")).includes("turn 1 has no id"),
        await page.innerText(".toast"),
      );
    },
  },
  {
    name: "a conversation opened in another tab shows what is said here",
    async flow(stage) {
      const one = await stage.open();
      await say(one, "Hello");
      await saved(one);
      const two = await stage.tab(one.context(), `/${await one.evaluate(() => location.hash)}`);
      await two.waitForSelector("article.assistant");
      await say(two, "A second turn");
      await saved(two);
      await one.waitForFunction(() => document.querySelectorAll("article.user").length === 2);
      equal((await questions(one))[1], "A second turn", "the turn of the other tab");
    },
  },
  {
    name: "an answer that is written in one tab grows in the other",
    scripted: true,
    async flow(stage) {
      const mock = await stage.serve();
      const one = await stage.open();
      await say(one, "Hello");
      await saved(one);
      const two = await stage.tab(one.context(), `/${await one.evaluate(() => location.hash)}`);
      await two.waitForSelector("article.assistant");
      let held = true;
      mock.script.push({
        text: "slowly it grows and ends",
        hold: () => held && [...mock.streams.values()].at(-1).events.length >= 2,
      });
      await say(one, "Go on", { wait: false });
      await two.waitForFunction(() =>
        document.querySelectorAll("article.assistant .said")[1]?.innerText.includes("it"),
      );
      held = false;
      await two.waitForFunction(
        () =>
          document.querySelectorAll("article.assistant .said")[1]?.innerText ===
          "slowly it grows and ends",
      );
      await two.waitForTimeout(500);
      equal((await questions(one)).length, 2, "turns");
      equal(await one.locator(".versions").count(), 0, "branches that nobody asked for");
    },
  },
];
