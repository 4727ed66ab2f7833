// One request for an answer, or for several samples of one: from the first byte to the last, over
// lost connections. Writes into nodes of the document and says what happens through events.

import { ApiError, openChat, reopenChat, stopChat } from "./stream.js";
import { addNode } from "./tree.js";

// Waits between tries to pick a lost stream up again, in ms; the server keeps it for 60 s.
const RETRIES = [300, 700, 1500, 3000, 5000, 5000, 5000];

/**
 * Events: `start` (its nodes exist), `text` (a node grew), `state` (see `state`), `end`.
 * `state`: waiting, streaming, reconnecting, done, stopped, failed (then `error` is set).
 */
export class Answer extends EventTarget {
  constructor(doc, parent) {
    super();
    this.doc = doc;
    this.parent = parent;
    this.nodes = [];
    this.id = null;
    this.state = "waiting";
    this.error = null;
    /** Tokens and their time, for the figure shown while it streams. */
    this.tokens = 0;
    this.firstAt = null;
    this.lastEvent = 0;
    this.abort = new AbortController();
  }

  get live() {
    return ["waiting", "streaming", "reconnecting"].includes(this.state);
  }

  get tokensPerSecond() {
    const seconds = (performance.now() - this.firstAt) / 1000;
    return this.firstAt && seconds > 0.2 ? this.tokens / seconds : null;
  }

  /** Asks the server. Nodes for the samples are added when it accepts. */
  async ask(body) {
    try {
      const { id, events } = await openChat(body, this.abort.signal);
      this.id = id;
      for (let i = 0; i < (body.n ?? 1); i++) {
        this.nodes.push(addNode(this.doc, this.parent, "assistant", null, id));
      }
      this.doc.head = this.nodes[0].id;
      this.turn("streaming", "start");
      await this.follow(events);
    } catch (error) {
      this.fail(error);
    }
  }

  /** Goes on with a stream that an earlier page began: everything is replayed from its start. */
  async attach(nodes) {
    this.nodes = nodes;
    this.id = nodes[0].stream;
    this.doc.head ??= nodes[0].id;
    let cleared = false;
    this.beforeEvent = () => {
      if (!cleared) for (const node of nodes) node.parts = [];
      cleared = true;
    };
    this.turn("reconnecting", "start");
    await this.follow(null);
  }

  stop() {
    if (!this.live) return;
    if (this.id) stopChat(this.id);
    for (const node of this.nodes) node.finish ??= "stopped";
    this.turn("stopped", "end");
    this.abort.abort();
  }

  /** Reads events to `[DONE]`; a stream that is cut before is opened again where it was. */
  async follow(events) {
    let tries = 0;
    let empty = 0;
    for (;;) {
      try {
        events ??= await reopenChat(this.id, this.lastEvent, this.abort.signal);
        this.turn("streaming");
        empty++;
        for await (const event of events) {
          tries = empty = 0;
          if (this.take(event)) return this.finish();
        }
        // Known to the server, and over, though its end was never said: it was stopped there.
        if (empty > 2) return this.fail(new ApiError(410, { code: "ended" }));
      } catch (error) {
        if (!this.live) return;
        if (error.status === 404) return this.fail(new ApiError(404, { code: "stream_lost" }));
        if (error.midStream || ![0, 429, 502, 503, 504].includes(error.status))
          return this.fail(error);
      }
      if (!this.live) return;
      if (tries >= RETRIES.length)
        return this.fail(
          new ApiError(0, { message: `no answer from ${location.host}`, code: "cut" }),
        );
      events = null;
      this.turn("reconnecting");
      await new Promise((resolve) => setTimeout(resolve, RETRIES[tries++]));
      if (!this.live) return;
    }
  }

  /** Takes one event in; true at the end. */
  take({ id, data }) {
    if (id !== null && id <= this.lastEvent) return false;
    if (id !== null) this.lastEvent = id;
    this.beforeEvent?.();
    if (data === "[DONE]") return true;
    let chunk;
    try {
      chunk = JSON.parse(data);
    } catch {
      return false;
    }
    if (chunk.error) {
      const error = new ApiError(500, chunk.error);
      error.midStream = true;
      throw error;
    }
    for (const choice of chunk.choices ?? []) this.grow(this.nodes[choice.index ?? 0], choice);
    if (chunk.usage) this.account(chunk);
    return false;
  }

  grow(node, { delta, finish_reason }) {
    if (!node) return;
    if (delta?.content) {
      this.firstAt ??= performance.now();
      this.tokens++;
      append(node, "text", delta.content);
    }
    const tool = delta?.nanochat ?? {};
    if (tool.tool_call != null)
      node.parts.push({ type: "tool_call", text: String(tool.tool_call) });
    if (tool.tool_output != null)
      node.parts.push({ type: "tool_output", text: String(tool.tool_output) });
    if (finish_reason) node.finish = finish_reason;
    this.dispatchEvent(new CustomEvent("text", { detail: node }));
  }

  account({ usage, nanochat }) {
    const completion = Math.round(usage.completion_tokens / this.nodes.length);
    for (const node of this.nodes) {
      node.usage = {
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: completion,
        cached_tokens: usage.prompt_tokens_details?.cached_tokens ?? 0,
        ...nanochat,
      };
    }
  }

  finish() {
    for (const node of this.nodes) node.finish ??= "stop";
    this.turn("done", "end");
  }

  fail(error) {
    if (error.name === "AbortError" || !this.live) return;
    this.error = error;
    for (const node of this.nodes) node.finish ??= "error";
    this.turn("failed", "end");
  }

  turn(state, event = "state") {
    this.state = state;
    this.dispatchEvent(new CustomEvent(event));
    if (event !== "state") this.dispatchEvent(new CustomEvent("state"));
  }
}

function append(node, type, text) {
  const last = node.parts.at(-1);
  if (last?.type === type) last.text += text;
  else node.parts.push({ type, text });
}
