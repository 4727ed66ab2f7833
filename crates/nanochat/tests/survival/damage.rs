//! A checkpoint that is not what was written is found before it is used, by the name of its file.

use std::fs;
use std::path::Path;

use nanochat_gpt::checkpoint;

use crate::lab::{Draws, Lab, at_most, text_of};

const FILES: [&str; 5] =
    ["model.safetensors", "optimizer.safetensors", "loader.bin", "meta.json", "manifest.json"];

/// A run with steps 2 and 4.
fn run() -> Lab {
    let lab = Lab::new();
    lab.train_well("run", 4, "--save-every 2");
    lab
}

/// Step 4 is refused by the name of one of `files`, and step 2 is taken.
fn falls_back(lab: &Lab, files: &[&str], what: &str) {
    let (step, refused) = checkpoint::latest(&lab.steps_dir("run")).expect("step 2 is whole");
    assert!(step.ends_with("step-000002"), "{what}: {}", step.display());
    let said = refused.first().map(ToString::to_string).unwrap_or_default();
    assert!(files.iter().any(|f| said.contains(f)), "{what}: {said}");
}

#[test]
fn any_flipped_bit_is_found_before_use() {
    let lab = run();
    let newest = lab.steps_dir("run").join("step-000004");
    let good: Vec<Vec<u8>> =
        FILES.iter().map(|f| fs::read(newest.join(f)).expect("a file")).collect();
    let total: usize = good.iter().map(Vec::len).sum();
    let mut draws = Draws(3);
    for n in 0..at_most(50, 1000) {
        // Half of them anywhere, half in the small files too.
        let mut at = draws.below(total);
        let mut which = 0;
        if n % 2 == 0 {
            which = draws.below(FILES.len());
            at = draws.below(good[which].len());
        } else {
            while at >= good[which].len() {
                at -= good[which].len();
                which += 1;
            }
        }
        let mut bad = good[which].clone();
        bad[at] ^= 1 << draws.below(8);
        // White space of the manifest that is other white space says the same.
        let same = FILES[which] == "manifest.json"
            && serde_json::from_slice::<serde_json::Value>(&bad).ok()
                == serde_json::from_slice::<serde_json::Value>(&good[which]).ok();
        if same {
            continue;
        }
        let file = newest.join(FILES[which]);
        fs::write(&file, bad).expect("a writable folder");
        // A manifest that lists another name accuses that name.
        let accused = [FILES[which], "manifest.json"];
        falls_back(&lab, &accused, &format!("byte {at} of {}", FILES[which]));
        fs::write(&file, &good[which]).expect("a writable folder");
    }
    checkpoint::verify(&newest).expect("all is as it was");
}

#[test]
fn files_cut_zeroed_deleted_or_swapped_are_found_and_the_step_before_is_taken() {
    let lab = run();
    let (older, newest) =
        (lab.steps_dir("run").join("step-000002"), lab.steps_dir("run").join("step-000004"));
    let read = |step: &Path, name: &str| fs::read(step.join(name)).expect("a file");
    for name in FILES {
        let (file, good) = (newest.join(name), read(&newest, name));
        let cut = good[..good.len() / 2].to_vec();
        let changes = [("cut", cut), ("empty", vec![]), ("zeroed", vec![0; good.len()])];
        for (what, bad) in changes {
            fs::write(&file, bad).expect("a writable folder");
            falls_back(&lab, &[name], &format!("{name} {what}"));
        }
        fs::remove_file(&file).expect("a file");
        falls_back(&lab, &[name], &format!("{name} deleted"));
        // The same file of another step: no step is ever mixed.
        fs::write(&file, read(&older, name)).expect("a writable folder");
        let accused: &[&str] = if name == "manifest.json" { &FILES } else { &[name] };
        falls_back(&lab, accused, &format!("{name} of step 2"));
        fs::write(&file, &good).expect("a writable folder");
    }
    // Two files of one step in each other's place.
    let (a, b) = (newest.join(FILES[0]), newest.join(FILES[1]));
    let aside = newest.join("aside");
    let swap = || {
        fs::rename(&a, &aside)
            .and_then(|()| fs::rename(&b, &a))
            .and_then(|()| fs::rename(&aside, &b))
    };
    swap().expect("a writable folder");
    falls_back(&lab, &[FILES[0], FILES[1]], "swapped");
    swap().expect("a writable folder");
    checkpoint::verify(&newest).expect("all is as it was");
}

#[test]
fn a_resume_says_what_it_refused_and_never_starts_again_in_silence() {
    let lab = run();
    let model = |step: &str| lab.steps_dir("run").join(step).join("model.safetensors");
    fs::write(model("step-000004"), "x").expect("a writable folder");
    let done = lab.train("run", 4, "--save-every 2 --resume");
    let said = text_of(&done);
    assert!(done.status.success(), "{said}");
    assert!(said.contains("warning: refused") && said.contains("step-000004"), "{said}");
    assert!(said.contains("resuming from") && said.contains("step-000002"), "{said}");
    // The damaged step was taken again, and the new one stands in its place.
    checkpoint::verify(&lab.steps_dir("run").join("step-000004")).expect("saved again");
    for step in ["step-000002", "step-000004"] {
        fs::write(model(step), "x").expect("a writable folder");
    }
    let done = lab.train("run", 4, "--save-every 2 --resume");
    assert_eq!(done.status.code(), Some(1), "{}", text_of(&done));
    assert!(text_of(&done).contains("no usable checkpoint"), "{}", text_of(&done));
}

#[test]
fn changed_data_is_refused_with_the_difference_and_forced_on_record() {
    let lab = run();
    let text: String = (0..6000).map(|i| format!("Not the same words, {i} times.\n\n")).collect();
    fs::write(lab.at("more.txt"), text).expect("a writable folder");
    let line = Lab::line("run", 6, "--save-every 2 --resume").replace("text.txt", "more.txt");
    let end = lab.program(&line).output().expect("the program starts");
    let said = text_of(&end);
    assert_eq!(end.status.code(), Some(1), "{said}");
    for part in ["num_iterations differs", "the data differs", "has 4", "this run 6", "--force"] {
        assert!(said.contains(part), "{said} lacks {part}");
    }
    let end = lab.program(&format!("{line} --force")).output().expect("the program starts");
    assert!(end.status.success(), "{}", text_of(&end));
    let record: serde_json::Value =
        serde_json::from_slice(&fs::read(lab.at("run/run.json")).expect("run.json")).expect("JSON");
    let forced = &record["forced"][0];
    assert_eq!((&forced["stage"], &forced["step"]), (&"base".into(), &4.into()));
    assert!(forced["differences"].as_array().is_some_and(|d| d.len() >= 2), "{forced}");
    assert_eq!(lab.rows("run", "forced").len(), 1);
    // The record outlives the next session.
    lab.program(&line).output().expect("the program starts");
    let text = fs::read_to_string(lab.at("run/run.json")).expect("run.json");
    assert!(text.contains("\"forced\""), "{text}");
}

#[test]
fn checkpoints_are_listed_verified_compared_and_thinned_out_with_exit_codes() {
    let lab = run();
    let line = |line: &str| {
        let done = lab.program(line).output().expect("the program starts");
        let out = String::from_utf8_lossy(&done.stdout).into_owned();
        let last = out.lines().last().and_then(|l| serde_json::from_str(l).ok());
        (done.status.code(), last.unwrap_or(serde_json::Value::Null))
    };
    let (code, rows) = line("checkpoint ls run --json");
    assert_eq!((code, rows["checkpoints"].as_array().map(Vec::len)), (Some(0), Some(2)));
    assert_eq!(line("checkpoint verify run --json").1["valid"], true);
    let (a, b) = ("run/base/step-000002", "run/base/step-000004");
    let (code, same) = line(&format!("checkpoint diff {a} {a} --json"));
    assert_eq!((code, &same["same"]), (Some(0), &true.into()));
    let (code, differ) = line(&format!("checkpoint diff {a} {b} --json"));
    assert_eq!((code, &differ["same"]), (Some(1), &false.into()));
    let tensors = differ["diff"]["tensors"].as_array().expect("a list");
    assert!(tensors.iter().any(|t| t["name"] == "lm_head.weight" && t["max"].is_number()));
    let (code, pruned) = line("checkpoint prune run --keep 1 --json");
    assert_eq!((code, pruned["removed"].as_array().map(Vec::len)), (Some(0), Some(1)));
    fs::write(lab.at(b).join("loader.bin"), "x").expect("a writable folder");
    let (code, rows) = line("checkpoint verify run --json");
    assert_eq!((code, &rows["valid"]), (Some(1), &false.into()));
    assert!(rows["checkpoints"][0]["error"].as_str().expect("words").contains("loader.bin"));
}
