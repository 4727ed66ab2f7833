//! The one tool: the model was trained to ask a calculator.
//!
//! By default the server computes each call and the model goes on; nobody else takes part. A client
//! that lists the function `calculator` in `tools` gets the call as `tool_calls` and computes it itself,
//! as OpenAI's clients expect; its `tool` message goes where the server's answer would have gone. Other
//! functions are refused: the model has never seen one.

use serde_json::{Map, Value, json};

use super::fields::Fields;
use crate::error::ApiError;

/// The function's name.
pub const CALCULATOR: &str = "calculator";

/// Who computes the model's calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tools {
    /// The server; calls and answers are shown apart from the text.
    Server,
    /// The client; an answer ends with its first call.
    Client,
    /// As `Client`, and the answer begins with a call.
    Required,
    /// Nobody: calls are not shown.
    Off,
}

impl Tools {
    /// Takes `tools`, `tool_choice`, `parallel_tool_calls` and `nanochat.tools`.
    pub fn read(fields: &mut Fields, vendor: &Map<String, Value>) -> Result<Self, ApiError> {
        fields.boolean("parallel_tool_calls")?;
        let listed = match fields.take("tools") {
            None => false,
            Some(list) => listed(&list)?,
        };
        let choice = fields.take("tool_choice").unwrap_or_else(|| json!("auto"));
        let server = match vendor.get("tools") {
            None | Some(Value::Null) => true,
            Some(Value::Bool(yes)) => *yes,
            Some(other) => return Err(ApiError::value("nanochat.tools", other, "true or false")),
        };
        let calculator = json!({"type": "function", "function": {"name": CALCULATOR}});
        match choice.as_str() {
            Some("none") => Ok(Self::Off),
            Some("auto") if listed => Ok(Self::Client),
            Some("auto") if server => Ok(Self::Server),
            Some("auto") => Ok(Self::Off),
            Some("required") if listed => Ok(Self::Required),
            None if listed && choice == calculator => Ok(Self::Required),
            _ if !listed && (choice == calculator || choice == json!("required")) => Err(
                ApiError::field("tool_choice", "tool_choice names a tool, but tools lists none"),
            ),
            _ => Err(ApiError::value("tool_choice", &choice, "none, auto, required or calculator")),
        }
    }
}

/// Whether a list has the calculator. Errors: it has anything else.
fn listed(list: &Value) -> Result<bool, ApiError> {
    let Some(tools) = list.as_array() else {
        return Err(Fields::wrong("tools", list));
    };
    for (i, tool) in tools.iter().enumerate() {
        let param = format!("tools[{i}]");
        let name = tool["function"]["name"].as_str();
        if tool["type"] != "function" || name.is_none() {
            let what = "give {\"type\": \"function\", \"function\": {\"name\": ...}}";
            return Err(ApiError::value(&param, tool, what));
        }
        if let Some(name) = name.filter(|name| *name != CALCULATOR) {
            let message = format!(
                "{param} is the function {name:?}: this model was trained with {CALCULATOR} alone"
            );
            return Err(ApiError::field(param, message).code("unsupported_tool"));
        }
    }
    Ok(!tools.is_empty())
}

/// A call as clients see it.
pub fn call(index: usize, id: &str, expression: &str) -> Value {
    let arguments = json!({"expression": expression}).to_string();
    json!({
        "index": index, "id": id, "type": "function",
        "function": {"name": CALCULATOR, "arguments": arguments},
    })
}
