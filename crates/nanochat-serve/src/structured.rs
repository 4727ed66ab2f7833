//! Forms of answers: JSON schemas as constraints on ids.
//!
//! llguidance compiles a schema to a grammar and says, before each draw, which ids keep the answer
//! inside of it. Bombs are bounded three times: the schema's size and depth here, fuel in the
//! compiler, and a wall clock around it. Whitespace is fixed: a weak model would otherwise be free to say
//! nothing but spaces.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use llguidance::api::TopLevelGrammar;
use llguidance::toktrie::{ApproximateTokEnv, TokEnv, TokRxInfo, TokTrie};
use llguidance::{Matcher, ParserFactory};
use nanochat_engine::batch::{Constraint, ConstraintState};
use nanochat_tokenizer::{Special, Tokenizer};
use serde_json::{Value, json};

use crate::app::App;
use crate::error::ApiError;
use crate::openai::fields::Fields;
use crate::openai::request::Asked;
use crate::openai::tools::Tools;

type Result<T> = std::result::Result<T, ApiError>;

/// Most bytes of a schema.
const SCHEMA_BYTES: usize = 64 << 10;
/// Deepest nesting of a schema.
const SCHEMA_DEPTH: usize = 32;
/// Longest compilation.
const COMPILE: Duration = Duration::from_secs(2);
/// Compiled schemas that are kept.
const KEPT: usize = 64;
/// Longest token that an answer with a form may have, in bytes: longer ones are left out.
const TOKEN_BYTES: usize = 256;

/// The compiler, and what it has compiled.
#[derive(Default)]
pub(crate) struct Compiler {
    factory: OnceLock<std::result::Result<ParserFactory, String>>,
    kept: Mutex<VecDeque<(String, Arc<Form>)>>,
}

/// The constraint that a request asks for.
///
/// Errors: a schema that is none, too large, too deep, or that cannot be met.
pub(crate) async fn constraint(
    app: &Arc<App>,
    asked: &Asked,
    tools: Tools,
) -> Result<Option<Box<dyn Constraint>>> {
    let Some(format) = &asked.format else {
        return Ok((tools == Tools::Required).then(|| begin_with_call(&app.tokenizer)));
    };
    let Some(schema) = schema(format)? else {
        return Ok((tools == Tools::Required).then(|| begin_with_call(&app.tokenizer)));
    };
    if tools == Tools::Required {
        let message = "response_format and tool_choice exclude each other: leave one out";
        return Err(ApiError::field("tool_choice", message));
    }
    if asked.ignore_eos {
        let message = "ignore_eos has no end and response_format has one: leave one out";
        return Err(ApiError::field("ignore_eos", message));
    }
    let text = schema.to_string();
    if text.len() > SCHEMA_BYTES {
        let message =
            format!("the schema has {} bytes, at most {SCHEMA_BYTES} are taken", text.len());
        return Err(ApiError::field("response_format", message));
    }
    if depth(&schema) > SCHEMA_DEPTH {
        let message = format!("the schema is deeper than {SCHEMA_DEPTH} levels: flatten it");
        return Err(ApiError::field("response_format", message));
    }
    let worker = Arc::clone(app);
    let compile =
        tokio::task::spawn_blocking(move || worker.compiler.compile(&worker, text, schema));
    let form = match tokio::time::timeout(COMPILE, compile).await {
        Ok(Ok(form)) => form?,
        Ok(Err(e)) => return Err(ApiError::internal(e.to_string())),
        Err(_) => {
            let message = "the schema takes too long to compile: make it simpler";
            return Err(ApiError::field("response_format", message));
        }
    };
    Ok(Some(Box::new(Shared(form))))
}

/// The schema of a `response_format`; None for plain text.
fn schema(format: &Value) -> Result<Option<Value>> {
    let wrong = || Fields::wrong("response_format", format);
    match format["type"].as_str() {
        Some("text") => Ok(None),
        Some("json_object") => Ok(Some(json!({"type": "object"}))),
        Some("json_schema") => match &format["json_schema"]["schema"] {
            schema @ (Value::Object(_) | Value::Bool(_)) => Ok(Some(schema.clone())),
            other => {
                let param = "response_format.json_schema.schema";
                Err(ApiError::value(param, other, "a JSON schema"))
            }
        },
        _ => Err(wrong()),
    }
}

/// Levels of lists and objects; the parser of bodies has bounded it already.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

impl Compiler {
    fn compile(&self, app: &App, text: String, mut schema: Value) -> Result<Arc<Form>> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, form)) = kept.iter().find(|(known, _)| *known == text) {
            return Ok(Arc::clone(form));
        }
        // One schema is compiled at a time: a flood of them waits in line, each within its own limit.
        let factory = self.factory.get_or_init(|| factory(&app.tokenizer));
        let factory = factory.as_ref().map_err(ApiError::internal)?;
        if let Some(schema) = schema.as_object_mut() {
            let fixed = json!({
                "whitespace_flexible": false, "item_separator": ", ", "key_separator": ": ",
            });
            schema.insert("x-guidance".into(), fixed);
        }
        let mut matcher =
            Matcher::new(factory.create_parser(TopLevelGrammar::from_json_schema(schema)));
        // The first mask finds forms that no text has.
        if let Err(error) = matcher.compute_mask() {
            let what: String = error.to_string().chars().take(500).collect();
            let message = format!("response_format: the schema cannot be used: {what}");
            return Err(ApiError::field("response_format", message));
        }
        let end = app.tokenizer.special(Special::AssistantEnd);
        let form = Arc::new(Form { matcher: Mutex::new(matcher), end });
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back((text, Arc::clone(&form)));
        Ok(form)
    }
}

/// The tokenizer's ids as llguidance sees them.
fn factory(tokenizer: &Tokenizer) -> std::result::Result<ParserFactory, String> {
    let marker = TokTrie::SPECIAL_TOKEN_MARKER;
    let word = |id: u32| {
        let bytes = tokenizer.id_bytes(id).unwrap_or_default();
        match tokenizer.is_special(id) {
            Some(_) => [&[marker], bytes].concat(),
            // No UTF-8 has this byte; a token that begins with it would pass for a special one.
            None if bytes.first() == Some(&marker) || bytes.len() > TOKEN_BYTES => Vec::new(),
            None => bytes.to_vec(),
        }
    };
    let vocab_size = tokenizer.vocab_size() as u32;
    let words: Vec<Vec<u8>> = (0..vocab_size).map(word).collect();
    let info = TokRxInfo::new(vocab_size, tokenizer.special(Special::AssistantEnd));
    let env: TokEnv = Arc::new(ApproximateTokEnv::new(TokTrie::from(&info, &words)));
    let mut factory = ParserFactory::new_simple(&env).map_err(|e| e.to_string())?;
    factory.quiet();
    let limits = factory.limits_mut();
    limits.verbose_errors = false;
    limits.precompute_large_lexemes = false;
    limits.max_lexer_states = 50_000;
    limits.max_grammar_size = 100_000;
    Ok(factory)
}

/// A compiled schema.
struct Form {
    /// In its first state.
    matcher: Mutex<Matcher>,
    /// What ends an answer.
    end: u32,
}

struct Shared(Arc<Form>);

impl Constraint for Shared {
    fn begin(&self) -> Box<dyn ConstraintState> {
        let matcher = self.0.matcher.lock().unwrap_or_else(PoisonError::into_inner).deep_clone();
        Box::new(InForm { matcher, end: self.0.end })
    }
}

struct InForm {
    matcher: Matcher,
    end: u32,
}

impl ConstraintState for InForm {
    fn mask(&mut self, words: &mut [u64]) -> std::result::Result<(), String> {
        let allowed = self.matcher.compute_mask_or_eos().map_err(|e| e.to_string())?;
        let halves = allowed.as_slice();
        for (i, word) in words.iter_mut().enumerate() {
            let half = |i: usize| u64::from(halves.get(i).copied().unwrap_or(0));
            *word &= half(2 * i) | half(2 * i + 1) << 32;
        }
        Ok(())
    }

    fn accept(&mut self, id: u32) -> std::result::Result<(), String> {
        if id == self.end {
            return Ok(());
        }
        self.matcher.consume_token(id).map_err(|e| e.to_string())
    }
}

/// An answer that begins with a call of the calculator.
fn begin_with_call(tokenizer: &Tokenizer) -> Box<dyn Constraint> {
    Box::new(FirstId(tokenizer.special(Special::PythonStart)))
}

struct FirstId(u32);

impl Constraint for FirstId {
    fn begin(&self) -> Box<dyn ConstraintState> {
        Box::new(First { id: self.0, said: false })
    }
}

struct First {
    id: u32,
    said: bool,
}

impl ConstraintState for First {
    fn mask(&mut self, words: &mut [u64]) -> std::result::Result<(), String> {
        if !self.said {
            let (at, bit) = (self.id as usize / 64, self.id % 64);
            for (i, word) in words.iter_mut().enumerate() {
                *word &= if i == at { 1 << bit } else { 0 };
            }
        }
        Ok(())
    }

    fn accept(&mut self, _: u32) -> std::result::Result<(), String> {
        self.said = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nanochat_tokenizer::DEFAULT_PATTERN;

    fn tokenizer() -> Tokenizer {
        Tokenizer::from_merges(DEFAULT_PATTERN, Vec::new()).unwrap()
    }

    fn form(schema: Value) -> Shared {
        let t = tokenizer();
        let factory = factory(&t).unwrap();
        let parser = factory.create_parser(TopLevelGrammar::from_json_schema(schema));
        let matcher = Mutex::new(Matcher::new(parser));
        Shared(Arc::new(Form { matcher, end: t.special(Special::AssistantEnd) }))
    }

    /// Which ids may come next.
    fn allowed(state: &mut dyn ConstraintState) -> Vec<u32> {
        let vocab = tokenizer().vocab_size();
        let mut words = vec![u64::MAX; vocab.div_ceil(64)];
        state.mask(&mut words).unwrap();
        (0..vocab as u32).filter(|id| words[*id as usize / 64] >> (id % 64) & 1 == 1).collect()
    }

    #[test]
    fn a_form_lets_through_its_texts_and_nothing_else() {
        let schema = json!({"enum": ["ab", "ac"]});
        let end = tokenizer().special(Special::AssistantEnd);
        let form = form(schema);
        let mut state = form.begin();
        for byte in b"\"a" {
            assert_eq!(allowed(&mut *state), [u32::from(*byte)]);
            state.accept(u32::from(*byte)).unwrap();
        }
        assert_eq!(allowed(&mut *state), [u32::from(b'b'), u32::from(b'c')]);
        state.accept(u32::from(b'c')).unwrap();
        state.accept(u32::from(b'"')).unwrap();
        assert_eq!(allowed(&mut *state), [end]);
        state.accept(end).unwrap();
        // Each row begins anew.
        assert_eq!(allowed(&mut *form.begin()), [u32::from(b'"')]);
    }

    #[test]
    fn no_special_token_is_ever_part_of_a_form() {
        let t = tokenizer();
        let mut state = form(json!({"type": "string"})).begin();
        state.accept(u32::from(b'"')).unwrap();
        let ids = allowed(&mut *state);
        assert!(ids.contains(&u32::from(b'x')) && ids.iter().all(|id| t.is_special(*id).is_none()));
    }

    #[test]
    fn a_required_call_begins_the_answer() {
        let t = tokenizer();
        let mut state = begin_with_call(&t).begin();
        assert_eq!(allowed(&mut *state), [t.special(Special::PythonStart)]);
        state.accept(t.special(Special::PythonStart)).unwrap();
        assert_eq!(allowed(&mut *state).len(), t.vocab_size());
    }
}
