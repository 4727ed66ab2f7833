//! Every field of a request, with every kind of value that it should not have.

use serde_json::{Value, json};

use crate::script::Play;
use crate::wire::{Running, start};

/// A value as it stands in the body: JSON that no library writes is among them.
fn bad_values() -> Vec<(&'static str, String)> {
    let long = format!("{:?}", "x".repeat(100_000));
    [
        ("true", "true"),
        ("string", "\"abc\""),
        ("empty string", "\"\""),
        ("number", "7.25"),
        ("negative", "-1"),
        ("very negative", "-9223372036854775808"),
        ("zero", "0"),
        ("huge", "1000000000000"),
        ("2^63", "9223372036854775808"),
        ("2^64", "18446744073709551616"),
        ("beyond f64", "1e400"),
        ("large float", "1e300"),
        ("tiny float", "1e-300"),
        ("NaN", "NaN"),
        ("Infinity", "Infinity"),
        ("-Infinity", "-Infinity"),
        ("list", "[]"),
        ("list of lists", "[[[]]]"),
        ("list of numbers", "[1, 2]"),
        ("list of nulls", "[null]"),
        ("object", "{}"),
        ("object in object", "{\"a\": {\"b\": null}}"),
        ("lone surrogate", "\"\\ud800\""),
        ("long string", long.as_str()),
    ]
    .map(|(name, value)| (name, value.to_owned()))
    .to_vec()
}

fn post(server: &Running, path: &str, field: &str, value: &str) -> crate::wire::Answer {
    let base = match path {
        "/v1/completions" => ("prompt", "\"hi\""),
        _ => ("messages", "[{\"role\": \"user\", \"content\": \"hi\"}]"),
    };
    let own = if field == base.0 { String::new() } else { format!("\"{}\": {}, ", base.0, base.1) };
    let more = if field == "top_logprobs" { "\"logprobs\": true, " } else { "" };
    let more = if field == "stream_options" { "\"stream\": true, " } else { more };
    let body = format!("{{{own}{more}\"{field}\": {value}}}");
    server.ask("POST", path, &[("Content-Type", "application/json")], &body)
}

/// Fields of the two ways to ask, from the server's own document.
fn fields(server: &Running, schema: &str) -> Vec<String> {
    let document = server.get("/openapi.json").json();
    let properties = &document["components"]["schemas"][schema]["properties"];
    properties.as_object().unwrap().keys().cloned().collect()
}

#[test]
fn a_wrong_value_is_a_4xx_that_names_the_field_and_never_a_5xx() {
    let server = start(Play::Text("x"));
    let mut refused = 0;
    for (path, schema) in [("/v1/chat/completions", "Chat"), ("/v1/completions", "Completion")] {
        let fields = fields(&server, schema);
        assert!(fields.len() >= 22, "{fields:?}");
        for field in fields {
            for (kind, value) in bad_values() {
                let answer = post(&server, path, &field, &value);
                let case = format!("{path} {field} = {kind}: {} {}", answer.status, answer.body);
                match answer.status {
                    // The value was one that the field may have.
                    200 => continue,
                    400 | 404 => refused += 1,
                    _ => panic!("{case}"),
                }
                let error = answer.json()["error"].clone();
                assert!(error["message"].as_str().is_some_and(|m| m.len() < 2000), "{case}");
                let param = error["param"].as_str().unwrap_or_else(|| panic!("{case}"));
                let own = param.starts_with(field.as_str()) || param == "body";
                let alias = field == "max_completion_tokens" && param == "max_tokens";
                assert!(own || alias, "{case}");
            }
        }
    }
    assert!(refused > 700, "{refused}");
    assert_eq!(server.get("/health").status, 200);
}

#[test]
fn numbers_outside_their_range_are_refused_and_those_inside_taken() {
    let server = start(Play::Text("x"));
    let inside = [
        ("temperature", json!([0, 2, 1.5])),
        ("top_p", json!([1, 0.5])),
        ("top_k", json!([0, 1, 100000])),
        ("min_p", json!([0, 0.5])),
        ("n", json!([1, 8, 1.0])),
        ("seed", json!([0, -1, i64::MAX, i64::MIN])),
        ("presence_penalty", json!([-2, 2])),
        ("frequency_penalty", json!([-2, 2])),
        ("repetition_penalty", json!([0.1, 10])),
        ("max_tokens", json!([1, 256])),
        ("stop", json!(["a", ["a"], ["a", "b", "c", "d"], []])),
        ("logit_bias", json!([{}, {"5": -100, "264": 100}])),
        ("user", json!(["somebody"])),
        ("tool_choice", json!(["none", "auto"])),
    ];
    let outside = [
        ("temperature", json!([-0.1, 2.1])),
        ("top_p", json!([0, 1.1, -1])),
        ("top_k", json!([-1])),
        ("min_p", json!([1, -0.1])),
        ("n", json!([0, 9, 1.5])),
        ("presence_penalty", json!([-2.1, 2.1])),
        ("frequency_penalty", json!([-3])),
        ("repetition_penalty", json!([0, 11])),
        ("max_tokens", json!([257])),
        ("stop", json!([["a", "b", "c", "d", "e"], [""], "", "x".repeat(257), [3]])),
        ("logit_bias", json!([{"5": 101}, {"x": 1}, {"265": 1}, {"-1": 1}, {"5": "1"}])),
        ("user", json!(["y".repeat(257)])),
        ("tool_choice", json!(["required", {"type": "function", "function": {"name": "f"}}])),
    ];
    for (expected, table) in [(200, &inside[..]), (400, &outside[..])] {
        for (field, values) in table {
            for value in values.as_array().unwrap() {
                let text = value.to_string();
                let answer = post(&server, "/v1/chat/completions", field, &text);
                assert_eq!(answer.status, expected, "{field} = {text}: {}", answer.body);
            }
        }
    }
}

#[test]
fn null_is_the_same_as_nothing() {
    let server = start(Play::Text("x"));
    for field in fields(&server, "Chat") {
        let answer = post(&server, "/v1/chat/completions", &field, "null");
        let expected = if field == "messages" { 400 } else { 200 };
        assert_eq!(answer.status, expected, "{field}: {}", answer.body);
    }
}

#[test]
fn what_this_server_cannot_do_is_refused_by_name() {
    let server = start(Play::Text("x"));
    for (field, value) in [
        ("functions", "[{\"name\": \"f\"}]"),
        ("guided_regex", "\"(a+)+b\""),
        ("audio", "{}"),
        ("prompt_embeds", "\"gASV\""),
        ("length_penalty", "2"),
        ("use_beam_search", "true"),
    ] {
        let answer = post(&server, "/v1/chat/completions", field, value);
        let error = answer.json()["error"].clone();
        assert_eq!((answer.status, error["param"].as_str()), (400, Some(field)), "{error}");
    }
    for (field, value) in [("store", "false"), ("length_penalty", "1.0"), ("functions", "[]")] {
        assert_eq!(post(&server, "/v1/chat/completions", field, value).status, 200, "{field}");
    }
}

#[test]
fn stream_options_without_a_stream_and_extra_keys_in_it_are_refused() {
    let server = start(Play::Text("x"));
    let ask = |body: Value| server.post("/v1/chat/completions", &body);
    let messages = json!([{"role": "user", "content": "x"}]);
    let alone = ask(json!({"messages": messages, "stream_options": {"include_usage": true}}));
    assert_eq!(alone.json()["error"]["param"], "stream_options");
    let extra = ask(json!({"messages": messages, "stream": true, "stream_options": {"x": 1}}));
    assert_eq!(extra.json()["error"]["param"], "stream_options");
}
