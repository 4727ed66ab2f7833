//! What `deploy/` and `runs/speedrun_4gpu.sh` would start, by their dry runs: every command line parses.

use std::path::Path;
use std::process::Command;

use crate::lab::{Lab, text_of};

fn file(name: &str) -> String {
    format!("{}/../../{name}", env!("CARGO_MANIFEST_DIR"))
}

/// The lines that a script prints in its dry run.
fn dry(script: &str) -> Vec<String> {
    let done = Command::new("bash").arg(file(script)).env("DRY_RUN", "1").output();
    let done = done.expect("a shell");
    assert!(done.status.success(), "{}", text_of(&done));
    text_of(&done).lines().map(str::to_owned).collect()
}

/// The program takes the flags: it goes as far as the environment, which has a rank that cannot be.
fn parses(lab: &Lab, words: &str) {
    let mut command = lab.program(words);
    let end = command.env("RANK", "4").env("WORLD_SIZE", "4").output().expect("the program starts");
    let said = text_of(&end);
    assert_eq!(end.status.code(), Some(1), "{words}\n{said}");
    assert!(said.contains("RANK=4 is outside of WORLD_SIZE=4"), "{words}\n{said}");
}

#[test]
fn the_script_for_four_gpus_starts_both_stages_on_four_ranks() {
    let lab = Lab::new();
    let lines = dry("runs/speedrun_4gpu.sh");
    let launched: Vec<_> = lines.iter().filter_map(|line| line.split_once(" -- ")).collect();
    assert_eq!(launched.len(), 2, "{lines:?}");
    for ((launch, command), stage) in launched.into_iter().zip(["base", "sft"]) {
        assert!(launch.starts_with("nanochat launch --nproc 4 --device cuda"), "{launch}");
        assert!(command.starts_with(&format!("train {stage} ")), "{command}");
        parses(&lab, command);
    }
}

#[test]
fn the_slurm_job_starts_one_rank_a_task() {
    let lab = Lab::new();
    let lines = dry("deploy/slurm.sh");
    let place = lines.iter().find(|line| line.starts_with("rank 0 at ")).expect("a place");
    assert!(place.ends_with(":20001"), "{place}");
    let srun = lines.iter().find(|line| line.starts_with("srun ")).expect("a step");
    let (_, command) = srun.split_once(" nanochat ").expect("the program");
    parses(&lab, command);
}

#[test]
fn the_kubernetes_job_starts_as_many_ranks_as_it_has_pods() {
    let lab = Lab::new();
    let text = std::fs::read_to_string(Path::new(&file("deploy/kubernetes.yaml"))).expect("a file");
    let (_, command) = text.split_once("exec nanochat ").expect("the program");
    let command: Vec<&str> = command.lines().take(2).map(str::trim).collect();
    parses(&lab, &command.join(" "));
    for pods in ["completions: 4", "parallelism: 4", "name: WORLD_SIZE\n              value: \"4\""]
    {
        assert!(text.contains(pods), "{pods}");
    }
    assert!(text.contains("value: nanochat-0.nanochat") && text.contains("subdomain: nanochat"));
}
