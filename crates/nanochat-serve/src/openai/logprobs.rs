//! Log probabilities in the shapes that clients read.

use nanochat_engine::batch::TokenLogprobs;
use nanochat_tokenizer::Tokenizer;
use serde_json::{Map, Value, json};

/// A token as a string: its text, or `bytes:\xe2\x82` where it is no whole text.
pub(crate) fn name(tokenizer: &Tokenizer, id: u32) -> String {
    let bytes = tokenizer.id_bytes(id).unwrap_or_default();
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => {
            let hex = bytes.iter().map(|b| format!("\\x{b:02x}"));
            format!("bytes:{}", hex.collect::<String>())
        }
    }
}

fn entry(tokenizer: &Tokenizer, id: u32, logprob: f32) -> Value {
    let bytes = tokenizer.id_bytes(id).unwrap_or_default();
    json!({"token": name(tokenizer, id), "logprob": finite(logprob), "bytes": bytes})
}

/// -9999 stands for minus infinity, which JSON does not have (as OpenAI).
fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { -9999.0 }
}

/// One entry of a chat's `logprobs.content`.
pub(crate) fn chat(tokenizer: &Tokenizer, one: &TokenLogprobs) -> Value {
    let mut value = entry(tokenizer, one.id, one.logprob);
    let top = one.top.iter().map(|(id, logprob)| entry(tokenizer, *id, *logprob));
    value["top_logprobs"] = Value::Array(top.collect());
    value
}

/// The four lists of a text completion's `logprobs`.
#[derive(Default)]
pub(crate) struct Lists {
    tokens: Vec<String>,
    token_logprobs: Vec<Value>,
    top_logprobs: Vec<Value>,
    text_offset: Vec<usize>,
    /// Characters of the text so far.
    offset: usize,
}

impl Lists {
    /// Adds a token; the first of a prompt has no probability.
    pub fn push(&mut self, tokenizer: &Tokenizer, id: u32, one: Option<&TokenLogprobs>) {
        let name = name(tokenizer, id);
        let bytes = tokenizer.id_bytes(id).unwrap_or_default();
        self.text_offset.push(self.offset);
        // A character counts where its first byte stands.
        self.offset += bytes.iter().filter(|b| **b & 0xC0 != 0x80).count();
        self.token_logprobs.push(one.map_or(Value::Null, |one| json!(finite(one.logprob))));
        self.top_logprobs.push(one.map_or(Value::Null, |one| {
            let mut top: Map<String, Value> = Map::new();
            for (id, logprob) in &one.top {
                top.entry(self::name(tokenizer, *id)).or_insert_with(|| json!(finite(*logprob)));
            }
            Value::Object(top)
        }));
        self.tokens.push(name);
    }

    pub fn json(&self) -> Value {
        json!({
            "tokens": self.tokens, "token_logprobs": self.token_logprobs,
            "top_logprobs": self.top_logprobs, "text_offset": self.text_offset,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// Goes on where the last chunk ended.
    pub fn take(&mut self) -> Self {
        let offset = self.offset;
        std::mem::replace(self, Self { offset, ..Self::default() })
    }
}
