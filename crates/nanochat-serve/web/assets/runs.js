// Training runs as the server reports them: rows of metrics.jsonl become series of points.

import { getJson } from "./stream.js";

/** One run: its rows so far, read on from where the last read ended. */
export class Run {
  constructor(head) {
    this.head = head;
    this.next = 0;
    this.steps = [];
    this.evals = [];
    this.words = [];
  }

  get name() {
    return this.head.name;
  }

  /** What the list says of it now. A run that went back to a checkpoint is read from its start. */
  meet(head) {
    const back = head.stage === this.head.stage && head.step < this.head.step;
    if (back) Object.assign(this, { next: 0, steps: [], evals: [], words: [] });
    this.head = head;
  }

  /** Reads what was written since, in as many pieces as it takes; true if there was something. */
  async read() {
    let grown = false;
    for (;;) {
      const path = `/api/runs/${encodeURIComponent(this.name)}/metrics?after=${this.next}`;
      const { rows, next } = await getJson(path);
      if (next === this.next) return grown;
      this.next = next;
      for (const row of rows) this.take(row);
      grown = true;
    }
  }

  take(row) {
    if (!row || typeof row !== "object") return;
    const stage = row.stage ?? "base";
    if (row.kind === "step" && Number.isFinite(row.step)) {
      // A run that goes on from a checkpoint writes its later steps again.
      cutFrom(this.steps, stage, row.step);
      const before = this.steps.at(-1);
      const tokens = (before?.stage === stage ? before.allTokens : 0) + (row.tokens ?? 0);
      this.steps.push({ ...row, stage, allTokens: tokens });
    } else if (row.kind === "eval" && Number.isFinite(row.step)) {
      cutFrom(this.evals, stage, row.step);
      const at = this.steps.findLast((step) => step.stage === stage && step.step <= row.step);
      this.evals.push({ ...row, stage, allTokens: at?.allTokens ?? 0, train_s: at?.train_s ?? 0 });
    } else if (typeof (row.text ?? row.sample) === "string") {
      this.words.push({ stage, step: row.step, text: row.text ?? row.sample });
    }
  }

  stages() {
    return [...new Set(this.steps.map((step) => step.stage))];
  }

  /** Points of one chart: `{x, y}` in the order of steps; what is not finite is left out. */
  series({ of, y }, stage, xOf) {
    return this[of]
      .filter((row) => row.stage === stage)
      .map((row) => ({ x: row[xOf], y: row[y], step: row.step }))
      .filter((point) => Number.isFinite(point.x) && Number.isFinite(point.y));
  }

  /** Whether it is written to at this time. */
  running(now) {
    return !this.done() && now - timeOf(this.head.updated) < 120_000;
  }

  done() {
    return this.head.of > 0 && this.head.step >= this.head.of;
  }

  /** Seconds to the end of the stage, by the median of the last steps; null if unknown. */
  eta() {
    const { stage, of } = this.head;
    const last = this.steps.filter((step) => step.stage === stage).slice(-50);
    if (!of || !last.length || this.done()) return null;
    const times = last.map((step) => step.dt_ms + (step.data_ms ?? 0)).sort((a, b) => a - b);
    return ((of - last.at(-1).step) * times[Math.floor(times.length / 2)]) / 1000;
  }
}

function cutFrom(rows, stage, step) {
  let keep = rows.length;
  while (keep > 0 && rows[keep - 1].stage === stage && rows[keep - 1].step >= step) keep--;
  rows.length = keep;
}

/** Milliseconds since 1970 of seconds since then, or of a date as text. */
export const timeOf = (value) =>
  typeof value === "number" && value < 1e11 ? value * 1000 : new Date(value).getTime();

/**
 * Exponential moving average with its bias removed: `m_t = w m_{t-1} + (1 - w) y_t`, shown as
 * `m_t / (1 - w^t)`; w = 0 leaves the points alone.
 */
export function smooth(points, weight) {
  if (weight <= 0) return points;
  let mean = 0;
  let mass = 0;
  return points.map((point) => {
    mean = weight * mean + (1 - weight) * point.y;
    mass = weight * mass + (1 - weight);
    return { ...point, y: mean / mass };
  });
}

export function duration(seconds) {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172_800) return `${(seconds / 3600).toFixed(1)} h`;
  return `${(seconds / 86_400).toFixed(1)} days`;
}
