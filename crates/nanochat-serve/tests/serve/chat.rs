//! `/v1/chat/completions`: what clients of OpenAI's API rely on.

use nanochat_engine::Piece;
use serde_json::{Value, json};

use crate::script::{Play, tokenizer};
use crate::wire::{Running, start};

const PATH: &str = "/v1/chat/completions";

fn ask(server: &Running, more: Value) -> crate::wire::Answer {
    let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
    for (key, value) in more.as_object().unwrap() {
        body[key] = value.clone();
    }
    server.post(PATH, &body)
}

/// The text of choice `index` in a stream.
fn text(chunks: &[Value], index: usize) -> String {
    let choices = chunks.iter().filter_map(|c| c["choices"].get(0));
    let own = choices.filter(|c| c["index"] == index);
    own.filter_map(|c| c["delta"]["content"].as_str()).collect()
}

#[test]
fn an_answer_in_one_piece() {
    let server = start(Play::Text("hello"));
    let answer = ask(&server, json!({"model": "tiny"}));
    assert_eq!(answer.status, 200, "{}", answer.body);
    let body = answer.json();
    assert_eq!(body["object"], "chat.completion");
    assert_eq!(body["model"], "tiny");
    assert_eq!(body["id"], answer.header("x-request-id").unwrap());
    let choice = &body["choices"][0];
    assert_eq!(choice["message"]["role"], "assistant");
    assert_eq!(choice["message"]["content"], "hello");
    assert_eq!((&choice["finish_reason"], &choice["logprobs"]), (&json!("stop"), &Value::Null));
    assert_eq!(
        body["usage"],
        json!({"prompt_tokens": 6, "completion_tokens": 5, "total_tokens": 11,
            "prompt_tokens_details": {"cached_tokens": 3}})
    );
    let prompt = server.script.prompts.lock().unwrap()[0].clone();
    assert_eq!(
        tokenizer().decode(&prompt).unwrap(),
        "<|bos|><|user_start|>hi<|user_end|><|assistant_start|>"
    );
}

#[test]
fn a_stream_has_one_role_one_finish_and_usage_without_choices() {
    let server = start(Play::Text("héllo"));
    let answer = ask(&server, json!({"stream": true, "stream_options": {"include_usage": true}}));
    assert_eq!(answer.header("content-type"), Some("text/event-stream; charset=utf-8"));
    assert_eq!(answer.events().last().unwrap(), "[DONE]");
    let chunks = answer.chunks();
    assert!(
        chunks.iter().all(|c| c["id"] == chunks[0]["id"] && c["created"] == chunks[0]["created"])
    );
    assert!(chunks.iter().all(|c| c["object"] == "chat.completion.chunk"));
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert_eq!(text(&chunks, 0), "héllo");
    let finishes = chunks.iter().filter(|c| c["choices"][0]["finish_reason"].is_string());
    assert_eq!(finishes.count(), 1);
    let (last, before) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], 6);
    assert_eq!(last["nanochat"]["queued_ms"], 250.0);
    assert_eq!(last["nanochat"]["tokens_per_sec"], 5.0);
    assert!(before.iter().all(|c| c["usage"].is_null()));
}

#[test]
fn without_include_usage_there_is_no_word_of_it() {
    let server = start(Play::Text("x"));
    let chunks = ask(&server, json!({"stream": true})).chunks();
    assert!(chunks.iter().all(|c| c.get("usage").is_none()));
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "stop");
}

#[test]
fn no_text_breaks_a_frame() {
    let server = start(Play::Text("a\n\ndata: [DONE]\r\n\u{2028}\"\\é😀\u{0}"));
    let answer = ask(&server, json!({"stream": true}));
    assert_eq!(text(&answer.chunks(), 0), "a\n\ndata: [DONE]\r\n\u{2028}\"\\é😀\u{0}");
    assert_eq!(answer.events().iter().filter(|e| *e == "[DONE]").count(), 1);
}

#[test]
fn samples_are_told_apart_by_their_index() {
    let server = start(Play::Text("ab"));
    let body = ask(&server, json!({"n": 3})).json();
    let indices: Vec<_> = body["choices"].as_array().unwrap().iter().map(|c| &c["index"]).collect();
    assert_eq!(indices, [0, 1, 2]);
    assert_eq!(body["usage"]["completion_tokens"], 6);
    let chunks = ask(&server, json!({"n": 3, "stream": true})).chunks();
    assert!((0..3).all(|i| text(&chunks, i) == "ab"));
}

#[test]
fn a_cut_answer_says_length() {
    let server = start(Play::Text("hello"));
    for name in ["max_tokens", "max_completion_tokens"] {
        let body = ask(&server, json!({name: 2})).json();
        assert_eq!(body["choices"][0]["message"]["content"], "he");
        assert_eq!(body["choices"][0]["finish_reason"], "length");
    }
    // As much as the context has room for, and not more.
    ask(&server, json!({"max_tokens": 256}));
    assert_eq!(server.script.max_tokens.lock().unwrap().last(), Some(&250));
}

#[test]
fn log_probabilities_come_with_bytes_and_the_likeliest() {
    let server = start(Play::Text("é"));
    let body = ask(&server, json!({"logprobs": true, "top_logprobs": 2})).json();
    let content = &body["choices"][0]["logprobs"]["content"];
    assert_eq!(content[0]["token"], "bytes:\\xc3");
    assert_eq!(content[0]["bytes"], json!([0xc3]));
    assert_eq!(
        content[1]["top_logprobs"][1],
        json!({"token": "z", "logprob": -1.5, "bytes": [122]})
    );
    let chunks = ask(&server, json!({"logprobs": true, "stream": true})).chunks();
    let with = chunks.iter().filter(|c| c["choices"][0]["logprobs"]["content"].is_array());
    assert_eq!(with.count(), 2, "one for each token, the first half of a character too");
}

fn calculates() -> Play {
    let text = |t: &str| Piece::Text(t.into());
    let call = Piece::ToolCall("2+3".into());
    Play::Pieces(vec![text("it is "), call, Piece::ToolOutput("5".into()), text("5")])
}

#[test]
fn the_servers_own_calls_stand_beside_the_text() {
    let server = start(calculates());
    let message = ask(&server, json!({})).json()["choices"][0]["message"].clone();
    assert_eq!(message["content"], "it is 5");
    assert_eq!(message.get("tool_calls"), None);
    assert_eq!(
        message["nanochat"]["parts"],
        json!([{"type": "text", "text": "it is "}, {"type": "tool_call", "text": "2+3"},
            {"type": "tool_output", "text": "5"}, {"type": "text", "text": "5"}])
    );
    let chunks = ask(&server, json!({"stream": true})).chunks();
    let deltas: Vec<_> = chunks.iter().map(|c| &c["choices"][0]["delta"]["nanochat"]).collect();
    assert!(deltas.contains(&&json!({"tool_call": "2+3"})));
    assert!(deltas.contains(&&json!({"tool_output": "5"})));
    let off = ask(&server, json!({"nanochat": {"tools": false}})).json();
    assert_eq!(off["choices"][0]["message"].get("nanochat"), None);
}

#[test]
fn a_client_that_lists_the_calculator_computes_the_call() {
    let server = start(calculates());
    let tools = json!([{"type": "function", "function": {"name": "calculator", "parameters": {}}}]);
    let choice = ask(&server, json!({"tools": tools})).json()["choices"][0].clone();
    assert_eq!(choice["finish_reason"], "tool_calls");
    let call = &choice["message"]["tool_calls"][0];
    assert_eq!(call["function"]["name"], "calculator");
    assert_eq!(call["function"]["arguments"], "{\"expression\":\"2+3\"}");
    let chunks = ask(&server, json!({"tools": tools, "stream": true})).chunks();
    assert_eq!(text(&chunks, 0), "it is ");
    assert_eq!(chunks.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
    assert!(chunks.iter().any(|c| c["choices"][0]["delta"]["tool_calls"][0]["index"] == 0));
    // And back: the model goes on after the client's answer.
    let messages = json!([
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": choice["message"]["content"], "tool_calls": [call]},
        {"role": "tool", "tool_call_id": call["id"], "content": "5"},
    ]);
    let answer = ask(&server, json!({"messages": messages, "tools": tools}));
    assert_eq!(answer.status, 200, "{}", answer.body);
    let prompt = server.script.prompts.lock().unwrap().last().unwrap().clone();
    let prompt = tokenizer().decode(&prompt).unwrap();
    assert!(prompt.ends_with("<|python_start|>2+3<|python_end|><|output_start|>5<|output_end|>"));
}

#[test]
fn another_function_is_refused_by_name() {
    let server = start(Play::Text("x"));
    let tools = json!([{"type": "function", "function": {"name": "get_weather"}}]);
    let error = ask(&server, json!({"tools": tools})).json()["error"].clone();
    assert_eq!(error["param"], "tools[0]");
    assert!(error["message"].as_str().unwrap().contains("get_weather"));
}

#[test]
fn a_schema_shapes_the_answer() {
    let server = start(Play::Constrained);
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}},
        "required": ["a"], "additionalProperties": false});
    let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    for stream in [false, true] {
        let answer =
            ask(&server, json!({"response_format": format, "stream": stream, "max_tokens": 50}));
        let said = match stream {
            true => text(&answer.chunks(), 0),
            false => answer.json()["choices"][0]["message"]["content"].as_str().unwrap().to_owned(),
        };
        let value: Value = serde_json::from_str(&said).unwrap();
        assert!(value["a"].is_number(), "{said}");
    }
    let object = ask(&server, json!({"response_format": {"type": "json_object"}})).json();
    assert_eq!(object["choices"][0]["message"]["content"], "{}");
}

#[test]
fn bombs_of_schemas_are_refused() {
    let server = start(Play::Constrained);
    let mut deep = json!({"type": "integer"});
    for _ in 0..40 {
        deep = json!({"type": "array", "items": deep});
    }
    let wide: Vec<String> = (0..9000).map(|i| format!("value number {i}")).collect();
    for schema in [
        deep,
        json!({"enum": wide}),
        json!({"$ref": "http://example.com/schema"}),
        json!({"$ref": "#/$defs/none"}),
        json!({"type": "nonsense"}),
        json!({"allOf": [{"type": "string"}, {"type": "integer"}]}),
    ] {
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
        let answer = ask(&server, json!({"response_format": format}));
        assert_eq!(answer.status, 400, "{}", answer.body);
        assert_eq!(answer.json()["error"]["param"], "response_format");
    }
}

#[test]
fn a_bomb_of_a_pattern_is_refused_or_harmless() {
    let server = start(Play::Constrained);
    for pattern in ["^(a{1,9999}){1,9999}$", "^(a+)+b$", "^((((a*)*)*)*)*$", "(?=x)", "("] {
        let schema = json!({"type": "string", "pattern": pattern});
        let format = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
        let answer = ask(&server, json!({"response_format": format, "max_tokens": 20}));
        assert!([200, 400].contains(&answer.status), "{pattern}: {}", answer.body);
    }
}

#[test]
fn a_required_call_comes_first() {
    let server = start(Play::Constrained);
    let tools = json!([{"type": "function", "function": {"name": "calculator"}}]);
    let choice = ask(&server, json!({"tools": tools, "tool_choice": "required"})).json();
    assert_eq!(choice["choices"][0]["finish_reason"], "tool_calls");
}

#[test]
fn a_failure_in_the_middle_is_an_event_and_whole_it_is_a_500() {
    for play in [Play::Fail, Play::Vanish] {
        let server = start(play);
        let answer = ask(&server, json!({"stream": true}));
        let events = answer.events();
        let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
        assert_eq!(last["error"]["type"], "server_error");
        assert_eq!(ask(&server, json!({})).status, 500);
        assert_eq!(server.get("/health").status, 200);
    }
}

#[test]
fn unknown_fields_are_named_in_a_header() {
    let server = start(Play::Text("x"));
    let answer = ask(&server, json!({"frobnicate": 1, "metadata": {}, "temperature": null}));
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("warnings"), Some("ignored unknown fields: frobnicate, metadata"));
}

#[test]
fn the_model_is_a_name() {
    let server = start(Play::Text("x"));
    for name in ["../../etc/passwd", "gpt-4o", ""] {
        let answer = ask(&server, json!({"model": name}));
        assert_eq!(answer.status, 404);
        let error = answer.json()["error"].clone();
        assert_eq!((&error["param"], &error["code"]), (&json!("model"), &json!("model_not_found")));
    }
    assert_eq!(server.get("/v1/models").json()["data"][0]["id"], "tiny");
    assert_eq!(server.get("/v1/models/tiny").json()["max_model_len"], 256);
    assert_eq!(server.get("/v1/models/other").status, 404);
}

#[test]
fn a_conversation_that_is_too_long_is_refused_or_its_beginning_forgotten() {
    let server = start(Play::Text("x"));
    let turn = |role: &str| json!({"role": role, "content": "y".repeat(90)});
    let messages =
        json!([turn("user"), turn("assistant"), turn("user"), turn("assistant"), turn("user")]);
    let answer = ask(&server, json!({"messages": messages}));
    assert_eq!(answer.status, 400);
    assert_eq!(answer.json()["error"]["code"], "context_length_exceeded");
    let kept = ask(&server, json!({"messages": messages, "nanochat": {"truncate": true}}));
    assert_eq!(kept.status, 200, "{}", kept.body);
    assert_eq!(kept.json()["nanochat"]["forgot"], 2);
}

#[test]
fn the_old_stream_is_as_it_was() {
    let server = start(calculates());
    let body = json!({"messages": [{"role": "user", "content": "hi"}], "temperature": 0.8});
    let events = server.post("/chat/completions", &body).events();
    let texts: Vec<Value> = events.iter().map(|e| serde_json::from_str(e).unwrap()).collect();
    assert_eq!(texts[1], json!({"token": "<|python_start|>2+3<|python_end|>", "gpu": 0}));
    assert_eq!(texts.last().unwrap(), &json!({"done": true}));
    for (field, value) in [("temperature", json!(9)), ("top_k", json!(-1)), ("messages", json!([]))]
    {
        let mut wrong = body.clone();
        wrong[field] = value;
        let answer = server.post("/chat/completions", &wrong);
        assert_eq!(answer.status, 400);
        assert!(answer.json()["detail"].is_string());
    }
}
