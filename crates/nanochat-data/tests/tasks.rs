//! Records of evaluations to questions, and answers to verdicts.

use std::fs;
use std::path::Path;

use nanochat_data::tasks::{
    Answer, CHAT_CORE, ChatTask, DataDir, NoRunner, Which, core, custom, entry, gsm8k, humaneval,
};
use nanochat_data::{Error, Task};
use nanochat_tokenizer::chat::Part;

fn put(dir: &Path, name: &str, text: &str) {
    let path = dir.join(name);
    fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
    fs::write(path, text).expect("a file");
}

fn load(dir: &Path, name: &str) -> ChatTask {
    entry(name).expect("a task").load(&DataDir::new(dir), Which::Test).expect("questions")
}

#[test]
fn a_choice_is_rendered_in_either_form_of_its_record() {
    let dir = tempfile::tempdir().expect("a folder");
    let plain = r#"{"question":"Hot?","choices":["ice","fire"],"answer":1}"#;
    let hub = r#"{"question":"Hot?","choices":{"text":["ice","fire"],"label":["1","2"]},"answerKey":"2"}"#;
    put(dir.path(), "eval/arc/easy_test.jsonl", plain);
    put(dir.path(), "task_data/allenai--ai2_arc/ARC-Challenge/test/0.jsonl", hub);
    put(dir.path(), "mmlu/test.jsonl", &plain.replace("}", ",\"subject\":\"physics\"}"));
    for (name, letters, id) in [
        ("ARC-Easy", ["A", "B"], "0"),
        ("arc_challenge", ["1", "2"], "0"),
        ("mmlu", ["A", "B"], "physics/0"),
    ] {
        let task = load(dir.path(), name);
        let question = &task.questions[0];
        let [a, b] = letters;
        assert_eq!(
            question.text(),
            format!(
                "Multiple Choice question: Hot?\n- ice={a}\n- fire={b}\n\n\
                 Respond only with the letter of the correct answer."
            )
        );
        assert_eq!((question.reference().as_str(), question.id.as_str()), (b, id));
        let gold = Answer::Letter { letters: letters.map(String::from).into(), gold: 1 };
        assert_eq!((&question.answer, task.baseline), (&gold, 0.25));
        assert!(gold.grade(b, &NoRunner).expect("no program").right);
        assert!(!gold.grade(a, &NoRunner).expect("no program").right);
    }
}

#[test]
fn questions_come_in_numpys_order() {
    let dir = tempfile::tempdir().expect("a folder");
    let lines: String =
        (0..10).map(|i| format!("{{\"question\":\"{i}\",\"answer\":\"#### {i}\"}}\n")).collect();
    put(dir.path(), "gsm8k/test.jsonl", &lines);
    let task = load(dir.path(), "GSM8K");
    // numpy.random.default_rng(42).permutation(10)
    let ids: Vec<&str> = task.questions.iter().map(|q| q.id.as_str()).collect();
    assert_eq!(ids, ["5", "6", "0", "7", "3", "2", "4", "9", "1", "8"]);
    assert_eq!((task.len(), task.get(0).expect("turns").messages.len()), (10, 2));
}

#[test]
fn calculations_become_tool_calls_and_numbers_are_read_after_hashes() {
    let text = |t: &str| Part::Text(t.into());
    let call = |c: &str, r: &str| [Part::Python(c.into()), Part::PythonOutput(r.into())];
    let [one, two] = call("2*3", "6");
    let [three, four] = call("1==1", "");
    assert_eq!(
        gsm8k::parts("a < <<2*3=6>>6 b<<1==1=>>\n#### 7"),
        [text("a < "), one, two, text("6 b"), three, four, text("\n#### 7")]
    );
    assert_eq!(gsm8k::parts("x<<a>b>><<>>"), [text("x<<a>b>><<>>")]);
    for (said, number) in [
        ("#### 18", Some("18")),
        ("#### -1,234.50.", Some("-1234.50.")),
        ("#### x #### 7 #### 8", Some("7")),
        ("####18", None),
        ("#### -", None),
        ("18", None),
    ] {
        assert_eq!(gsm8k::number(said).as_deref(), number, "{said}");
    }
    let gold = Answer::Number("18".into());
    for (said, right) in [("so\n#### 18 eggs", true), ("#### 18.0", false), ("18", false)] {
        assert_eq!(gold.grade(said, &NoRunner).expect("no program").right, right, "{said}");
    }
}

#[test]
fn code_is_taken_out_of_an_answer() {
    for (answer, code) in [
        ("```python\ndef f():\n    return 1\n```\nmore ```\nx\n```", "def f():\n    return 1"),
        ("Sure:\n```\nx = 1\n```", "x = 1"),
        // No end of the block, or another language: all of it.
        ("```python\nx = 1", "```python\nx = 1"),
        ("```python  \n\n\n```", ""),
        ("  def f(): pass \n", "def f(): pass"),
        // A fence that opens nothing may still close something, as upstream's pattern has it.
        ("```python3\na\n```\nb\n```", "b"),
        ("", ""),
    ] {
        assert_eq!(humaneval::code(answer), code, "{answer:?}");
    }
    let prompt = "# about\nimport math\n\nfrom typing import List\ndef f():\n    import os\n";
    assert_eq!(humaneval::imports(prompt), "import math\nfrom typing import List");
}

#[test]
fn a_file_of_ones_own_is_graded_by_what_its_answers_are() {
    let dir = tempfile::tempdir().expect("a folder");
    let lines = [
        r#"{"id":"x","question":"q","choices":["a","b","c"],"answer":"C"}"#,
        r#"{"question":"q","answer":42}"#,
        r#"{"question":"q","answer":"work\n#### 5"}"#,
        r#"{"question":"q","answer":["Paris","Lutetia"]}"#,
        r#"{"messages":[{"role":"user","content":"u"},{"role":"assistant","content":"B"}],"grade":"letter"}"#,
        r#"{"prompt":"import os\ndef f():","test":"t","entry_point":"f"}"#,
    ];
    put(dir.path(), "mine.jsonl", &lines.join("\n"));
    let task = custom::load(&dir.path().join("mine.jsonl")).expect("questions");
    assert_eq!((task.name.as_str(), task.questions.len()), ("mine", 6));
    assert!((task.baseline - 1.0 / 3.0 / 6.0).abs() < 1e-12 && task.runs_programs());
    assert_eq!((task.questions[0].id.as_str(), task.questions[1].id.as_str()), ("x", "1"));
    for (i, right, wrong) in [
        (0, "C", "A"),
        (1, "It is 42.", "42 or 43"),
        (2, "#### 5", "5"),
        (3, "lutetia, of course", "Parisian"),
        (4, "b.", "B or C"),
    ] {
        let answer = &task.questions[i].answer;
        assert!(answer.grade(right, &NoRunner).expect("no program").right, "{i}: {right}");
        assert!(!answer.grade(wrong, &NoRunner).expect("no program").right, "{i}: {wrong}");
    }
    assert!(matches!(task.questions[5].answer.grade("x", &NoRunner), Err(Error::NoRunner { .. })));
    for (line, why) in [
        (r#"{"q":1}"#, "no known form"),
        (r#"{"question":"q"}"#, "answer is missing"),
        (r#"{"question":"q","choices":["a","b"],"answer":2}"#, "none of the choices"),
        (r#"{"question":"q","answer":"x","grade":"number"}"#, "grade number"),
        (r#"{"question":"q","answer":"x","grade":"feeling"}"#, "give number, hashes"),
        (r#"{"messages":[{"role":"user","content":"u"}]}"#, "must end with the assistant"),
        ("{", "row 0"),
        ("", "no questions"),
    ] {
        put(dir.path(), "bad.jsonl", line);
        let refused = custom::load(&dir.path().join("bad.jsonl")).expect_err(line).to_string();
        assert!(refused.contains(why) && refused.contains("bad.jsonl"), "{line}: {refused}");
    }
}

#[test]
fn spelling_is_made_from_words_the_same_every_time() {
    let dir = tempfile::tempdir().expect("a folder");
    let words: String = (0..200).map(|i| format!("w{}ord\nProper\n", "ab".repeat(i % 7))).collect();
    put(dir.path(), "wordlists/american-english.txt", &words);
    for name in ["SpellingBee", "SimpleSpelling"] {
        let task = load(dir.path(), name);
        let again = load(dir.path(), name);
        assert_eq!((task.questions.len(), &task.questions), (256, &again.questions));
        let train = entry(name).expect("a task").load(&DataDir::new(dir.path()), Which::Train);
        assert_ne!(train.expect("questions").questions[0].id, task.questions[0].id);
        // The reference is right by its own grade.
        for question in &task.questions {
            let verdict = question.answer.grade(&question.reference(), &NoRunner).expect("words");
            assert!(verdict.right, "{}: {}", question.text(), question.reference());
        }
    }
}

/// Both layouts of CORE with the same two tasks.
fn core_folders(dir: &Path) {
    put(
        dir,
        "bundle/core.yaml",
        "icl_tasks:\n-\n  label: copa\n  dataset_uri: sense/copa.jsonl\n  num_fewshot: [0]\n  \
         icl_task_type: multiple_choice\n-\n  label: jeopardy\n  dataset_uri: world/jeopardy.jsonl\n  \
         num_fewshot:\n  - 10\n  icl_task_type: language_modeling\n  \
         continuation_delimiter: \"\\nAnswer: \"\n  has_categories: true\n",
    );
    put(
        dir,
        "bundle/eval_meta_data.csv",
        "Eval Task,Task Category,Random baseline,Description\ncopa,\"sense, common\",50,\"x \"\"y\"\"\"\n\
         jeopardy,world,0,z\n",
    );
    put(
        dir,
        "plain/core_tasks.tsv",
        "label\tfile\ticl_task_type\tnum_fewshot\tcontinuation_delimiter\trandom_baseline_percent\tx\n\
         copa\tsense/copa.jsonl\tmultiple_choice\t0\t\" \"\t50\tok\n\
         jeopardy\tworld/jeopardy.jsonl\tlanguage_modeling\t10\t\"\\nAnswer: \"\t0\tok\n",
    );
    for root in ["bundle/eval_data", "plain"] {
        put(
            dir,
            &format!("{root}/sense/copa.jsonl"),
            "{\"query\":\"q\",\"choices\":[\"a\",\"b\"],\"gold\":1}\n",
        );
    }
}

#[test]
fn both_layouts_of_core_give_the_same_tasks() {
    let dir = tempfile::tempdir().expect("a folder");
    core_folders(dir.path());
    let bundle = core::open(&dir.path().join("bundle")).expect("tasks");
    let plain = core::open(&dir.path().join("plain")).expect("tasks");
    assert_eq!(bundle.len(), 2);
    for (a, b) in bundle.iter().zip(&plain) {
        assert_eq!((&a.label, a.kind, a.shots), (&b.label, b.kind, b.shots));
        assert_eq!((&a.delimiter, a.baseline_percent), (&b.delimiter, b.baseline_percent));
    }
    assert_eq!((bundle[1].delimiter.as_str(), bundle[1].shots), ("\nAnswer: ", 10));
    assert_eq!(bundle[0].items(None).expect("items"), plain[0].items(None).expect("items"));
    assert!((core::centered(0.75, 50.0) - 0.5).abs() < 1e-12);
    assert_eq!((core::centered(0.62, 62.0), core::centered(1.0, 9.1)), (0.0, 1.0));
}

#[test]
fn what_is_missing_or_broken_is_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let data = DataDir::new(dir.path());
    let gone = entry("GSM8K").expect("a task").load(&data, Which::Test).expect_err("no file");
    for part in ["gsm8k/test.jsonl", "grade-school-math", "NANOCHAT_DATA_DIR"] {
        assert!(gone.to_string().contains(part), "{gone}");
    }
    let gone = core::open(dir.path()).expect_err("no table").to_string();
    assert!(gone.contains("core.yaml") && gone.contains("eval_bundle.zip"), "{gone}");
    let unknown = entry("GSM9K").err().expect("no task").to_string();
    assert!(CHAT_CORE.iter().all(|name| unknown.contains(name)), "{unknown}");

    put(dir.path(), "gsm8k/test.jsonl", r#"{"question":"q","answer":"no number"}"#);
    let bad = entry("GSM8K").expect("a task").load(&data, Which::Test).expect_err("no number");
    assert!(bad.to_string().contains("test.jsonl, record 0: the answer does not end"), "{bad}");

    core_folders(dir.path());
    put(
        dir.path(),
        "bundle/eval_data/sense/copa.jsonl",
        r#"{"query":"q","choices":["a"],"gold":1}"#,
    );
    let task = &core::open(&dir.path().join("bundle")).expect("tasks")[0];
    let bad = task.items(None).expect_err("no such choice").to_string();
    assert!(bad.contains("copa.jsonl, record 0: gold is none of the 1"), "{bad}");
    for (table, why) in [
        ("icl_tasks:\n- label: copa\n", "without dataset_uri"),
        ("icl_tasks: [\n", "core.yaml"),
        ("x: 1\n", "no list icl_tasks"),
    ] {
        put(dir.path(), "bundle/core.yaml", table);
        let bad = core::open(&dir.path().join("bundle")).expect_err(table).to_string();
        assert!(bad.contains(why), "{bad}");
    }
}

#[test]
fn the_real_sets_have_their_published_sizes() {
    let Some(root) = std::env::var_os("NANOCHAT_DATA_DIR") else {
        println!("skipped: NANOCHAT_DATA_DIR names no folder with the real sets");
        return;
    };
    let data = DataDir::new(root);
    for (name, n) in [
        ("ARC-Easy", 2376),
        ("ARC-Challenge", 1172),
        ("MMLU", 14042),
        ("GSM8K", 1319),
        ("HumanEval", 164),
        ("SpellingBee", 256),
    ] {
        let task = entry(name).expect("a task").load(&data, Which::Test).expect("questions");
        assert_eq!(task.questions.len(), n, "{name}");
    }
    let tasks = core::open(data.root()).expect("tasks");
    assert_eq!(tasks.len(), core::TASKS);
    for task in tasks.iter().filter(|t| t.file.is_file() && t.label != "hellaswag") {
        assert!(task.items(Some(5)).expect("items").len() == 5, "{}", task.label);
    }
}
