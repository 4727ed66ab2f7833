//! One table of what a request may say, and the reader that holds requests to it.
//!
//! The reader, the OpenAPI document and the tests all read [`TABLE`]: a range stands here and
//! nowhere else.

use serde_json::{Map, Value, json};

use crate::config::MOST_SAMPLES;
use crate::error::ApiError;

type Result<T> = std::result::Result<T, ApiError>;

/// What a field's value may be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// A number in a range.
    Number(f64, f64),
    /// A whole number in a range.
    Integer(i64, i64),
    /// True or false.
    Boolean,
    /// A string of at most so many bytes.
    Text(usize),
    /// Read by the code that the field belongs to; what it may be, in words.
    Own(&'static str),
}

/// Where a field may stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Chat and text completions.
    Both,
    /// Chat completions.
    Chat,
    /// Text completions.
    Text,
}

/// A field of a request.
#[derive(Clone, Copy, Debug)]
pub struct Field {
    /// As in JSON.
    pub name: &'static str,
    /// Where it may stand.
    pub place: Place,
    /// What it may be.
    pub kind: Kind,
    /// What it does.
    pub says: &'static str,
}

const fn field(name: &'static str, place: Place, kind: Kind, says: &'static str) -> Field {
    Field { name, place, kind, says }
}

use Kind::{Boolean, Integer, Number, Own, Text};
use Place::{Both, Chat};

/// All fields that mean something.
pub const TABLE: &[Field] = &[
    field("model", Both, Text(256), "Name of the model; left out: the one that is served."),
    field("messages", Chat, Own("a list of 1 to 500 messages"), "The conversation."),
    field(
        "prompt",
        Place::Text,
        Own("a string, a list of ids, or a list of up to 64 of either"),
        "What is continued.",
    ),
    field("max_tokens", Both, Integer(0, 1 << 24), "Most tokens of an answer."),
    field("max_completion_tokens", Chat, Integer(0, 1 << 24), "The newer name of max_tokens."),
    field("temperature", Both, Number(0.0, 2.0), "0 always takes the likeliest token."),
    field(
        "top_p",
        Both,
        Number(0.0, 1.0),
        "Draw from the likeliest tokens that reach this together.",
    ),
    field("top_k", Both, Integer(0, 1 << 24), "Draw from so many likeliest tokens; 0: all."),
    field(
        "min_p",
        Both,
        Number(0.0, 1.0),
        "Draw from tokens with this share of the likeliest one's p.",
    ),
    field(
        "stop",
        Both,
        Own("a string or a list of up to 4, of 1 to 256 bytes each"),
        "Ends an answer.",
    ),
    field("seed", Both, Integer(i64::MIN, i64::MAX), "The same seed draws the same answer."),
    field("n", Both, Integer(1, MOST_SAMPLES as i64), "Answers to give."),
    field("best_of", Place::Text, Integer(1, MOST_SAMPLES as i64), "Must equal n."),
    field("stream", Both, Boolean, "Answer in events, as it is generated."),
    field(
        "stream_options",
        Both,
        Own("an object with include_usage"),
        "Asks for counts at the end.",
    ),
    field("logprobs", Both, Own("true or false; in /v1/completions 0 to 20"), "Log probabilities."),
    field("top_logprobs", Chat, Integer(0, 20), "And those of so many likeliest tokens."),
    field("echo", Place::Text, Boolean, "The prompt stands before its answer."),
    field("suffix", Place::Text, Own("nothing: it is not supported"), "Not supported."),
    field("logit_bias", Both, Own("an object of up to 1024 ids to -100..100"), "Added to logits."),
    field("presence_penalty", Both, Number(-2.0, 2.0), "Against tokens that were said."),
    field("frequency_penalty", Both, Number(-2.0, 2.0), "Against tokens each time they were said."),
    field(
        "repetition_penalty",
        Both,
        Number(0.1, 10.0),
        "Divides logits of tokens seen; 1: nothing.",
    ),
    field(
        "response_format",
        Both,
        Own("an object with type text, json_object or json_schema"),
        "The form of the answer.",
    ),
    field(
        "tools",
        Chat,
        Own("a list with the function calculator"),
        "The client computes the calls.",
    ),
    field("tool_choice", Chat, Own("none, auto or required"), "Whether tools are called."),
    field("parallel_tool_calls", Chat, Boolean, "Calls come one at a time: true changes nothing."),
    field("ignore_eos", Both, Boolean, "An answer goes on after its end, to max_tokens."),
    field("user", Both, Text(256), "Who asks; not looked at."),
    field("nanochat", Chat, Own("an object with tools and truncate"), "What only this server has."),
];

/// Fields that name what this server cannot do: refused, unless they ask for nothing.
const REFUSED: &[(&str, &[&str])] = &[
    ("functions", &["[]"]),
    ("function_call", &["\"none\""]),
    ("audio", &[]),
    ("modalities", &["[\"text\"]"]),
    ("prediction", &[]),
    ("web_search_options", &[]),
    ("reasoning_effort", &["\"none\""]),
    ("verbosity", &[]),
    ("store", &["false"]),
    ("use_beam_search", &["false"]),
    ("guided_json", &[]),
    ("guided_regex", &[]),
    ("guided_choice", &[]),
    ("guided_grammar", &[]),
    ("grammar", &[]),
    ("json_schema", &[]),
    ("prompt_logprobs", &["false"]),
    ("mirostat", &["0"]),
    ("typical_p", &["1", "1.0"]),
    ("length_penalty", &["1", "1.0"]),
    ("min_tokens", &["0"]),
    ("stop_token_ids", &["[]"]),
    ("bad_words", &["[]"]),
    ("continue_final_message", &["false"]),
    ("add_generation_prompt", &["true"]),
    ("chat_template", &[]),
    ("n_probs", &["0"]),
    ("truncate_prompt_tokens", &[]),
    ("prompt_embeds", &[]),
    ("moderation", &[]),
];

/// The fields of one request; each is taken once, what is left at the end is unknown.
pub struct Fields {
    map: Map<String, Value>,
}

impl Fields {
    /// Errors: what should be an object is none; a field of `REFUSED`.
    pub fn new(body: Value) -> Result<Self> {
        let Value::Object(mut map) = body else {
            return Err(ApiError::field("body", "the body is no JSON object: give {...}"));
        };
        map.retain(|_, value| !value.is_null());
        for (name, harmless) in REFUSED {
            if let Some(value) = map.remove(*name)
                && !harmless.contains(&value.to_string().as_str())
            {
                let message = format!("{name} is not supported here: leave it out");
                return Err(ApiError::field(*name, message).code("unsupported_parameter"));
            }
        }
        Ok(Self { map })
    }

    /// A field's value, if it is there and not null.
    pub fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name)
    }

    /// Names of what nobody asked for.
    pub fn left(&self) -> Vec<String> {
        let mut names: Vec<String> = self.map.keys().cloned().collect();
        names.sort_unstable();
        names
    }

    pub fn number(&mut self, name: &str) -> Result<Option<f64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let Number(min, max) = kind(name) else { unreachable!("{name} is a number in TABLE") };
        match value.as_f64().filter(|x| (min..=max).contains(x)) {
            Some(x) => Ok(Some(x)),
            None => Err(ApiError::value(name, &value, &format!("a number from {min} to {max}"))),
        }
    }

    pub fn integer(&mut self, name: &str) -> Result<Option<i64>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let Integer(min, max) = kind(name) else { unreachable!("{name} is an integer in TABLE") };
        // 3.0 is what some languages write for 3.
        let whole = |x: &f64| x.fract() == 0.0 && x.abs() < 9e15;
        let x = value.as_i64().or_else(|| value.as_f64().filter(whole).map(|x| x as i64));
        match x.filter(|x| (min..=max).contains(x)) {
            Some(x) => Ok(Some(x)),
            None if name == "seed" => {
                Err(ApiError::value(name, &value, "a whole number of 64 bits"))
            }
            None => {
                Err(ApiError::value(name, &value, &format!("a whole number from {min} to {max}")))
            }
        }
    }

    /// As [`Fields::integer`], for ranges without negative numbers.
    pub fn count(&mut self, name: &str) -> Result<Option<usize>> {
        Ok(self.integer(name)?.and_then(|x| usize::try_from(x).ok()))
    }

    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        match value {
            Value::Bool(yes) => Ok(Some(yes)),
            other => Err(ApiError::value(name, &other, "true or false")),
        }
    }

    pub fn text(&mut self, name: &str) -> Result<Option<String>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let Text(most) = kind(name) else { unreachable!("{name} is a text in TABLE") };
        match value {
            Value::String(text) if text.len() <= most => Ok(Some(text)),
            other => Err(ApiError::value(name, &other, &format!("a string of up to {most} bytes"))),
        }
    }

    /// A value that is wrong, with what the table says it may be.
    pub fn wrong(name: &str, value: &Value) -> ApiError {
        let Own(allowed) = kind(name) else { unreachable!("{name} is read elsewhere") };
        ApiError::value(name, value, allowed)
    }
}

fn kind(name: &str) -> Kind {
    let found = TABLE.iter().find(|f| f.name == name);
    found.map_or(Own("left out"), |f| f.kind)
}

/// The table as a JSON schema of a request's fields.
pub fn schema(place: Place) -> Value {
    let fields = TABLE.iter().filter(|f| f.place == Place::Both || f.place == place);
    let property = |f: &Field| {
        let mut schema = match f.kind {
            Number(min, max) => json!({"type": "number", "minimum": min, "maximum": max}),
            Integer(i64::MIN, i64::MAX) => json!({"type": "integer", "format": "int64"}),
            Integer(min, max) => json!({"type": "integer", "minimum": min, "maximum": max}),
            Boolean => json!({"type": "boolean"}),
            Text(most) => json!({"type": "string", "maxLength": most}),
            Own(_) => json!({}),
        };
        let says = match f.kind {
            Own(allowed) => format!("{} {allowed}.", f.says),
            _ => f.says.to_owned(),
        };
        schema["description"] = says.into();
        (f.name.to_owned(), schema)
    };
    let properties: Map<String, Value> = fields.map(property).collect();
    json!({"type": "object", "properties": properties, "additionalProperties": true})
}
