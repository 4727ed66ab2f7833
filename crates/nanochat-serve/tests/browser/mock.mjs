// A stand-in for `nanochat serve` with answers that a test can script. No dependencies.
// `node mock.mjs [PORT]` serves the page for looking at it: what it answers depends on the question.

import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import http from "node:http";
import { dirname, extname, join } from "node:path";
import { fileURLToPath } from "node:url";

import { answerTo } from "./answers.mjs";
import { makeRuns } from "./runs.mjs";

const WEB = join(dirname(fileURLToPath(import.meta.url)), "../../web");
const TYPES = {
  ".html": "text/html; charset=utf-8",
  ".js": "text/javascript; charset=utf-8",
  ".css": "text/css; charset=utf-8",
  ".svg": "image/svg+xml",
  ".woff2": "font/woff2",
  ".webmanifest": "application/manifest+json",
  ".txt": "text/plain; charset=utf-8",
};
const HEADERS = {
  "Content-Security-Policy":
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; " +
    "font-src 'self'; manifest-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'",
  "X-Content-Type-Options": "nosniff",
  "Referrer-Policy": "no-referrer",
  "Cross-Origin-Opener-Policy": "same-origin",
};

/**
 * Starts a server. `script` (array) holds what the next chat requests get, each
 * `{text | deltas, delay, n, finish, error: {status, message, retryAfter}, cutAfter, failAfter, hold}`;
 * when it is empty, [answerTo] chooses. `store` and `runs` may be handed from one server to the
 * next, as a disk would.
 */
export async function startMock({
  port = 0,
  history = true,
  store = new Map(),
  runs = makeRuns(),
  script = [],
} = {}) {
  const mock = {
    script,
    store,
    runs,
    requests: [],
    streams: new Map(),
    history,
    unauthorized: false,
    count: 0,
  };
  const sockets = new Set();
  const server = http.createServer((request, response) => {
    for (const [name, value] of Object.entries(HEADERS)) response.setHeader(name, value);
    route(mock, request, response).catch((error) => send(response, 500, problem(error.message)));
  });
  server.on("connection", (socket) => {
    sockets.add(socket);
    socket.on("close", () => sockets.delete(socket));
  });
  await new Promise((resolve, reject) =>
    server.once("error", reject).listen(port, "127.0.0.1", resolve),
  );
  mock.port = server.address().port;
  mock.url = `http://127.0.0.1:${mock.port}`;
  /** Ends it as a crash would: every connection breaks off, streams are forgotten. */
  mock.close = () =>
    new Promise((resolve) => {
      for (const stream of mock.streams.values()) stream.stopped = true;
      server.close(resolve);
      for (const socket of sockets) socket.destroy();
    });
  return mock;
}

async function route(mock, request, response) {
  const url = new URL(request.url, "http://mock");
  const path = url.pathname;
  mock.requests.push(`${request.method} ${request.url}`);
  if (path === "/" || path === "/train")
    return file(response, path === "/" ? "index.html" : "train.html");
  if (path.startsWith("/assets/"))
    return file(response, `assets/${path.slice(8).replace(/[^\w.-]/g, "")}`);
  if (mock.unauthorized)
    return send(response, 401, problem("this server wants a key", "authentication_error"));
  if (path === "/api/info") return send(response, 200, info(mock));
  if (path === "/v1/chat/completions") return chat(mock, await body(request), response);
  const parts = path.split("/").slice(2).map(decodeURIComponent);
  if (parts[0] === "streams")
    return stream(mock, request, response, parts[1], Number(url.searchParams.get("after") ?? 0));
  if (parts[0] === "conversations")
    return conversations(mock, request, response, parts[1], url.searchParams);
  if (parts[0] === "runs") return runs(mock, response, parts, url.searchParams);
  return send(response, 404, problem("there is nothing at this address", "not_found"));
}

const info = (mock) => ({
  version: "0.1.0",
  model: {
    id: "nanochat-d4",
    parameters: 5_120_218,
    n_layer: 4,
    n_embd: 192,
    vocab_size: 4096,
    context: 512,
  },
  device: "CPU amx bf16, 2 threads",
  history: mock.history,
  defaults: { temperature: 0.8, top_k: 50, top_p: 1, max_tokens: 256 },
  limits: { n: 8, max_tokens: 512, messages: 200 },
  runs: true,
});

function file(response, name) {
  let bytes;
  try {
    bytes = readFileSync(join(WEB, name));
  } catch {
    return send(response, 404, problem(`no file ${name}`));
  }
  const tag = `"${createHash("sha256").update(bytes).digest("hex").slice(0, 16)}"`;
  response.writeHead(200, {
    "Content-Type": TYPES[extname(name)] ?? "application/octet-stream",
    ETag: tag,
  });
  response.end(bytes);
}

// Chat

async function chat(mock, ask, response) {
  mock.last = ask;
  const plan = mock.script.shift() ?? answerTo(ask);
  if (plan.error) {
    const {
      status,
      message = "the queue is full",
      type = "overloaded",
      retryAfter,
      param = null,
      code = null,
    } = plan.error;
    if (retryAfter !== undefined) response.setHeader("Retry-After", String(retryAfter));
    return send(response, status, { error: { message, type, param, code } });
  }
  const id = `chatcmpl-${++mock.count}-${Math.random().toString(36).slice(2, 8)}`;
  const stream = { id, events: [], open: new Set(), done: false, stopped: false };
  mock.streams.set(id, stream);
  listen(stream, response, 0);
  generate(stream, plan, ask);
}

/** `deltas` of every sample, interleaved as the engine's rows would be. */
async function generate(stream, plan, ask) {
  const n = ask.n ?? 1;
  const delay = plan.delay ?? 4;
  const start = performance.now();
  const rows = Array.from({ length: n }, (_, i) => deltasOf(plan, i));
  const chunk = (choices, rest) => ({
    id: stream.id,
    object: "chat.completion.chunk",
    created: 0,
    model: "nanochat-d4",
    choices,
    ...rest,
  });
  let made = 0;
  const longest = Math.max(...rows.map((row) => row.length));
  if (plan.first) await sleep(plan.first);
  for (let at = 0; at <= longest && !stream.stopped; at++) {
    if (plan.hold) while (plan.hold() && !stream.stopped) await sleep(10);
    if (plan.cutAfter === at) return breakOff(stream);
    if (plan.failAfter === at) {
      push(stream, {
        error: {
          message: "the model thread stopped",
          type: "server_error",
          param: null,
          code: null,
        },
      });
      break;
    }
    for (let i = 0; i < n; i++) {
      if (at > rows[i].length) continue;
      const ended = at === rows[i].length;
      const finish = ended ? (plan.finish ?? "stop") : null;
      if (!ended) made++;
      push(stream, chunk([{ index: i, delta: ended ? {} : rows[i][at], finish_reason: finish }]));
    }
    if (delay) await sleep(delay);
  }
  if (stream.silent) return;
  const prompt = Math.ceil(JSON.stringify(ask.messages).length / 5);
  const seconds = (performance.now() - start) / 1000;
  push(
    stream,
    chunk([], {
      usage: {
        prompt_tokens: prompt,
        completion_tokens: made,
        total_tokens: prompt + made,
        prompt_tokens_details: { cached_tokens: Math.floor(prompt / 2) },
      },
      nanochat: {
        tokens_per_sec: made / seconds,
        first_token_ms: 12.5,
        queued_ms: 0.2,
        context: 512,
      },
    }),
  );
  push(stream, "[DONE]");
  stream.done = true;
  for (const response of stream.open) response.end();
}

function deltasOf(plan, i) {
  const deltas = plan.deltas ?? plan.samples?.[i % plan.samples.length] ?? plan.text ?? "";
  if (typeof deltas !== "string") return deltas;
  return (deltas.match(/\s*\S{1,6}|\s+$/g) ?? []).map((content) => ({ content }));
}

function push(stream, data) {
  stream.events.push(typeof data === "string" ? data : JSON.stringify(data));
  for (const response of stream.open) write(response, stream, stream.events.length);
}

const write = (response, stream, k) =>
  response.write(`id: ${k}\ndata: ${stream.events[k - 1]}\n\n`);

/** The connection breaks; the stream itself goes on being known. */
function breakOff(stream) {
  for (const response of stream.open) response.socket?.destroy();
}

function listen(stream, response, after) {
  response.writeHead(200, {
    "Content-Type": "text/event-stream",
    "X-Request-Id": stream.id,
    "Cache-Control": "no-store",
  });
  response.flushHeaders();
  for (let k = after + 1; k <= stream.events.length; k++) write(response, stream, k);
  if (stream.done) return response.end();
  stream.open.add(response);
  response.on("close", () => stream.open.delete(response));
}

function stream(mock, request, response, id, after) {
  const known = mock.streams.get(id);
  if (!known) return send(response, 404, problem("no such stream", "not_found"));
  if (request.method === "DELETE") {
    known.stopped = true;
    return send(response, 204);
  }
  listen(known, response, after);
}

// History

async function conversations(mock, request, response, id, query) {
  if (!mock.history)
    return send(response, 404, problem("this server keeps no history", "not_found"));
  const store = mock.store;
  if (!id) {
    const q = (query.get("q") ?? "").toLowerCase();
    const limit = Number(query.get("limit") ?? 50);
    const before = query.get("before");
    const said = (doc) =>
      doc.nodes.flatMap((node) => node.parts.map((part) => part.text)).join("\n");
    const all = [...store.values()]
      .filter((doc) => `${doc.title}\n${said(doc)}`.toLowerCase().includes(q))
      .filter((doc) => !before || doc.updated < before)
      .sort((a, b) => (a.updated < b.updated ? 1 : -1));
    const list = all.slice(0, limit).map((doc) => {
      const at = q ? said(doc).toLowerCase().indexOf(q) : -1;
      const snippet = at >= 0 ? said(doc).slice(Math.max(0, at - 30), at + 60) : "";
      return { id: doc.id, title: doc.title, updated: doc.updated, snippet };
    });
    return send(response, 200, { conversations: list, more: all.length > limit });
  }
  const known = store.get(id);
  if (request.method === "PUT") {
    const doc = await body(request);
    const expected = request.headers["if-match"];
    if (known && String(known.rev) !== expected) return send(response, 409, known);
    if (!known && expected)
      return send(response, 404, problem("no such conversation", "not_found"));
    doc.rev = (known?.rev ?? 0) + 1;
    store.set(id, doc);
    return send(response, 200, { rev: doc.rev });
  }
  if (!known) return send(response, 404, problem("no such conversation", "not_found"));
  if (request.method === "PATCH") {
    known.title = (await body(request)).title;
    known.rev += 1;
    return send(response, 200, { rev: known.rev });
  }
  if (request.method === "DELETE") {
    store.delete(id);
    return send(response, 204);
  }
  return send(response, 200, known);
}

// Runs

function runs(mock, response, parts, query) {
  const list = mock.runs.list();
  if (parts.length === 1) return send(response, 200, { runs: list.map((run) => run.head()) });
  const run = list.find((one) => one.name === parts[1]);
  if (!run) return send(response, 404, problem(`no run ${parts[1]}`, "not_found"));
  if (parts[2] !== "metrics")
    return send(response, 200, { run: run.settings, summary: run.summary });
  // In pieces of whole lines, as the server reads them.
  const after = Number(query.get("after") ?? 0);
  const piece = Buffer.from(run.text())
    .subarray(after, after + 100_000)
    .toString();
  const whole = piece.slice(0, piece.lastIndexOf("\n") + 1);
  const rows = whole
    .split("\n")
    .filter(Boolean)
    .map((line) => JSON.parse(line));
  return send(response, 200, { rows, next: after + Buffer.byteLength(whole) });
}

const problem = (message, type = "server_error") => ({
  error: { message, type, param: null, code: null },
});
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

function send(response, status, value) {
  if (response.headersSent) return response.end();
  response.writeHead(status, value === undefined ? {} : { "Content-Type": "application/json" });
  response.end(value === undefined ? "" : JSON.stringify(value));
}

async function body(request) {
  const chunks = [];
  for await (const chunk of request) chunks.push(chunk);
  return JSON.parse(Buffer.concat(chunks).toString() || "null");
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const mock = await startMock({ port: Number(process.argv[2] ?? 8765) });
  console.log(`${mock.url}: ask for "markdown", "code", "slow", "busy", "xss", a sum, or a story`);
}
