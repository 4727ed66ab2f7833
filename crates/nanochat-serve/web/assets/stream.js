// The server: requests, their errors, and server-sent events.

/** What the server refused, or that it could not be reached (`status` 0). */
export class ApiError extends Error {
  constructor(status, error = {}, retryAfter = null) {
    super(error.message || `the server answered ${status} without saying why`);
    this.status = status;
    this.type = error.type ?? null;
    this.param = error.param ?? null;
    this.code = error.code ?? null;
    /** Seconds until another try makes sense, if the server said. */
    this.retryAfter = retryAfter;
    /** Body of a refusal, when it is JSON. */
    this.body = null;
  }
}

/** `fetch` that throws an [ApiError] unless the answer is a success. */
export async function request(path, { json, ...options } = {}) {
  const headers = { ...options.headers };
  if (json !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(path, {
      ...options,
      headers,
      body: json === undefined ? undefined : JSON.stringify(json),
      cache: "no-store",
    });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, { message: `no answer from ${location.host}` });
  }
  if (response.ok) return response;
  const body = await response.json().catch(() => null);
  const wait = Number(response.headers.get("Retry-After"));
  const refused = new ApiError(
    response.status,
    body?.error ?? {},
    response.headers.has("Retry-After") && Number.isFinite(wait) ? Math.max(0, wait) : null,
  );
  refused.body = body;
  throw refused;
}

export const getJson = async (path, options) => (await request(path, options)).json();

/** Begins an answer that can be picked up again. Gives its id and its events. */
export async function openChat(body, signal) {
  const response = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "X-Nanochat-Resumable": "1" },
    json: { ...body, stream: true, stream_options: { include_usage: true } },
    signal,
  });
  return { id: response.headers.get("X-Request-Id"), events: events(response) };
}

/** The events of a stream after number `after`, and those to come. */
export async function reopenChat(id, after, signal) {
  const response = await request(`/api/streams/${encodeURIComponent(id)}?after=${after}`, {
    signal,
  });
  return events(response);
}

export const stopChat = (id) =>
  request(`/api/streams/${encodeURIComponent(id)}`, { method: "DELETE" }).catch(() => null);

/** `{id, data}` of each server-sent event; a stream that is cut simply ends. */
export async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      rest += value;
      const blocks = rest.split(/\r?\n\r?\n/);
      rest = blocks.pop();
      for (const block of blocks) {
        const event = parseEvent(block);
        if (event.data !== null) yield event;
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
  } finally {
    reader.cancel().catch(() => null);
  }
}

function parseEvent(block) {
  let id = null;
  const data = [];
  for (const line of block.split(/\r?\n/)) {
    const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
    if (field === "id") id = Number(value);
    if (field === "data") data.push(value);
  }
  return { id, data: data.length ? data.join("\n") : null };
}
