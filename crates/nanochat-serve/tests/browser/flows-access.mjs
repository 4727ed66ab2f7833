// For everybody: small screens, zoom, the keyboard alone, screen readers, dark and light.

import { CODE, MARKDOWN } from "./answers.mjs";
import { answers, axe, check, equal, say, saved, settled, sideways } from "./harness.mjs";

const WIDE = `${MARKDOWN}\n\n${CODE}\n\n| ${"a wide table | ".repeat(12)}\n|${"---|".repeat(12)}\n| ${"some cell | ".repeat(12)}\n\n${"unbreakable".repeat(30)}`;

async function everyView(stage, options) {
  const mock = await stage.serve();
  const page = await stage.open(options);
  const findings = [];
  const look = async (view) =>
    findings.push(...(await axe(page)).map((text) => `${view}: ${text}`));
  await look("empty");
  mock?.script.push({ text: WIDE, delay: 0 });
  await say(page, "What is 12 + 30?");
  await say(page, "What is 7 * 8?");
  await saved(page);
  await look("conversation");
  await page.click("[data-act=edit] >> nth=0");
  await look("editor");
  await page.keyboard.press("Escape");
  await page.click("#open-settings");
  await look("settings");
  await page.keyboard.press("Escape");
  await page.click("#open-help");
  await look("keys");
  await page.keyboard.press("Escape");
  await page.click("#export summary");
  await look("export");
  await page.click("#export summary");
  await page.selectOption("#samples", "4");
  await say(page, "Tell me a story about a fox.");
  await look("samples");
  if (mock) {
    mock.script.push({ error: { status: 429, retryAfter: 60 } });
    await say(page, "Hello", { wait: false });
    await page.waitForSelector(".notice");
    await look("notice");
  }
  if (await page.locator("#sidebar[inert]").count()) {
    await page.click("#open-sidebar");
    await look("drawer");
  }
  await page.goto(`${stage.url}/train`);
  await page.waitForSelector("body.ready");
  await page.locator("#table summary").click();
  await look("training runs");
  check(findings.length === 0, findings.join("\n"));
}

export default [
  ...["light", "dark"].map((colorScheme) => ({
    name: `axe-core has no serious finding on any view, ${colorScheme}`,
    flow: (stage) => everyView(stage, { colorScheme }),
  })),
  {
    name: "axe-core has no serious finding on a phone",
    flow: (stage) => everyView(stage, { width: 360, height: 740 }),
  },
  ...[
    [320, 640],
    [640, 400],
    [390, 844],
  ].map(([width, height]) => ({
    name: `nothing scrolls sideways at ${width} x ${height}`,
    async flow(stage) {
      const mock = await stage.serve();
      const page = await stage.open({ width, height });
      equal(await sideways(page), 0, "the empty page");
      mock?.script.push({ text: WIDE, delay: 0 });
      await say(page, `A question with a long word: ${"x".repeat(80)}`);
      equal(await sideways(page), 0, "a conversation");
      await page.selectOption("#samples", "4");
      await say(page, "Tell me a story about a fox.");
      equal(await sideways(page), 0, "samples");
      await page.click("#open-settings");
      equal(await sideways(page), 0, "settings");
      equal(
        await page.evaluate(() => {
          const d = document.getElementById("settings");
          return d.scrollWidth - d.clientWidth;
        }),
        0,
        "inside of settings",
      );
      await page.keyboard.press("Escape");
      await page.click("#open-sidebar");
      equal(await sideways(page), 0, "the list");
      await page.goto(`${stage.url}/train`);
      await page.waitForSelector("body.ready");
      equal(await sideways(page), 0, "training runs");
    },
  })),
  {
    name: "the keyboard alone: ask, branch, settings, list, and the focus is always seen",
    async flow(stage) {
      const page = await stage.open();
      const focused = () => page.evaluate(() => document.activeElement.id);
      equal(await focused(), "input", "focus at first");
      await page.keyboard.type("What is 1 + 2?");
      await page.keyboard.press("Enter");
      await page.waitForSelector("article.assistant");
      await settled(page);
      await page.keyboard.press("Escape");
      await page.keyboard.press("?");
      await page.waitForSelector("#help[open]");
      await page.keyboard.press("Escape");
      await page.waitForSelector("#help:not([open])", { state: "attached" });
      await page.keyboard.press("r");
      await page.waitForSelector(".versions");
      await settled(page);
      await page.keyboard.press("[");
      check(
        (await page.innerText("article.assistant .versions")).includes("1/2"),
        "“[” did not go back",
      );
      await page.keyboard.press("e");
      equal(
        await page.evaluate(() => document.activeElement.closest(".editor") !== null),
        true,
        "“e” opens the editor",
      );
      await page.keyboard.press("Escape");
      await page.keyboard.press("s");
      await page.waitForSelector("#settings[open]");
      await page.keyboard.press("Escape");
      await page.keyboard.press("k");
      equal(await focused(), "search", "focus after “k”");
      await page.keyboard.press("ArrowDown");
      equal(
        await page.evaluate(() => document.activeElement.closest("#conversations") !== null),
        true,
        "focus in the list",
      );
      await page.keyboard.press("n");
      equal(await focused(), "input", "focus after “n”");
      // Every stop of the Tab key shows where it is.
      for (let i = 0; i < 25; i++) {
        await page.keyboard.press("Tab");
        const seen = await page.evaluate(() => {
          const element = document.activeElement;
          if (element === document.body || element.id === "input") return true;
          const style = getComputedStyle(element);
          return style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1;
        });
        check(
          seen,
          `no visible focus on ${await page.evaluate(() => document.activeElement.outerHTML.slice(0, 120))}`,
        );
      }
    },
  },
  {
    name: "escape stops an answer; single keys can be turned off",
    async flow(stage) {
      const page = await stage.open();
      await say(page, "A slow and long story", { wait: false });
      await page.waitForFunction(
        () => (document.querySelector("article.assistant .said")?.innerText.length ?? 0) > 5,
      );
      await page.keyboard.press("Escape");
      await settled(page);
      await page.keyboard.press("Escape");
      await page.keyboard.press("s");
      await page.uncheck("#settings .check:last-of-type input");
      await page.keyboard.press("Escape");
      await page.keyboard.press("?");
      equal(await page.locator("#help[open]").count(), 0, "lists of keys");
    },
  },
  {
    name: "screen readers hear the answer once, in sentences",
    scripted: true,
    async flow(stage) {
      const mock = await stage.serve();
      mock.script.push({
        text: "This is the first sentence of it. And here is a second one. The end.",
        delay: 30,
      });
      const page = await stage.open();
      await page.evaluate(() => {
        window.heard = [];
        new MutationObserver((all) =>
          all.forEach((one) =>
            one.addedNodes.forEach((node) => window.heard.push(node.textContent)),
          ),
        ).observe(document.getElementById("announcer"), { childList: true });
      });
      await say(page, "Speak");
      const heard = await page.evaluate(() => window.heard);
      equal(heard.join(" "), (await answers(page))[0], "what was said");
      check(heard.length <= 4, `in ${heard.length} pieces`);
      equal(await page.getAttribute("#announcer", "aria-live"), "polite", "aria-live");
    },
  },
  {
    name: "dark, light and as the system, kept over a reload without a flash",
    async flow(stage) {
      const page = await stage.open({ colorScheme: "light" });
      const paper = () =>
        page.evaluate(() => getComputedStyle(document.documentElement).backgroundColor);
      const light = await paper();
      await page.emulateMedia({ colorScheme: "dark" });
      const dark = await paper();
      check(light !== dark, "the system's choice changes nothing");
      await page.click("#open-settings");
      await page.check("#settings input[value=light]");
      equal(await paper(), light, "light on a dark system");
      await page.reload({ waitUntil: "commit" });
      await page.waitForFunction(() => document.documentElement.dataset.theme === "light");
      await page.waitForSelector("body.ready");
      equal(await paper(), light, "light after a reload");
      await page.click("#open-settings");
      await page.check("#settings input[value=auto]");
      equal(await paper(), dark, "as the system");
    },
  },
  {
    name: "reduced motion: nothing moves",
    scripted: true,
    async flow(stage) {
      const mock = await stage.serve();
      mock.script.push({ text: "Done.", first: 600 });
      const page = await stage.open();
      await say(page, "Hello", { wait: false });
      await page.waitForSelector(".waiting span");
      const moving = await page.evaluate(
        () => document.getAnimations().filter((one) => one.playState === "running").length,
      );
      equal(moving, 0, "animations");
      await settled(page);
    },
  },
  {
    name: "on a phone the list is a drawer that keeps the focus",
    async flow(stage) {
      const page = await stage.open({ width: 390, height: 844 });
      await say(page, "Hello");
      await page.click("#open-sidebar");
      equal(
        await page.evaluate(() => document.querySelector("main").inert),
        true,
        "the page behind it is inert",
      );
      await page.keyboard.press("Escape");
      equal(
        await page.evaluate(() => document.activeElement.id),
        "open-sidebar",
        "focus after it closed",
      );
    },
  },
];
