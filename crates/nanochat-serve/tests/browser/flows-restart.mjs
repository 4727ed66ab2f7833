// The real server, killed in the middle of an answer and started again on the same port.

import { spawn } from "node:child_process";
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { createInterface } from "node:readline";

import { answers, check, say, saved, settled } from "./harness.mjs";

/** Starts `binary serve run`; resolves to the process and its URL once it listens. */
function start(binary, run, home, port) {
  // Plain kernels on one thread and the model before finetuning: answers are long, and slow enough to be cut.
  const slow = ["-i", "base", "--device", "cpu", "--threads", "1", "--simd", "portable", "--dtype", "f32"];
  const history = `--history=${join(home, "history.sqlite")}`;
  const child = spawn(binary, ["serve", run, "--port", String(port), history, ...slow], {
    stdio: ["ignore", "pipe", "inherit"],
    env: { ...process.env, NANOCHAT_BASE_DIR: home },
  });
  return new Promise((resolve, reject) => {
    child.once("exit", (code) => reject(new Error(`the server ended with ${code}`)));
    createInterface(child.stdout).on("line", (line) => {
      const url = line.match(/^chat: (http:\S+)/)?.[1];
      if (url) resolve({ child, url });
    });
  });
}

const ended = (child) => new Promise((resolve) => child.once("exit", resolve));

/** The flow with this program and this run. */
export default (binary, run) => [
  {
    name: "the real server is killed in mid-answer and started again",
    async flow(stage) {
      const home = mkdtempSync(join(tmpdir(), "nanochat-restart-"));
      let server = await start(binary, run, home, 0);
      try {
        stage.live = stage.url = server.url;
        const page = await stage.open();
        const said = "article.assistant .said";
        const first = page.waitForFunction(
          (said) => document.querySelector(said)?.innerText.trim().length > 10,
          said,
        );
        await say(page, "Tell me a long story", { wait: false });
        await first;
        await saved(page);
        const exit = ended(server.child);
        server.child.kill("SIGKILL");
        await exit;
        const cut = (await answers(page))[0].slice(0, 10);
        server = await start(binary, run, home, new URL(server.url).port);
        await page.waitForSelector(".notice", { timeout: 20_000 });
        const notice = await page.innerText(".notice");
        check(notice.includes("cut off"), notice);
        check((await answers(page))[0].startsWith(cut), "what had come is gone");
        await page.click(".notice >> text=Try again");
        await page.waitForSelector(".versions");
        await settled(page);
        check((await answers(page))[0].length > 0, "the new server says nothing");
        await page.click("article.assistant [data-act=previous]");
        check((await answers(page))[0].startsWith(cut), "the cut answer is gone");
        await saved(page);
        // A page that is opened anew finds the conversation in the new server's history.
        const other = await stage.open();
        await other.click("nav >> text=Tell me a long story");
        await other.waitForSelector(said);
        check((await answers(other))[0].length > 0, "the history lost the conversation");
      } finally {
        server.child.kill("SIGKILL");
        rmSync(home, { recursive: true, force: true });
      }
    },
  },
];
