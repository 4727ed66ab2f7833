// Line charts in SVG: axes with round ticks, linear or logarithmic, and a readout that follows the
// pointer or the arrow keys.

import { h, svg } from "./dom.js";

const HEIGHT = 230;
const PAD = { left: 52, right: 14, top: 10, bottom: 26 };
// A line of more points than this is thinned: no screen shows them.
const MOST_POINTS = 1200;

export class Chart {
  /** `hover(x | null)` is called when the reader points at a place: charts move as one. */
  constructor({ title, unit, format }, hover) {
    this.title = title;
    this.format = format;
    this.hover = hover;
    this.lines = [];
    this.readout = h("ul", { class: "readout" });
    this.picture = svg("svg", { role: "img", tabindex: "0", height: HEIGHT });
    this.cursor = svg("g", { class: "cursor" });
    this.element = h(
      "figure",
      { class: "chart" },
      h("figcaption", {}, h("h2", {}, title), h("span", { class: "hint" }, unit)),
      this.picture,
      this.readout,
    );
    this.picture.addEventListener("pointermove", (event) => this.point(event));
    this.picture.addEventListener("pointerdown", (event) => this.point(event));
    this.picture.addEventListener("pointerleave", () => hover(null));
    this.picture.addEventListener("blur", () => hover(null));
    this.picture.addEventListener("keydown", (event) => this.key(event));
  }

  /** `lines`: `{name, place, points, raw}`, `place` is the number of a colour. Hidden if empty. */
  set(lines) {
    this.lines = lines.filter((line) => line.points.length);
    this.element.hidden = this.lines.length === 0;
  }

  /** Draws the lines that were set, as wide as there is room. */
  show({ log, xName, xFormat }) {
    this.xName = xName;
    this.xFormat = xFormat;
    if (!this.lines.length) return;
    this.width = Math.max(240, this.element.clientWidth - 2);
    const all = this.lines.flatMap((line) => [...line.points, ...(line.raw ?? [])]);
    const positive = all.every((point) => point.y > 0);
    this.log = log && positive;
    this.x = scale(extent(all.map((point) => point.x)), [PAD.left, this.width - PAD.right], false);
    this.y = scale(
      padded(extent(all.map((point) => point.y)), this.log),
      [HEIGHT - PAD.bottom, PAD.top],
      this.log,
    );
    this.draw();
  }

  draw() {
    this.picture.setAttribute("viewBox", `0 0 ${this.width} ${HEIGHT}`);
    this.picture.setAttribute("width", this.width);
    this.picture.setAttribute("aria-label", this.describe());
    const path = (points) =>
      `M${thin(points)
        .map((p) => `${this.x.at(p.x).toFixed(1)},${this.y.at(p.y).toFixed(1)}`)
        .join("L")}`;
    this.picture.replaceChildren(
      ...this.yTicks(),
      ...this.xTicks(),
      ...this.lines
        .filter((line) => line.raw)
        .map((line) => svg("path", { class: `line raw place${line.place}`, d: path(line.raw) })),
      ...this.lines.map((line) =>
        svg("path", { class: `line place${line.place}`, d: path(line.points) }),
      ),
      ...this.lines
        .filter((line) => line.points.length < 40)
        .flatMap((line) =>
          line.points.map((p) =>
            svg("circle", {
              class: `dot place${line.place}`,
              cx: this.x.at(p.x),
              cy: this.y.at(p.y),
              r: 2.5,
            }),
          ),
        ),
      this.cursor,
    );
    this.move(null);
  }

  yTicks() {
    return ticks(this.y.domain, 5, this.log).flatMap((value) => {
      const y = this.y.at(value);
      return [
        svg("line", { class: "grid", x1: PAD.left, x2: this.width - PAD.right, y1: y, y2: y }),
        svg(
          "text",
          { class: "tick", x: PAD.left - 8, y: y + 4, "text-anchor": "end" },
          compact(value),
        ),
      ];
    });
  }

  xTicks() {
    return ticks(this.x.domain, Math.max(3, Math.floor(this.width / 80)), false).map((value) =>
      svg(
        "text",
        { class: "tick", x: this.x.at(value), y: HEIGHT - 6, "text-anchor": "middle" },
        this.xFormat(value),
      ),
    );
  }

  describe() {
    const lines = this.lines.map((line) => {
      const last = line.points.at(-1);
      return `${line.name} from ${this.format(line.points[0].y)} to ${this.format(last.y)}`;
    });
    const how = "Arrow keys move through it; the table below has the figures.";
    return `${this.title}: ${lines.join("; ")}. ${how}`;
  }

  point(event) {
    const box = this.picture.getBoundingClientRect();
    const px = ((event.clientX - box.left) / box.width) * this.width;
    this.hover(this.x.value(Math.min(this.width - PAD.right, Math.max(PAD.left, px))));
  }

  key(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10 }[event.key];
    const [low, high] = this.x.domain;
    if (event.key === "Home" || event.key === "End") this.hover(event.key === "Home" ? low : high);
    else if (by)
      this.hover(Math.min(high, Math.max(low, (this.at ?? high) + (by * (high - low)) / 100)));
    else if (event.key === "Escape") this.hover(null);
    else return;
    event.preventDefault();
  }

  /** Moves the readout to `x`; null shows the last values. */
  move(x) {
    if (!this.lines.length || !this.x) return;
    this.at = x;
    const rows = this.lines.map((line) => ({
      line,
      point: x === null ? line.points.at(-1) : nearest(line.points, x),
    }));
    this.readout.replaceChildren(
      ...rows.map(({ line, point }) =>
        h(
          "li",
          {},
          h("i", { class: `swatch place${line.place}` }),
          h("span", {}, line.name),
          h("b", {}, this.format(point.y)),
          h("span", { class: "where" }, `${this.xName} ${this.xFormat(point.x)}`),
        ),
      ),
    );
    this.cursor.replaceChildren(
      ...(x === null
        ? []
        : [
            svg("line", {
              x1: this.x.at(x),
              x2: this.x.at(x),
              y1: PAD.top,
              y2: HEIGHT - PAD.bottom,
            }),
            ...rows.map(({ line, point }) =>
              svg("circle", {
                class: `dot place${line.place}`,
                cx: this.x.at(point.x),
                cy: this.y.at(point.y),
                r: 4,
              }),
            ),
          ]),
    );
  }
}

const extent = (values) =>
  values.reduce(
    ([low, high], value) => [Math.min(low, value), Math.max(high, value)],
    [Infinity, -Infinity],
  );

function padded([low, high], log) {
  if (low === high) return log ? [low / 1.1, high * 1.1] : [low - 0.5, high + 0.5];
  const room = (high - low) * 0.04;
  return log
    ? [low / 1.03, high * 1.03]
    : [low < 0 ? low - room : Math.max(0, low - room), high + room];
}

/** From the domain [d0, d1] to the range [r0, r1] and back. */
export function scale(domain, [r0, r1], log) {
  const f = log ? Math.log : (value) => value;
  const back = log ? Math.exp : (value) => value;
  const [d0, d1] = domain.map(f);
  const span = d1 - d0 || 1;
  return {
    domain,
    at: (value) => r0 + ((f(value) - d0) / span) * (r1 - r0),
    value: (pixel) => back(d0 + ((pixel - r0) / (r1 - r0)) * span),
  };
}

/** About `count` round values inside of the domain. */
export function ticks([low, high], count, log) {
  if (log && high / low > 1.5) {
    const values = [];
    const steps = high / low > 100 ? [1] : high / low > 8 ? [1, 2, 5] : [1, 1.5, 2, 3, 4, 5, 6, 8];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      for (const step of steps) values.push(step * 10 ** power);
    }
    return values.filter((value) => value >= low && value <= high);
  }
  const rough = (high - low) / count || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((value) => value >= rough);
  const values = [];
  for (let k = Math.ceil(low / step); k * step <= high + step * 1e-9; k++) values.push(k * step);
  return values;
}

/** Of each stretch the lowest and highest point, so that no peak is lost. */
function thin(points) {
  if (points.length <= MOST_POINTS) return points;
  const size = Math.ceil(points.length / (MOST_POINTS / 2));
  const kept = [];
  for (let i = 0; i < points.length; i += size) {
    const part = points.slice(i, i + size);
    const low = part.reduce((a, b) => (b.y < a.y ? b : a));
    const high = part.reduce((a, b) => (b.y > a.y ? b : a));
    kept.push(...(low.x <= high.x ? [low, high] : [high, low]));
  }
  return [...kept, points.at(-1)];
}

function nearest(points, x) {
  let low = 0;
  let high = points.length - 1;
  while (low < high) {
    const middle = (low + high) >> 1;
    if (points[middle].x < x) low = middle + 1;
    else high = middle;
  }
  const before = points[low - 1];
  return before && x - before.x < points[low].x - x ? before : points[low];
}

export function compact(value) {
  const size = Math.abs(value);
  if (size >= 1e9) return `${trim(value / 1e9)}B`;
  if (size >= 1e6) return `${trim(value / 1e6)}M`;
  if (size >= 1e4) return `${trim(value / 1e3)}k`;
  if (size >= 1000) return Math.round(value).toLocaleString("en");
  return trim(value);
}

const trim = (value) => String(Number(value.toPrecision(3)));
