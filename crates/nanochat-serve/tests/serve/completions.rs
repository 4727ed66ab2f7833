//! `/v1/completions`, `/tokenize`, `/detokenize`: what evaluation harnesses rely on.

use serde_json::{Value, json};

use crate::script::Play;
use crate::wire::start;

const PATH: &str = "/v1/completions";

#[test]
fn a_text_is_continued_after_a_bos_that_nobody_sees() {
    let server = start(Play::Text(" world"));
    let body = server.post(PATH, &json!({"prompt": "hello"})).json();
    assert_eq!(body["object"], "text_completion");
    assert_eq!(body["choices"][0]["text"], " world");
    assert_eq!(body["choices"][0]["finish_reason"], "stop");
    assert_eq!(body["usage"]["prompt_tokens"], 6);
    assert_eq!(server.script.prompts.lock().unwrap()[0][0], 256);
    assert_eq!(server.script.max_tokens.lock().unwrap()[0], 16);
}

#[test]
fn echo_with_probabilities_aligns_with_the_ids_that_were_sent() {
    let server = start(Play::Text("!"));
    let ids = json!([256, 104, 105]);
    let ask =
        json!({"prompt": [ids], "echo": true, "logprobs": 2, "max_tokens": 1, "temperature": 0});
    let choice = server.post(PATH, &ask).json()["choices"][0].clone();
    assert_eq!(choice["text"], "<|bos|>hi!");
    let logprobs = &choice["logprobs"];
    assert_eq!(logprobs["tokens"], json!(["<|bos|>", "h", "i", "!"]));
    assert_eq!(logprobs["token_logprobs"], json!([null, -0.5, -0.5, -0.5]));
    assert_eq!(logprobs["top_logprobs"][1], json!({"h": -0.5, "z": -1.5}));
    assert_eq!(logprobs["text_offset"], json!([0, 7, 8, 9]));
}

#[test]
fn the_prompt_alone_can_be_scored() {
    let server = start(Play::Text("never said"));
    let ask = json!({"prompt": "hé", "echo": true, "logprobs": 0, "max_tokens": 0});
    let choice = server.post(PATH, &ask).json()["choices"][0].clone();
    assert_eq!(choice["text"], "hé");
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["logprobs"]["tokens"], json!(["h", "bytes:\\xc3", "bytes:\\xa9"]));
    // bos was before it, so the first letter has a probability too.
    assert_eq!(choice["logprobs"]["token_logprobs"], json!([-0.5, -0.5, -0.5]));
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 1, 2]));
}

#[test]
fn many_prompts_give_choices_in_their_order() {
    let server = start(Play::Echo);
    let ask = json!({"prompt": ["a", "b", "c"], "n": 2, "max_tokens": 2});
    let body = server.post(PATH, &ask).json();
    let choices = body["choices"].as_array().unwrap();
    let texts: Vec<_> = choices.iter().map(|c| c["text"].as_str().unwrap()).collect();
    assert_eq!(texts, ["aa", "aa", "bb", "bb", "cc", "cc"]);
    assert_eq!(body["usage"]["completion_tokens"], 12);
}

#[test]
fn a_stream_says_the_same_in_pieces() {
    let server = start(Play::Text("héllo"));
    let ask = json!({"prompt": "x", "stream": true, "echo": true, "logprobs": 1,
        "stream_options": {"include_usage": true}});
    let answer = server.post(PATH, &ask);
    let chunks = answer.chunks();
    let text: String = chunks.iter().filter_map(|c| c["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, "xhéllo");
    let offsets: Vec<_> = chunks
        .iter()
        .filter_map(|c| c["choices"][0]["logprobs"]["text_offset"].as_array())
        .flatten()
        .filter_map(Value::as_u64)
        .collect();
    assert_eq!(offsets, [0, 1, 2, 3, 3, 4, 5]);
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], 6);
    assert_eq!(answer.events().last().unwrap(), "[DONE]");
}

#[test]
fn prompts_that_are_none_are_refused() {
    let server = start(Play::Text("x"));
    for prompt in [
        json!(null),
        json!([]),
        json!([[]]),
        json!([99999]),
        json!([-1]),
        json!([1.5]),
        json!({}),
        json!(true),
        json!([["a"]]),
        json!(vec!["x"; 65]),
        json!("y".repeat(300)),
    ] {
        let answer = server.post(PATH, &json!({"prompt": prompt}));
        assert_eq!(answer.status, 400, "{prompt}: {}", answer.body);
        assert_eq!(answer.json()["error"]["param"], "prompt");
    }
    for (field, value) in [("suffix", json!("x")), ("best_of", json!(2)), ("logprobs", json!(true))]
    {
        let answer = server.post(PATH, &json!({"prompt": "x", field: value}));
        assert_eq!(answer.json()["error"]["param"], field);
    }
}

#[test]
fn text_becomes_ids_and_comes_back() {
    let server = start(Play::Text("x"));
    let ids = server.post("/tokenize", &json!({"prompt": "hi<|bos|>"})).json();
    assert_eq!(ids["count"], 10);
    assert_eq!(ids["tokens"][0], 256, "bos, then nine plain characters");
    let bare =
        server.post("/tokenize", &json!({"content": "hi", "add_special_tokens": false})).json();
    assert_eq!(bare["tokens"], json!([104, 105]));
    let back = server.post("/detokenize", &json!({"tokens": [104, 105]})).json();
    assert_eq!(back["prompt"], "hi");
    let messages = json!({"messages": [{"role": "user", "content": "a"}]});
    assert_eq!(
        server.post("/tokenize", &messages).json()["tokens"],
        json!([256, 257, 97, 258, 259])
    );
    for (path, body, param) in [
        ("/tokenize", json!({}), "prompt"),
        ("/tokenize", json!([]), "body"),
        ("/tokenize", json!({"prompt": 3}), "prompt"),
        ("/detokenize", json!({"tokens": [1e9]}), "tokens"),
        ("/detokenize", json!({"tokens": "x"}), "tokens"),
        ("/detokenize", json!({}), "tokens"),
    ] {
        let answer = server.post(path, &body);
        assert_eq!((answer.status, &answer.json()["error"]["param"]), (400, &json!(param)));
    }
}
