// Training runs for the stand-in: two that ended and one that goes on, with the rows that
// `nanochat train` writes (docs/FORMAT.md).

export function makeRuns() {
  const runs = [
    makeRun("speedrun-d4", { of: 700, start: 8.3, end: 1.35, seed: 1, done: 700, sft: 250 }),
    makeRun("speedrun-d6", {
      of: 650,
      start: 8.3,
      end: 1.1,
      seed: 2,
      done: 650,
      sft: 0,
      rate: 4200,
    }),
    makeRun("night", {
      of: 1200,
      start: 8.3,
      end: 1.0,
      seed: 3,
      done: 320,
      sft: 0,
      rate: 5300,
      running: true,
    }),
  ];
  return { list: () => runs, run: (name) => runs.find((run) => run.name === name) };
}

function makeRun(name, { of, start, end, seed, done, sft, rate = 7400, running = false }) {
  const random = generator(seed);
  const run = {
    name,
    rows: [],
    settings: { command: ["nanochat", "speedrun"], started: 1_795_000_000 },
    summary: null,
  };
  let seconds = 0;
  run.add = (count, stage = "base", total = of, from = start, to = end) => {
    for (let i = 0; i < count; i++) {
      const step = run.rows.filter((row) => row.stage === stage && row.kind === "step").length + 1;
      if (step > total) return;
      const share = step / total;
      const level = to + (from - to) * Math.exp(-7 * share) * (1 - 0.3 * share);
      const speed = rate * (0.93 + 0.14 * random());
      const dt = (2048 / speed) * 1000;
      seconds += dt / 1000;
      run.rows.push({
        data_ms: 0.1,
        dt_ms: dt,
        epoch: 1,
        kind: "step",
        loss: level + (random() - 0.5) * 0.25 * level ** 0.5,
        lr_multiplier:
          share < 0.03 ? share / 0.03 : share > 0.6 ? Math.max(0.05, (1 - share) / 0.4) : 1,
        smooth_loss: level,
        stage,
        step,
        tokens: 2048,
        tokens_per_sec: speed,
        train_s: seconds,
        trained_tokens: 2048,
      });
      if (step % 50 === 0)
        run.rows.push({ kind: "eval", stage, step, tokens: 8192, val_bpb: level * 0.31 });
    }
  };
  run.add(done);
  if (sft) run.add(sft, "sft", sft, 2.9, 0.9);
  if (!running) run.summary = { val_bpb: end * 0.31, parameters: 5_120_218, wall_s: seconds };
  run.text = () => run.rows.map((row) => `${JSON.stringify(row)}\n`).join("");
  run.head = () => {
    const last = run.rows.findLast((row) => row.kind === "step");
    const updated = running ? Date.now() : Date.now() - 3_600_000 * seed;
    return {
      name,
      stage: last.stage,
      updated: new Date(updated).toISOString(),
      step: last.step,
      of: last.stage === "sft" ? sft : of,
      loss: last.loss,
    };
  };
  if (running) {
    const timer = setInterval(() => run.add(1), 500);
    timer.unref();
  }
  return run;
}

/** Numbers in [0, 1) that are the same in every run of the tests. */
function generator(seed) {
  let state = seed * 2_654_435_761;
  return () => {
    state = (Math.imul(state ^ (state >>> 15), 2_246_822_519) + 0x9e3779b9) >>> 0;
    return state / 2 ** 32;
  };
}
