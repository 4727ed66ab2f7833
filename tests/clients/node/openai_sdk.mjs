// OpenAI's JavaScript library against the server that OPENAI_BASE_URL names.
import assert from "node:assert/strict";
import OpenAI from "openai";

const client = new OpenAI({ maxRetries: 0 });
const messages = [{ role: "user", content: "What is 2+3?" }];
const ask = { model: "tiny", messages, max_tokens: 8, seed: 1 };

const models = await client.models.list();
assert.deepEqual(models.data.map((m) => m.id), ["tiny"]);

const whole = await client.chat.completions.create(ask);
let text = "";
let usage;
for await (const chunk of await client.chat.completions.create({
  ...ask, stream: true, stream_options: { include_usage: true },
})) {
  text += chunk.choices[0]?.delta?.content ?? "";
  usage = chunk.usage ?? usage;
}
assert.equal(text, whole.choices[0].message.content);
assert.deepEqual(usage, whole.usage);

const run = client.chat.completions.stream(ask);
assert.equal((await run.finalChatCompletion()).choices.length, 1);

await assert.rejects(client.chat.completions.create({ ...ask, temperature: 9 }), (e) => e.status === 400 && e.param === "temperature");
await assert.rejects(new OpenAI({ apiKey: "another-key-1", maxRetries: 0 }).models.list(), (e) => e.status === 401);

// A stream that is left in the middle leaves the server whole.
const left = await client.chat.completions.create({ ...ask, max_tokens: 40, ignore_eos: true, stream: true });
for await (const _ of left) break;
assert.equal((await client.chat.completions.create(ask)).object, "chat.completion");
console.log("openai (node): ok");
