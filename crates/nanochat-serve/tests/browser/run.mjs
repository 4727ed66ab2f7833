// Runs the flows one after another and says which pass. Exit code 1 if one fails.

import { createRequire } from "node:module";

import { Stage } from "./harness.mjs";
import access from "./flows-access.mjs";
import chat from "./flows-chat.mjs";
import faults from "./flows-faults.mjs";
import history from "./flows-history.mjs";
import modules from "./flows-modules.mjs";
import restart from "./flows-restart.mjs";
import train from "./flows-train.mjs";

const { chromium } = createRequire(import.meta.url)("playwright-core");

const args = process.argv.slice(2);
const at = args.indexOf("--url");
const live = at >= 0 ? args.splice(at, 2)[1]?.replace(/\/$/, "") : null;
// A program and a run: the flow that kills a real server, and no other.
const real = args.indexOf("--kill");
const killed = real >= 0 ? args.splice(real, 3).slice(1) : null;
const wanted = args.filter((word) => !word.startsWith("--"));

let browser;
try {
  browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium",
    args: ["--no-sandbox"],
  });
} catch (error) {
  console.log(`skipped browser: Chromium does not start (${error.message.split("\n")[0]})`);
  process.exit(0);
}

const counts = { pass: 0, fail: 0, skip: 0 };
const flows = killed
  ? restart(...killed)
  : [...chat, ...history, ...faults, ...access, ...train, ...modules];
for (const { name, scripted = false, flow } of flows) {
  if (wanted.length && !wanted.some((word) => name.includes(word))) continue;
  if (scripted && live) {
    counts.skip++;
    console.log(`skip  ${name}: needs answers that a test chooses`);
    continue;
  }
  const stage = new Stage(browser, live);
  const started = performance.now();
  let error = null;
  try {
    await flow(stage);
    if (stage.problems.length) error = new Error(stage.problems.join("\n"));
  } catch (thrown) {
    error = thrown;
    error.message += stage.problems.map((problem) => `\n${problem}`).join("");
  }
  await stage.end();
  counts[error ? "fail" : "pass"]++;
  const seconds = ((performance.now() - started) / 1000).toFixed(1);
  console.log(
    `${error ? "FAIL" : "pass"}  ${name} (${seconds} s)${error ? `\n      ${error.message.replace(/\n/g, "\n      ")}` : ""}`,
  );
}
await browser.close();
console.log(
  `${counts.pass} passed, ${counts.fail} failed, ${counts.skip} skipped, against ${live ?? killed?.[0] ?? "the stand-in"}`,
);
process.exit(counts.fail ? 1 : 0);
