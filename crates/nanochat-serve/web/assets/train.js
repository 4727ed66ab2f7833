// The page of training runs: which runs, which axes, and charts that follow while a run goes on.

import { Chart, compact } from "./charts.js";
import { announce, h } from "./dom.js";
import { errorNotice } from "./notice.js";
import { duration, Run, smooth, timeOf } from "./runs.js";
import { getJson } from "./stream.js";

const CHARTS = [
  {
    title: "Loss",
    unit: "nats per token",
    of: "steps",
    y: "loss",
    smoothed: true,
    format: (v) => v.toFixed(3),
  },
  {
    title: "Validation",
    unit: "bits per byte",
    of: "evals",
    y: "val_bpb",
    format: (v) => v.toFixed(4),
  },
  {
    title: "Speed",
    unit: "tokens per second",
    of: "steps",
    y: "tokens_per_sec",
    smoothed: true,
    format: (v) => Math.round(v).toLocaleString("en"),
  },
  {
    title: "Learning rate",
    unit: "multiplier of the schedule",
    of: "steps",
    y: "lr_multiplier",
    format: (v) => v.toFixed(3),
  },
];

const X_AXES = {
  step: ["Step", "step", compact],
  allTokens: ["Tokens", "tokens", compact],
  train_s: ["Time", "after", duration],
};

const PLACES = 6;
const EVERY_MS = 1000;
const STORED = "nanochat.train";

const view = { x: "step", log: false, smooth: 0.9, stage: "base", ...stored() };
const runs = new Map();
/** Runs that are shown, each with the number of its colour, which it keeps while it is shown. */
const chosen = new Map();
let charts = [];

function stored() {
  try {
    return JSON.parse(localStorage.getItem(STORED)) ?? {};
  } catch {
    return {};
  }
}

/** The first colour that no other shown run has. */
function add(name) {
  const used = [...chosen.values()];
  const free = Array.from({ length: PLACES }, (_, i) => i).find((i) => !used.includes(i));
  if (!chosen.has(name)) chosen.set(name, free ?? used.length % PLACES);
}

const place = (run) => chosen.get(run.name);
const shown = () => [...runs.values()].filter((run) => chosen.has(run.name));

/** Reads the list of runs, then what each chosen one has written since. */
async function refresh() {
  const { runs: heads } = await getJson("/api/runs");
  const fresh = heads.filter((head) => !runs.has(head.name));
  for (const head of heads) {
    const known = runs.get(head.name);
    if (known) known.meet(head);
    else runs.set(head.name, new Run(head));
  }
  if (!chosen.size) for (const head of wanted(heads)) add(head.name);
  let grown = fresh.length > 0;
  for (const run of shown()) {
    if (run.next === 0 || !run.done() || run.running(Date.now()))
      grown = (await run.read()) || grown;
  }
  return grown;
}

/** Runs of the address, else the one that changed last. */
function wanted(heads) {
  const asked = new URLSearchParams(location.search).getAll("run");
  const named = heads.filter((head) => asked.includes(head.name));
  const newest = (a, b) => timeOf(b.updated) - timeOf(a.updated);
  return named.length ? named : [...heads].sort(newest).slice(0, 1);
}

function drawRuns() {
  const list = document.querySelector("#runs > div");
  if (!runs.size) {
    list.replaceChildren(h("p", { class: "hint" }, "None yet."));
    return;
  }
  list.replaceChildren(
    ...[...runs.values()].map((run) =>
      h(
        "label",
        { class: "run" },
        h("input", {
          type: "checkbox",
          checked: chosen.has(run.name),
          "data-run": run.name,
          onchange: (event) => choose(run, event.target.checked),
        }),
        h("i", { class: chosen.has(run.name) ? `swatch place${place(run)}` : "swatch" }),
        h("span", {}, h("b", {}, run.name), h("span", { class: "hint" }, state(run))),
      ),
    ),
  );
}

function state(run) {
  const { stage, step, of, loss } = run.head;
  const where = of
    ? `${stage}, step ${step?.toLocaleString("en")} of ${of.toLocaleString("en")}`
    : `${stage ?? "base"}, step ${step ?? 0}`;
  const now = run.running(Date.now()) ? "running: " : "";
  return `${now}${where}${Number.isFinite(loss) ? `, loss ${loss.toFixed(3)}` : ""}`;
}

async function choose(run, on) {
  if (on) add(run.name);
  else chosen.delete(run.name);
  const query = new URLSearchParams(shown().map((one) => ["run", one.name]));
  history.replaceState(null, "", query.size ? `?${query}` : location.pathname);
  await guarded(() => on && run.read());
  draw();
}

function drawAxes() {
  const set = (patch) => {
    Object.assign(view, patch);
    localStorage.setItem(STORED, JSON.stringify(view));
    draw();
  };
  const radio = (name, value, label, current) =>
    h(
      "label",
      {},
      h("input", {
        type: "radio",
        name,
        value,
        checked: value === current,
        onchange: () => set({ [name]: value }),
      }),
      label,
    );
  const smoothing = h("output", { for: "smooth" }, view.smooth.toFixed(2));
  document.getElementById("axes").replaceChildren(
    h(
      "fieldset",
      { class: "choice", id: "stages" },
      h("legend", {}, "Stage"),
      ["base", "sft"].map((stage) =>
        radio("stage", stage, { base: "Pretraining", sft: "Finetuning" }[stage], view.stage),
      ),
    ),
    h(
      "fieldset",
      { class: "choice" },
      h("legend", {}, "Across"),
      Object.entries(X_AXES).map(([key, [label]]) => radio("x", key, label, view.x)),
    ),
    h(
      "label",
      { class: "check" },
      h("input", {
        type: "checkbox",
        checked: view.log,
        onchange: (event) => set({ log: event.target.checked }),
      }),
      "Logarithmic",
    ),
    h(
      "div",
      { class: "field" },
      h("label", { for: "smooth" }, "Smoothing ", smoothing),
      h("input", {
        id: "smooth",
        type: "range",
        min: "0",
        max: "0.99",
        step: "0.01",
        value: String(view.smooth),
        oninput: (event) => {
          smoothing.textContent = Number(event.target.value).toFixed(2);
          set({ smooth: Number(event.target.value) });
        },
      }),
    ),
  );
}

function draw() {
  drawRuns();
  const [, xName, xFormat] = X_AXES[view.x];
  const list = shown();
  CHARTS.forEach((chart, i) => {
    const lines = list.map((run) => {
      const points = run.series(chart, view.stage, view.x);
      const smoothed = chart.smoothed && view.smooth > 0;
      return {
        name: run.name,
        place: place(run),
        points: smoothed ? smooth(points, view.smooth) : points,
        raw: smoothed ? points : null,
      };
    });
    charts[i].set(lines);
  });
  // After all are set: which are hidden decides how wide the others are.
  CHARTS.forEach(({ y }, i) =>
    charts[i].show({ log: view.log && y !== "lr_multiplier", xName, xFormat }),
  );
  drawNotice(list);
  drawProgress(list);
  drawWords(list);
  drawTable(list);
}

function drawNotice(list) {
  const empty = list.every((run) => !run.steps.some((step) => step.stage === view.stage));
  const text = !runs.size
    ? "There are no runs here yet. “nanochat speedrun” makes one; this page then follows it."
    : !list.length
      ? "Choose a run to see it."
      : `No steps of ${view.stage === "sft" ? "finetuning" : "pretraining"} here yet.`;
  document
    .getElementById("notice")
    .replaceChildren(...(empty ? [h("p", { class: "lead" }, text)] : []));
}

function drawProgress(list) {
  const running = list.filter((run) => run.head.step && run.running(Date.now()));
  document.getElementById("progress").replaceChildren(...running.map(progress));
}

function progress(run) {
  const { step, of } = run.head;
  const eta = run.eta();
  const last = run.steps.at(-1);
  const done = of ? ` of ${of.toLocaleString("en")}` : ` of ${run.head.stage}`;
  return h(
    "div",
    { class: "running" },
    h("b", {}, h("i", { class: `swatch place${place(run)}` }), run.name),
    of && h("progress", { max: of, value: step, "aria-label": `Progress of ${run.name}` }),
    h("span", {}, `step ${step.toLocaleString("en")}${done}`),
    last && h("span", {}, `${Math.round(last.tokens_per_sec).toLocaleString("en")} tok/s`),
    eta !== null && h("span", { class: "eta" }, `${duration(eta)} left in this stage`),
  );
}

/** What the model said on the way, if the rows hold it. */
function drawWords(list) {
  const words = list.flatMap((run) => run.words.slice(-3).map((word) => ({ run, ...word })));
  document
    .getElementById("words")
    .replaceChildren(
      ...(words.length ? [h("h2", {}, "Samples")] : []),
      ...words.map(({ run, step, text }) =>
        h(
          "blockquote",
          {},
          h("p", {}, text),
          h("footer", { class: "hint" }, `${run.name}, step ${step}`),
        ),
      ),
    );
}

/** Every chart's figures at some twenty steps, for readers who do not see the charts. */
function drawTable(list) {
  const details = document.getElementById("table");
  if (!details.open) return;
  const rows = list.flatMap((run) => {
    const steps = run.steps.filter((step) => step.stage === view.stage);
    const every = Math.max(1, Math.ceil(steps.length / 20));
    return steps
      .filter((_, i) => i % every === every - 1 || i === steps.length - 1)
      .map((step) => {
        const val = run.evals.findLast((one) => one.stage === view.stage && one.step <= step.step);
        const cells = [
          run.name,
          step.step,
          number(step.smooth_loss ?? step.loss, 3),
          number(val?.val_bpb, 4),
          number(step.tokens_per_sec, 0),
          number(step.lr_multiplier, 3),
          duration(step.train_s ?? 0),
        ];
        return h(
          "tr",
          {},
          h("th", { scope: "row" }, cells[0]),
          cells.slice(1).map((cell) => h("td", {}, String(cell))),
        );
      });
  });
  const names = [
    "Run",
    "Step",
    "Loss, smoothed",
    "Validation bpb",
    "Tokens/s",
    "Rate multiplier",
    "Time",
  ];
  details.querySelector(".wide").replaceChildren(
    h(
      "table",
      {},
      h(
        "thead",
        {},
        h(
          "tr",
          {},
          names.map((name) => h("th", { scope: "col" }, name)),
        ),
      ),
      h("tbody", {}, rows),
    ),
  );
}

const number = (value, digits) =>
  Number.isFinite(value)
    ? value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits })
    : "–";

let failure = null;

/** Does it; says so once, and keeps trying, when the server does not answer. */
async function guarded(work) {
  try {
    const result = await work();
    if (failure) {
      failure.cancel();
      failure.remove();
      failure = null;
      announce("The server answers again");
    }
    return result;
  } catch (error) {
    if (error.status === undefined) throw error;
    if (!failure)
      document
        .getElementById("notice")
        .before((failure = errorNotice(error, () => location.reload())));
    return false;
  }
}

async function follow() {
  if (!document.hidden && (await guarded(refresh))) {
    if (!document.querySelector("#runs :focus")) draw();
  }
  setTimeout(follow, EVERY_MS);
}

async function start() {
  charts = CHARTS.map((chart) => new Chart(chart, (x) => charts.forEach((one) => one.move(x))));
  document.getElementById("charts").append(...charts.map((chart) => chart.element));
  document.getElementById("table").addEventListener("toggle", draw);
  let width = 0;
  new ResizeObserver(([entry]) => {
    if (Math.abs(entry.contentRect.width - width) > 1) draw();
    width = entry.contentRect.width;
  }).observe(document.getElementById("charts"));
  drawAxes();
  await guarded(refresh);
  const [run] = shown();
  if (run && !run.stages().includes(view.stage) && run.stages().length) {
    view.stage = run.stages()[0];
    drawAxes();
  }
  draw();
  document.body.classList.add("ready");
  setTimeout(follow, EVERY_MS);
}

start();
