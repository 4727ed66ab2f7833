// The page of training runs.

import { check, equal } from "./harness.mjs";

const chart = (name) => `.chart:has(h2:text-is("${name}"))`;

export default [
  {
    name: "a running run is drawn live, with its progress and the time left",
    scripted: true,
    async flow(stage) {
      const mock = await stage.serve();
      const page = await stage.open({ path: "/train?run=night" });
      const last = () => page.innerText(`${chart("Loss")} .readout .where`);
      const before = await last();
      check((await page.innerText(".running")).match(/left in this stage/), "no time left");
      mock.runs.run("night").add(40);
      await page.waitForFunction(
        (text) => document.querySelector(".chart .readout .where").textContent !== text,
        before,
      );
      check(
        mock.requests.some((line) => /metrics\?after=[1-9]/.test(line)),
        "all rows are read every time",
      );
    },
  },
  {
    name: "a run that is started again from a checkpoint is read again",
    scripted: true,
    async flow(stage) {
      const mock = await stage.serve();
      const page = await stage.open({ path: "/train?run=night" });
      const run = mock.runs.run("night");
      const kept = run.rows.filter((row) => row.step <= 200);
      run.rows.splice(0, run.rows.length, ...kept);
      await page.waitForFunction(() =>
        /^step 2\d\d$/.test(document.querySelector(".chart .readout .where").textContent),
      );
      run.add(30);
      await page.waitForFunction(() =>
        /^step 2[3-9]\d$/.test(document.querySelector(".chart .readout .where").textContent),
      );
    },
  },
  {
    name: "runs are compared on the same charts",
    scripted: true,
    async flow(stage) {
      const page = await stage.open({ path: "/train?run=speedrun-d4" });
      await page.check("[data-run='speedrun-d6']");
      await page.waitForFunction(
        () => document.querySelectorAll(".chart .readout")[0].children.length === 2,
      );
      equal(await page.locator(`${chart("Loss")} path.line:not(.raw)`).count(), 2, "lines");
      check(
        (await page.evaluate(() => location.search)).includes("speedrun-d6"),
        "the address does not say which runs",
      );
      await page.reload();
      await page.waitForFunction(
        () => document.querySelectorAll(".chart .readout")[0].children.length === 2,
      );
    },
  },
  {
    name: "pointing at a chart, or arrow keys, read all charts at that place",
    scripted: true,
    async flow(stage) {
      const page = await stage.open({ path: "/train?run=speedrun-d4" });
      const where = (name) => page.innerText(`${chart(name)} .readout .where`);
      await page.hover(`${chart("Loss")} svg`);
      const at = await where("Loss");
      check(at !== "step 700", `the readout did not move: ${at}`);
      equal(await where("Speed"), at, "the place in another chart");
      await page.focus(`${chart("Speed")} svg`);
      await page.keyboard.press("Home");
      equal(await where("Loss"), "step 1", "after Home");
      await page.keyboard.press("End");
      equal(await where("Loss"), "step 700", "after End");
    },
  },
  {
    name: "logarithmic, smoothing, stage and axis change the picture",
    scripted: true,
    async flow(stage) {
      const page = await stage.open({ path: "/train?run=speedrun-d4" });
      const path = () => page.getAttribute(`${chart("Loss")} path.line:not(.raw)`, "d");
      const seen = [await path()];
      const differs = async (what) => {
        const now = await path();
        check(!seen.includes(now), `${what} changed nothing`);
        seen.push(now);
      };
      await page.check("text=Logarithmic");
      await differs("logarithmic");
      await page.fill("#smooth", "0");
      await differs("smoothing");
      await page.check("text=Time");
      await differs("time");
      await page.check("text=Finetuning");
      await differs("the stage");
      await page.reload();
      await page.waitForSelector("body.ready");
      equal(await page.isChecked("text=Logarithmic"), true, "logarithmic after a reload");
    },
  },
  {
    name: "the figures are there as a table",
    scripted: true,
    async flow(stage) {
      const page = await stage.open({ path: "/train?run=speedrun-d4" });
      await page.click("#table summary");
      await page.waitForSelector("#table tbody tr");
      const rows = await page.locator("#table tbody tr").count();
      check(rows >= 20 && rows <= 25, `${rows} rows`);
      check(
        /speedrun-d4\s+700/.test(await page.innerText("#table tbody tr:last-child")),
        "the last step is missing",
      );
    },
  },
  {
    name: "a run that went back to a checkpoint has each step once",
    scripted: true,
    async flow(stage) {
      const page = await stage.open({ path: "/train" });
      const steps = await page.evaluate(async () => {
        const { Run } = await import("/assets/runs.js");
        const run = new Run({ name: "x" });
        for (const step of [1, 2, 3, 4, 3, 4, 5])
          run.take({ kind: "step", stage: "base", step, loss: step, tokens: 10 });
        return run.steps.map((row) => `${row.step}:${row.allTokens}`).join();
      });
      equal(steps, "1:10,2:20,3:30,4:40,5:50", "steps and tokens");
    },
  },
  {
    name: "the training page opens, with or without runs",
    async flow(stage) {
      const page = await stage.open({ path: "/train" });
      check(
        (await page.locator("#runs label, #runs .hint").count()) > 0,
        "neither runs nor words about none",
      );
    },
  },
  {
    name: "a server without runs says how to make one",
    scripted: true,
    async flow(stage) {
      await stage.serve({ runs: { list: () => [] } });
      const page = await stage.open({ path: "/train" });
      check(
        (await page.innerText("main")).includes("nanochat speedrun"),
        await page.innerText("main"),
      );
    },
  },
];
