// What goes wrong: lost connections, restarts, a full queue, refusals.

import { answers, check, equal, questions, say, saved, settled } from "./harness.mjs";
import { startMock } from "./mock.mjs";

const words = (count) => Array.from({ length: count }, (_, i) => `word${i}`).join(" ");

const refused = (status, error, wanted) => ({
  name: `${status} is explained, and another try succeeds`,
  scripted: true,
  async flow(stage) {
    const mock = await stage.serve();
    mock.script.push({ error: { status, ...error } }, { text: "There it is." });
    const page = await stage.open();
    await say(page, "Hello", { wait: false });
    await page.waitForSelector(".notice");
    const notice = await page.innerText(".notice");
    for (const text of wanted) check(notice.includes(text), `“${text}” is not in: ${notice}`);
    await page.click(".notice >> text=Try again");
    await page.waitForSelector("article.assistant");
    await settled(page);
    equal((await answers(page))[0], "There it is.", "the answer");
    equal((await questions(page)).length, 1, "questions");
  },
});

export default [
  {
    name: "a page refreshed in mid-answer picks the stream up again",
    async flow(stage) {
      const mock = await stage.serve();
      mock?.script.push({ text: words(60), delay: 40 });
      const page = await stage.open();
      await say(page, "Tell me a slow and long story about a fox and a bear and an owl.", {
        wait: false,
      });
      await page.waitForFunction(
        () => (document.querySelector("article.assistant .said")?.innerText.length ?? 0) > 12,
      );
      await saved(page);
      await page.reload();
      await page.waitForSelector("article.assistant");
      await settled(page);
      if (mock) equal((await answers(page))[0], words(60), "the whole answer, each word once");
      equal(await page.locator(".notice").count(), 0, "notices");
    },
  },
  {
    name: "a connection that breaks in mid-answer is picked up where it was",
    scripted: true,
    async flow(stage) {
      const mock = await stage.serve();
      // The generator ends with the connection here: the rest comes from a stream that is put back.
      const page = await stage.open();
      mock.script.push({ text: words(80), delay: 25 });
      await say(page, "Go on", { wait: false });
      await page.waitForFunction(() =>
        document.querySelector("article.assistant .said")?.innerText.includes("word8"),
      );
      for (const stream of mock.streams.values())
        for (const response of stream.open) response.socket.destroy();
      await settled(page);
      equal((await answers(page))[0], words(80), "the whole answer, each word once");
      check(
        mock.requests.some((line) => /GET \/api\/streams\/.*after=[1-9]/.test(line)),
        "it began from the start",
      );
    },
  },
  {
    name: "a server that restarts in mid-answer: what came is kept, and a retry works",
    scripted: true,
    async flow(stage) {
      const mock = await stage.serve();
      const page = await stage.open();
      mock.script.push({ text: words(200), delay: 40 });
      await say(page, "Go on", { wait: false });
      await page.waitForFunction(() =>
        document.querySelector("article.assistant .said")?.innerText.includes("word4"),
      );
      await saved(page);
      const { port, store } = mock;
      await mock.close();
      stage.mock = await startMock({ port, store, script: [{ text: "From the new server." }] });
      await page.waitForSelector(".notice", { timeout: 20_000 });
      const notice = await page.innerText(".notice");
      check(notice.includes("cut off") && notice.includes("restarted"), notice);
      check((await answers(page))[0].includes("word4"), "what had come is gone");
      await page.click(".notice >> text=Try again");
      await page.waitForSelector(".versions");
      await settled(page);
      equal((await answers(page))[0], "From the new server.", "the new answer");
      await page.click("article.assistant [data-act=previous]");
      check((await answers(page))[0].includes("word4"), "the cut answer is gone");
    },
  },
  {
    name: "an answer that was stopped elsewhere says so",
    scripted: true,
    async flow(stage) {
      const mock = await stage.serve();
      mock.script.push({ text: words(100), delay: 20 });
      const page = await stage.open();
      await say(page, "Go on", { wait: false });
      await page.waitForFunction(() =>
        document.querySelector("article.assistant .said")?.innerText.includes("word4"),
      );
      for (const stream of mock.streams.values()) {
        Object.assign(stream, { stopped: true, done: true, silent: true });
        for (const response of stream.open) response.end();
      }
      await page.waitForSelector(".notice");
      check((await page.innerText(".notice")).includes("stopped"), await page.innerText(".notice"));
      check((await answers(page))[0].includes("word4"), "what had come is gone");
    },
  },
  {
    name: "an error in mid-answer keeps what came and says why",
    scripted: true,
    async flow(stage) {
      const mock = await stage.serve();
      mock.script.push({ text: words(30), failAfter: 20 });
      const page = await stage.open();
      await say(page, "Hello", { wait: false });
      await page.waitForSelector(".notice");
      check(
        (await page.innerText(".notice")).includes("The model thread stopped"),
        await page.innerText(".notice"),
      );
      check((await answers(page))[0].startsWith("word0"), "what had come is gone");
    },
  },
  {
    name: "429 counts down and tries again by itself",
    scripted: true,
    async flow(stage) {
      const mock = await stage.serve();
      mock.script.push({ error: { status: 429, retryAfter: 2 } }, { text: "Now it is my turn." });
      const page = await stage.open();
      await say(page, "Hello", { wait: false });
      await page.waitForSelector(".countdown");
      const [first] = (await page.innerText(".countdown")).match(/\d+/);
      equal(first, "2", "seconds at first");
      await page.waitForSelector("article.assistant", { timeout: 5000 });
      await settled(page);
      equal((await answers(page))[0], "Now it is my turn.", "the answer");
    },
  },
  {
    name: "429 does not try again when it is told not to wait",
    scripted: true,
    async flow(stage) {
      const mock = await stage.serve();
      mock.script.push({ error: { status: 429, retryAfter: 1 } });
      const page = await stage.open();
      await say(page, "Hello", { wait: false });
      await page.click("text=Do not wait");
      await page.waitForTimeout(1500);
      equal(await page.locator("article.assistant").count(), 0, "answers");
      equal(mock.requests.filter((line) => line.startsWith("POST /v1/chat")).length, 1, "requests");
    },
  },
  refused(503, { message: "the server is shutting down", retryAfter: 30 }, [
    "takes no questions",
    "The server is shutting down.",
    "30 s",
  ]),
  refused(
    400,
    { message: "the conversation has 600 tokens, the model sees 512", param: "messages" },
    ["refused", "600 tokens", "(messages)"],
  ),
  refused(500, { message: "a step failed" }, ["The server failed", "A step failed."]),
  {
    name: "401 offers to sign in and keeps the message",
    scripted: true,
    async flow(stage) {
      const mock = await stage.serve();
      mock.script.push({ error: { status: 401, message: "wrong key" } });
      const page = await stage.open();
      await say(page, "Hello", { wait: false });
      await page.waitForSelector(".notice a[href='/']");
      equal((await questions(page))[0], "Hello", "the message");
    },
  },
  {
    name: "a server that is gone is named; when it is back the same message is answered",
    scripted: true,
    async flow(stage) {
      const mock = await stage.serve();
      const page = await stage.open();
      const { port, store } = mock;
      await mock.close();
      await say(page, "Are you there?", { wait: false });
      await page.waitForSelector(".notice");
      check(
        (await page.innerText(".notice")).includes("No answer from the server"),
        await page.innerText(".notice"),
      );
      stage.mock = await startMock({ port, store, script: [{ text: "I am." }] });
      await page.click(".notice >> text=Try again");
      await page.waitForSelector("article.assistant");
      await settled(page);
      equal((await answers(page))[0], "I am.", "the answer");
      await saved(page);
      check([...store.values()].length === 1, "the conversation was not saved after all");
    },
  },
  {
    name: "a question that was left without an answer can be answered after a reload",
    scripted: true,
    async flow(stage) {
      const mock = await stage.serve();
      mock.script.push({ error: { status: 400, message: "no" } }, { text: "Here." });
      const page = await stage.open();
      await say(page, "Hello", { wait: false });
      await page.waitForSelector(".notice");
      await page.waitForTimeout(200);
      const [id] = [...mock.store.keys()];
      await page.goto(`${stage.url}/#c=${id}`);
      await page.reload();
      await page.click("text=Answer it");
      await page.waitForSelector("article.assistant");
      await settled(page);
      equal((await answers(page))[0], "Here.", "the answer");
    },
  },
];
