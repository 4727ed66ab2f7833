//! What chat and text completions ask in common: fields in, an engine's request out.

use nanochat_engine::SampleOptions;
use nanochat_engine::batch::{Constraint, Request};
use serde_json::Value;

use super::fields::Fields;
use crate::app::App;
use crate::error::ApiError;

type Result<T> = std::result::Result<T, ApiError>;

/// Most stop strings, and bytes of each.
const STOPS: usize = 4;
const STOP_BYTES: usize = 256;
/// Most entries of logit_bias.
const BIASES: usize = 1024;

/// How a request is to be answered; the prompt comes apart.
pub struct Asked {
    pub n: usize,
    /// None: as much as the server gives.
    pub max_tokens: Option<usize>,
    pub sample: SampleOptions,
    pub stop: Vec<String>,
    pub ignore_eos: bool,
    pub stream: bool,
    /// Counts at the end of a stream.
    pub include_usage: bool,
    /// The value of `response_format`.
    pub format: Option<Value>,
}

impl Asked {
    /// Takes the fields that both ways of asking share.
    pub fn read(fields: &mut Fields, app: &App) -> Result<Self> {
        check_model(fields, app)?;
        fields.text("user")?;
        let max_tokens = fields.count("max_tokens")?;
        let max_tokens = fields.count("max_completion_tokens")?.or(max_tokens);
        let context = app.generator.limits().context;
        if let Some(asked) = max_tokens.filter(|m| *m > context) {
            let message = format!("max_tokens is {asked}: the context holds {context} tokens");
            return Err(ApiError::field("max_tokens", message).code("context_length_exceeded"));
        }
        let stream = fields.boolean("stream")?.unwrap_or(false);
        Ok(Self {
            n: fields.count("n")?.unwrap_or(1),
            max_tokens,
            sample: sampling(fields, app)?,
            stop: stops(fields)?,
            ignore_eos: fields.boolean("ignore_eos")?.unwrap_or(false),
            stream,
            include_usage: include_usage(fields, stream)?,
            format: fields.take("response_format"),
        })
    }

    /// Whether an answer may have any form.
    pub fn format_is_text(&self) -> bool {
        self.format.as_ref().is_none_or(|f| f["type"] == "text")
    }

    /// The engine's request: an answer never gets more than the context has room for.
    ///
    /// Errors: the prompt alone fills the context.
    pub fn request(&self, app: &App, prompt: Vec<u32>, param: &str) -> Result<Request> {
        let context = app.generator.limits().context;
        if prompt.is_empty() {
            return Err(ApiError::field(
                param,
                format!("{param} is empty: give at least one token"),
            ));
        }
        let room = context.saturating_sub(prompt.len());
        if room == 0 && self.max_tokens != Some(0) || prompt.len() > context {
            let message = format!(
                "{param} has {} tokens, the context holds {context} with the answer: shorten it",
                prompt.len()
            );
            return Err(ApiError::field(param, message).code("context_length_exceeded"));
        }
        let max_tokens = self.max_tokens.unwrap_or(app.config.defaults.max_tokens).min(room);
        Ok(Request {
            prompt,
            n: self.n,
            max_tokens,
            sample: self.sample.clone(),
            stop: self.stop.clone(),
            stop_at_eot: !self.ignore_eos,
            tools: false,
            logprobs: None,
            prompt_logprobs: false,
            constraint: None::<Box<dyn Constraint>>,
        })
    }
}

/// The field is a name, never a path; the one model answers to its own and to `nanochat`.
fn check_model(fields: &mut Fields, app: &App) -> Result<()> {
    let id = &app.config.model.id;
    match fields.text("model")? {
        Some(name) if name != *id && name != "nanochat" => {
            let message = format!("there is no model {name:?}: this server has {id:?}");
            let mut error = ApiError::not_found(message).code("model_not_found");
            error.param = Some("model".into());
            Err(error)
        }
        _ => Ok(()),
    }
}

fn sampling(fields: &mut Fields, app: &App) -> Result<SampleOptions> {
    let defaults = app.config.defaults;
    let seed = fields.integer("seed")?.map_or_else(random_seed, |seed| seed as u64);
    let temperature = fields.number("temperature")?.map_or(defaults.temperature, |t| t as f32);
    let top_k = fields.count("top_k")?.map_or(defaults.top_k, |k| (k > 0).then_some(k));
    let float = |x: Option<f64>| x.map(|x| x as f32);
    let penalty = |x: Option<f64>, neutral: f32| x.map_or(neutral, |x| x as f32);
    Ok(SampleOptions::new(temperature, top_k, seed)?
        .with_top_p(float(fields.number("top_p")?))?
        .with_min_p(float(fields.number("min_p")?))?
        .with_repetition_penalty(penalty(fields.number("repetition_penalty")?, 1.0))?
        .with_presence_penalty(penalty(fields.number("presence_penalty")?, 0.0))?
        .with_frequency_penalty(penalty(fields.number("frequency_penalty")?, 0.0))?
        .with_logit_bias(logit_bias(fields, app)?)?)
}

fn random_seed() -> u64 {
    uuid::Uuid::new_v4().as_u64_pair().0
}

fn logit_bias(fields: &mut Fields, app: &App) -> Result<Vec<(u32, f32)>> {
    let Some(value) = fields.take("logit_bias") else { return Ok(Vec::new()) };
    let vocab = app.tokenizer.vocab_size() as u32;
    let map = value.as_object().filter(|map| map.len() <= BIASES);
    let map = map.ok_or_else(|| Fields::wrong("logit_bias", &value))?;
    let entry = |(id, bias): (&String, &Value)| {
        let id = id.parse::<u32>().ok().filter(|id| *id < vocab);
        let bias = bias.as_f64().filter(|b| (-100.0..=100.0).contains(b));
        id.zip(bias.map(|b| b as f32)).ok_or_else(|| Fields::wrong("logit_bias", &value))
    };
    map.iter().map(entry).collect()
}

fn stops(fields: &mut Fields) -> Result<Vec<String>> {
    let Some(value) = fields.take("stop") else { return Ok(Vec::new()) };
    let list = match &value {
        Value::String(one) => vec![one.clone()],
        Value::Array(many) => {
            let texts: Option<Vec<_>> =
                many.iter().map(|s| s.as_str().map(str::to_owned)).collect();
            texts.ok_or_else(|| Fields::wrong("stop", &value))?
        }
        _ => return Err(Fields::wrong("stop", &value)),
    };
    let fits = |stop: &String| (1..=STOP_BYTES).contains(&stop.len());
    if list.len() > STOPS || !list.iter().all(fits) {
        return Err(Fields::wrong("stop", &value));
    }
    Ok(list)
}

fn include_usage(fields: &mut Fields, stream: bool) -> Result<bool> {
    let Some(value) = fields.take("stream_options") else { return Ok(false) };
    if !stream {
        let message = "stream_options is only for streams: set stream, or leave it out";
        return Err(ApiError::field("stream_options", message));
    }
    let wrong = || Fields::wrong("stream_options", &value);
    let map = value.as_object().ok_or_else(wrong)?;
    // include_obfuscation pads events against eavesdroppers: it changes nothing that is said.
    if map.keys().any(|k| k != "include_usage" && k != "include_obfuscation") {
        return Err(wrong());
    }
    match map.get("include_usage") {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(yes)) => Ok(*yes),
        Some(_) => Err(wrong()),
    }
}
