// Asking, answers as they grow, other versions of a turn, samples, tools, Markdown.

import { CODE, MARKDOWN } from "./answers.mjs";
import { answers, check, equal, questions, say, settled } from "./harness.mjs";
import { CORPUS } from "./xss.mjs";

export default [
  {
    name: "a message gets an answer, with its speed and its share of the context",
    async flow(stage) {
      const page = await stage.open();
      await say(page, "Hello");
      const [said] = await answers(page);
      check(said.length > 0, "the answer is empty");
      const facts = await page.locator("article.assistant .facts").innerText();
      check(/tok\/s/.test(facts) && /\d+ tokens/.test(facts), `the figures are missing: ${facts}`);
      check(!/^0 of/.test(await page.innerText("#context span")), "the context meter did not move");
    },
  },
  {
    name: "an example of the empty page is asked by a click",
    async flow(stage) {
      const page = await stage.open();
      await page.click(".examples button >> nth=1");
      await page.waitForSelector("article.assistant");
      await settled(page);
      check((await questions(page))[0].startsWith("Tell me a story"), "another question was asked");
    },
  },
  {
    name: "text appears while the answer streams",
    scripted: true,
    async flow(stage) {
      const mock = await stage.serve();
      let held = true;
      mock.script.push({
        text: "one two three",
        hold: () =>
          held && mock.streams.size > 0 && [...mock.streams.values()][0].events.length >= 2,
      });
      const page = await stage.open();
      await say(page, "Count", { wait: false });
      await page.waitForFunction(() =>
        document.querySelector("article.assistant .said")?.innerText.includes("two"),
      );
      check(!(await answers(page))[0].includes("three"), "it was all there at once");
      held = false;
      await settled(page);
      equal((await answers(page))[0], "one two three", "the whole answer");
    },
  },
  {
    name: "stop ends the answer on the server and keeps what came",
    async flow(stage) {
      const mock = await stage.serve();
      const page = await stage.open();
      await say(page, "A slow and very long story, please", { wait: false });
      await page.waitForFunction(
        () => (document.querySelector("article.assistant .said")?.innerText.length ?? 0) > 10,
      );
      await page.click("#send");
      await settled(page);
      const [said] = await answers(page);
      await page.waitForTimeout(300);
      equal((await answers(page))[0], said, "text after the stop");
      if (mock) {
        check([...mock.streams.values()][0].stopped, "the server goes on");
        check(
          (await page.innerText("article.assistant .facts")).includes("stopped"),
          "it does not say that it was stopped",
        );
      }
    },
  },
  {
    name: "answering again adds a version; both can be reached",
    async flow(stage) {
      const mock = await stage.serve();
      mock?.script.push({ text: "first answer" }, { text: "second answer" });
      const page = await stage.open();
      await say(page, "Hi");
      const [first] = await answers(page);
      await page.click("[data-act=again]");
      await page.waitForSelector(".versions");
      await settled(page);
      equal(
        await page.innerText("article.assistant .versions span:not(.unseen)"),
        "2/2",
        "place of the new version",
      );
      await page.click("[data-act=previous]");
      equal((await answers(page))[0], first, "the first version");
      await page.waitForFunction(() => document.activeElement.dataset.act === "next", null, {
        timeout: 2000,
      });
    },
  },
  {
    name: "editing a question branches the conversation; the old branch is whole",
    async flow(stage) {
      const page = await stage.open();
      await say(page, "What is 2 + 3?");
      await say(page, "And now a second question");
      await page.click("article.user >> nth=0 >> [data-act=edit]");
      await page.fill(".editor textarea", "What is 4 + 5?");
      await page.press(".editor textarea", "Enter");
      await settled(page);
      await page.waitForFunction(() => document.querySelectorAll("article.turn").length === 2);
      equal((await questions(page))[0], "What is 4 + 5?", "the edited question");
      await page.click("article.user [data-act=previous]");
      equal((await questions(page)).length, 2, "turns of the old branch");
      equal((await questions(page))[0], "What is 2 + 3?", "the old question");
    },
  },
  {
    name: "escape leaves the editor without a change",
    async flow(stage) {
      const page = await stage.open();
      await say(page, "Hello");
      await page.click("[data-act=edit]");
      await page.fill(".editor textarea", "Something else");
      await page.press(".editor textarea", "Escape");
      equal((await questions(page))[0], "Hello", "the question");
      equal(await page.locator(".editor").count(), 0, "editors");
    },
  },
  {
    name: "four samples stand side by side; the chosen one goes on",
    async flow(stage) {
      const mock = await stage.serve();
      const page = await stage.open();
      await page.selectOption("#samples", "4");
      await say(page, "Tell me a story about a fox.");
      equal(await page.locator(".sample").count(), 4, "samples");
      const texts = await answers(page);
      if (mock) {
        equal(mock.last.n, 4, "n of the request");
        equal(new Set(texts).size, 4, "different samples");
      }
      const tops = await page
        .locator(".sample")
        .evaluateAll((all) => all.slice(0, 2).map((one) => one.getBoundingClientRect().top));
      equal(tops[0], tops[1], "top edges");
      await page.click(".sample >> nth=2 >> text=Continue with this");
      equal(await page.locator(".sample").count(), 0, "samples after the choice");
      equal((await answers(page))[0], texts[2], "the chosen one");
      await page.selectOption("#samples", "1");
      await say(page, "And then?");
      if (mock) equal(mock.last.messages[1].content, texts[2], "what the model is told it said");
      await page.click("article.assistant >> nth=0 >> [data-act=compare]");
      equal(await page.locator(".sample").count(), 4, "samples when compared again");
    },
  },
  {
    name: "a calculator call is a block of its own",
    scripted: true,
    async flow(stage) {
      const page = await stage.open();
      await say(page, "What is 12 + 30?");
      equal(
        (await page.innerText(".tool")).replace(/\s+/g, " "),
        "Calculator 12+30 = 42",
        "the block",
      );
      check((await answers(page))[0].endsWith("42."), "the text goes on after it");
      await say(page, "Thanks");
      equal(
        stage.mock.last.messages[1].content.map((part) => part.type).join(),
        "text,tool_call,tool_output,text",
        "what the model is told of it",
      );
    },
  },
  {
    name: "Markdown is shown as headings, lists, tables and links",
    scripted: true,
    async flow(stage) {
      const mock = await stage.serve();
      mock.script.push({ text: MARKDOWN, delay: 0 });
      const page = await stage.open();
      await say(page, "Show me");
      for (const selector of [
        ".md-h1",
        "ol > li ul > li em",
        "blockquote",
        "table td.align-right",
        "strong",
        "s",
        "hr",
      ]) {
        check((await page.locator(`.md ${selector}`).count()) > 0, `no ${selector}`);
      }
      const link = page.locator(".md a");
      equal(await link.getAttribute("rel"), "noopener noreferrer nofollow", "rel of a link");
    },
  },
  {
    name: "code is coloured and copied as it was written",
    scripted: true,
    async flow(stage) {
      const mock = await stage.serve();
      mock.script.push({ text: CODE, delay: 0 });
      const page = await stage.open({ permissions: ["clipboard-read", "clipboard-write"] });
      await say(page, "Show me");
      await page.waitForSelector(".code .hl-keyword");
      await page.click(".code button >> nth=0");
      const copied = await page.evaluate(() => navigator.clipboard.readText());
      equal(copied, CODE.split("```")[1].replace("python\n", "").trimEnd(), "the clipboard");
    },
  },
  {
    name: `${CORPUS.length} hostile answers run no script and ask no other host`,
    scripted: true,
    async flow(stage) {
      const mock = await stage.serve();
      const page = await stage.open();
      for (let at = 0; at < CORPUS.length; at += 20) {
        mock.script.push({
          deltas: CORPUS.slice(at, at + 20).flatMap((text) => [
            { content: text.slice(0, 7) },
            { content: `${text.slice(7)}\n\n` },
          ]),
          delay: 0,
        });
        await say(page, `Part ${at}`);
      }
      // One by one too: what a string does may depend on standing alone. Titles hold them as well.
      await page.evaluate(async (all) => {
        const { showMarkdown } = await import("/assets/markdown.js");
        for (const text of all) {
          const place = document.createElement("div");
          document.getElementById("transcript").append(place);
          showMarkdown(place, text);
        }
      }, CORPUS);
      for (const text of CORPUS.slice(0, 12)) {
        await page.click("#new");
        mock.script.push({ text, delay: 0 });
        await say(page, text);
      }
      for (const link of await page.locator(".md a").all()) {
        check(
          /^(https?|mailto):/.test(await link.getAttribute("href")),
          `a link to ${await link.getAttribute("href")}`,
        );
      }
      const bad = await page.evaluate(() =>
        [...document.querySelectorAll(".md *, #conversations *")]
          .filter(
            (element) =>
              (/^(script|img|iframe|object|embed|style|link|meta|base|form|svg|math)$/i.test(
                element.tagName,
              ) &&
                !element.classList.contains("icon")) ||
              [...element.attributes].some((attribute) => attribute.name.startsWith("on")),
          )
          .map((element) => element.outerHTML.slice(0, 100)),
      );
      check(bad.length === 0, `elements from a model's text: ${bad.join(" ")}`);
      equal(await page.evaluate(() => window.pwned), undefined, "window.pwned");
    },
  },
  {
    name: "settings reach the request and come back after a reload",
    async flow(stage) {
      const mock = await stage.serve();
      const page = await stage.open();
      await page.click("#open-settings");
      for (const [key, value] of Object.entries({
        temperature: 0.3,
        top_k: 7,
        top_p: 0.9,
        min_p: 0.05,
        repetition_penalty: 1.1,
        max_tokens: 33,
        seed: 5,
      })) {
        await page.fill(`#set-${key}`, String(value));
        await page.press(`#set-${key}`, "Tab");
      }
      await page.fill("#set-system", "Be brief.");
      await page.press("#set-system", "Tab");
      await page.keyboard.press("Escape");
      await say(page, "Hello");
      if (mock) {
        const { temperature, top_k, top_p, min_p, repetition_penalty, max_tokens, seed, messages } =
          mock.last;
        equal(
          JSON.stringify([temperature, top_k, top_p, min_p, repetition_penalty, max_tokens, seed]),
          "[0.3,7,0.9,0.05,1.1,33,5]",
          "parameters",
        );
        equal(
          JSON.stringify(messages[0]),
          '{"role":"system","content":"Be brief."}',
          "the system prompt",
        );
      }
      await page.waitForTimeout(300);
      await page.reload();
      await page.waitForSelector("article.assistant");
      await page.click("#open-settings");
      equal(await page.inputValue("#set-temperature"), "0.3", "temperature after a reload");
      equal(await page.inputValue("#set-system"), "Be brief.", "system prompt after a reload");
    },
  },
];
