// What flows share: a server, a browser, pages that notice script, and small steps.

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

import { startMock } from "./mock.mjs";

const AXE = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

/** A flow's surroundings. Pages are closed, and the stand-in ended, by `end`. */
export class Stage {
  constructor(browser, live) {
    this.browser = browser;
    this.live = live;
    this.contexts = [];
    this.problems = [];
  }

  /** Starts the stand-in; against a live server it does nothing. */
  async serve(options) {
    if (!this.live) this.mock = await startMock(options);
    this.url = this.live ?? this.mock.url;
    return this.mock;
  }

  /** A new browser profile with one page. Requests to any other host fail the flow. */
  async open({ path = "/", width = 1280, height = 800, ...options } = {}) {
    if (!this.url) await this.serve();
    const context = await this.browser.newContext({
      viewport: { width, height },
      reducedMotion: "reduce",
      ...options,
    });
    this.contexts.push(context);
    await context.route("**/*", (route) => {
      const url = route.request().url();
      if (url.startsWith(this.url) || /^(data|blob):/.test(url)) return route.continue();
      this.problems.push(`a request to another host: ${url}`);
      return route.abort();
    });
    return this.tab(context, path);
  }

  async tab(context, path = "/") {
    const page = await context.newPage();
    page.on("pageerror", (error) => this.problems.push(`an error in the page: ${error.stack}`));
    page.on("console", (message) => {
      if (message.type() === "error" && !/Failed to load resource|ERR_/.test(message.text())) {
        this.problems.push(`console: ${message.text()}`);
      }
    });
    page.on("dialog", (dialog) => {
      this.problems.push(`a dialog: ${dialog.message()}`);
      dialog.dismiss();
    });
    await page.goto(this.url + path);
    await page.waitForSelector("body.ready");
    return page;
  }

  async end() {
    for (const context of this.contexts) await context.close();
    await this.mock?.close();
  }
}

export function check(condition, message) {
  if (!condition) throw new Error(message);
}

export function equal(found, wanted, what) {
  check(
    Object.is(found, wanted),
    `${what}: found ${JSON.stringify(found)}, wanted ${JSON.stringify(wanted)}`,
  );
}

/** Sends a message and, unless told otherwise, waits for the whole answer. */
export async function say(page, text, { wait = true } = {}) {
  const before = await page.locator("article.turn").count();
  await page.fill("#input", text);
  await page.press("#input", "Enter");
  await page.waitForFunction((n) => document.querySelectorAll("article.turn").length > n, before);
  if (wait) await settled(page);
}

/** Waits until no answer is on its way. */
export async function settled(page) {
  await page.waitForFunction(
    () =>
      document.querySelector("#send span").textContent === "Send" &&
      document.querySelector("article.assistant, .notice"),
    null,
    { timeout: 60_000 },
  );
}

/** Waits until what is on the page is stored. */
export async function saved(page) {
  await page.waitForFunction(() => document.querySelector("#conversations li.here"));
  await page.waitForTimeout(150);
}

export const answers = (page) => page.locator("article.assistant .said").allInnerTexts();
export const questions = (page) => page.locator("article.user .said").allInnerTexts();
export const titles = (page) => page.locator("#conversations .title").allInnerTexts();

/** Serious and critical findings of axe-core, as text. */
export async function axe(page) {
  // Over the debugging protocol, as a page under this policy takes no script from a test.
  const session = await page.context().newCDPSession(page);
  await session.send("Runtime.evaluate", { expression: AXE });
  const { result } = await session.send("Runtime.evaluate", {
    expression:
      "axe.run(document, { resultTypes: ['violations'] }).then((r) => JSON.stringify(r.violations))",
    awaitPromise: true,
    returnByValue: true,
  });
  return JSON.parse(result.value)
    .filter(({ impact }) => impact === "serious" || impact === "critical")
    .map(
      ({ id, nodes }) =>
        `${id}: ${nodes.map((node) => `${node.html.slice(0, 120)} (${node.failureSummary?.split("\n")[1]?.trim()})`).join(" | ")}`,
    );
}

/** How far the page can be scrolled sideways, in pixels. */
export const sideways = (page) =>
  page.evaluate(() => document.documentElement.scrollWidth - document.documentElement.clientWidth);
