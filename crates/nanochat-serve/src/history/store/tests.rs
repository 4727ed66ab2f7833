//! Conversations survive what happens to files and programs.

use super::*;

fn document(id: &str, title: &str, updated: &str, text: &str) -> Value {
    json!({
        "id": id, "title": title, "updated": updated, "created": updated, "head": "n",
        "nodes": [
            {"id": "m", "parent": null, "role": "user", "parts": [{"type": "text", "text": text}]},
            {"id": "n", "parent": "m", "role": "assistant", "parts": [
                {"type": "tool_call", "text": "1+1"}, {"type": "text", "text": "two"}]},
        ],
    })
}

fn ids(list: &Value) -> Vec<&str> {
    list["conversations"].as_array().unwrap().iter().map(|c| c["id"].as_str().unwrap()).collect()
}

#[test]
fn the_second_writer_hears_of_the_first() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("h.sqlite")).unwrap();
    let doc = || document("a", "A", "2026-01-01T00:00:00Z", "hello");
    assert_eq!(store.put("a", doc(), Expected::Rev(1)).unwrap(), Put::Other(None));
    assert_eq!(store.put("a", doc(), Expected::None).unwrap(), Put::Kept { rev: 1 });
    assert_eq!(store.put("a", doc(), Expected::Rev(1)).unwrap(), Put::Kept { rev: 2 });
    let Put::Other(Some(current)) = store.put("a", doc(), Expected::Rev(1)).unwrap() else {
        panic!("the old revision was overwritten");
    };
    assert_eq!(current["rev"], 2);
    assert!(matches!(store.put("a", doc(), Expected::None).unwrap(), Put::Other(Some(_))));
    assert_eq!(store.rename("a", "B").unwrap(), Some(3));
    assert_eq!(store.get("a").unwrap().unwrap()["title"], "B");
    assert_eq!(store.rename("zzz", "B").unwrap(), None);
}

#[test]
fn the_list_is_newest_first_in_pages_and_is_searched_by_any_part_of_a_word() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("h.sqlite")).unwrap();
    for (id, day, text) in
        [("a", 1, "Elephants"), ("b", 2, "ele\"vators OR"), ("c", 3, "日本語のテスト")]
    {
        let updated = format!("2026-01-0{day}T00:00:00Z");
        store.put(id, document(id, "T", &updated, text), Expected::None).unwrap();
    }
    let first = store.list(None, 2, None).unwrap();
    assert_eq!((ids(&first), &first["more"]), (vec!["c", "b"], &json!(true)));
    let rest = store.list(None, 2, Some("2026-01-02T00:00:00Z")).unwrap();
    assert_eq!((ids(&rest), &rest["more"]), (vec!["a"], &json!(false)));
    for (q, found) in [
        ("PHANT", vec!["a"]),
        ("ele\"v", vec!["b"]),
        ("el", vec!["b", "a"]),
        ("本語", vec!["c"]),
        ("のテス", vec!["c"]),
        ("vators OR", vec!["b"]),
        ("xyz*", vec![]),
        ("1+1", vec![]),
    ] {
        assert_eq!(ids(&store.list(Some(q), 10, None).unwrap()), found, "{q}");
    }
    store.delete("a").unwrap();
    store.delete("a").unwrap();
    assert!(ids(&store.list(Some("phant"), 10, None).unwrap()).is_empty());
}

/// What a killed process leaves: the files as they are, nothing closed.
fn after_a_kill(file: &Path, to: &Path) {
    for end in ["", "-wal"] {
        let from = format!("{}{end}", file.display());
        if Path::new(&from).exists() {
            std::fs::copy(&from, format!("{}{end}", to.display())).unwrap();
        }
    }
}

#[test]
fn what_was_answered_survives_a_kill_at_any_moment() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("h.sqlite");
    let store = Store::open(&file).unwrap();
    for i in 0..20 {
        let id = format!("c{i}");
        let doc = document(&id, "T", "2026-01-01T00:00:00Z", &"word ".repeat(i * 40));
        store.put(&id, doc, Expected::None).unwrap();
        let copy = dir.path().join(format!("copy{i}"));
        after_a_kill(&file, &copy);
        let again = Store::open(&copy).unwrap();
        assert_eq!(ids(&again.list(None, 100, None).unwrap()).len(), i + 1);
        assert!(again.get(&id).unwrap().is_some());
    }
}

#[test]
fn a_torn_log_loses_the_torn_commit_and_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("h.sqlite");
    let store = Store::open(&file).unwrap();
    let mut ends = Vec::new();
    for i in 0..6 {
        let id = format!("c{i}");
        let doc = document(&id, "T", "2026-01-01T00:00:00Z", "text");
        store.put(&id, doc, Expected::None).unwrap();
        ends.push(std::fs::metadata(format!("{}-wal", file.display())).unwrap().len());
    }
    for (i, end) in ends.iter().enumerate() {
        let copy = dir.path().join(format!("torn{i}"));
        after_a_kill(&file, &copy);
        let wal = std::fs::OpenOptions::new().write(true).open(format!("{}-wal", copy.display()));
        wal.unwrap().set_len(end - 100).unwrap();
        let list = Store::open(&copy).unwrap().list(None, 100, None).unwrap();
        assert_eq!(ids(&list).len(), i, "the log ends inside of commit {i}");
    }
}

#[test]
fn a_damaged_file_is_moved_aside_and_kept() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("h.sqlite");
    std::fs::write(&file, "this is no database, but it may be dear to somebody".repeat(100))
        .unwrap();
    let store = Store::open(&file).unwrap();
    assert!(ids(&store.list(None, 10, None).unwrap()).is_empty());
    let kept = std::fs::read_to_string(dir.path().join("h.sqlite.damaged-1")).unwrap();
    assert!(kept.starts_with("this is no database"));
}

#[test]
fn a_newer_programs_file_is_left_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("h.sqlite");
    drop(Store::open(&file).unwrap());
    Connection::open(&file).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = Store::open(&file).err().unwrap().to_string();
    assert!(error.contains("version 99"), "{error}");
}

#[cfg(unix)]
#[test]
fn others_on_this_machine_cannot_read_it() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("new").join("h.sqlite");
    let _store = Store::open(&file).unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
}
