//! The same run on several ranks.

use crate::lab::{Lab, same_end, same_step, text_of};

const STEPS: u64 = 12;

/// As [`Lab::line`] with steps of eight rows of 32 in four micro batches, so that 4 ranks have one each.
pub fn line(run: &str, steps: u64, more: &str) -> String {
    let line = Lab::line(run, steps, more);
    line.replace(
        "--device-batch-size 1 --total-batch-size 64",
        "--device-batch-size 2 --total-batch-size 256",
    )
}

/// Under `launch` with this many ranks.
pub fn launched(n: usize, line: &str) -> String {
    format!("launch --nproc {n} -- {line}")
}

pub fn run_well(lab: &Lab, line: &str) {
    let done = lab.program(line).output().expect("the program starts");
    assert!(done.status.success(), "{line}\n{}", text_of(&done));
}

#[test]
fn one_two_and_four_ranks_end_in_the_same_bits_and_go_on_with_fewer() {
    let lab = Lab::new();
    let save = "--save-every 4 --same-bits";
    run_well(&lab, &line("one", STEPS, save));
    for n in [2, 4] {
        let run = format!("ranks{n}");
        run_well(&lab, &launched(n, &line(&run, STEPS, save)));
        same_end(&lab, "one", &run, STEPS);
    }
    // 4 ranks up to step 4, 2 up to 8, then one: later checkpoints are taken away, as a crash would.
    for (n, upto) in [(4, 4), (2, 8), (1, 12)] {
        let whole = line("fewer", STEPS, &format!("{save} --resume"));
        run_well(&lab, &if n == 1 { whole } else { launched(n, &whole) });
        for step in [8, 12].into_iter().filter(|step| *step > upto) {
            let dir = lab.steps_dir("fewer").join(format!("step-{step:06}"));
            std::fs::remove_dir_all(dir).expect("a step");
        }
    }
    let step = |run: &str| lab.steps_dir(run).join(format!("step-{STEPS:06}"));
    same_step(&step("one"), &step("fewer"));
    let losses = |run: &str| -> Vec<_> {
        lab.rows(run, "step").iter().map(|row| (row["step"].clone(), row["loss"].clone())).collect()
    };
    assert_eq!(losses("one"), losses("fewer"));
}

#[test]
fn losses_agree_without_the_same_bits_and_the_batch_is_agreed_on() {
    let lab = Lab::new();
    run_well(&lab, &line("one", STEPS, ""));
    run_well(&lab, &launched(4, &line("four", STEPS, "")));
    let losses = |run: &str| -> Vec<f64> {
        lab.rows(run, "step").iter().map(|row| row["loss"].as_f64().expect("a number")).collect()
    };
    let (one, four) = (losses("one"), losses("four"));
    assert_eq!(one.len(), STEPS as usize);
    for (a, b) in one.iter().zip(&four) {
        // 1e-5 nats: sums of f32 in another order, through 12 steps.
        assert!((a - b).abs() < 1e-5, "{one:?} {four:?}");
    }
    // Rank 0 chooses B for all of them.
    let auto = line("auto", 2, "").replace("--device-batch-size 2", "--no-batch-size-cache");
    let done = lab.program(&launched(2, &auto)).output().expect("the program starts");
    let said = text_of(&done);
    assert!(done.status.success(), "{said}");
    assert_eq!(said.matches("batch size | ").count(), 1, "{said}");
}

#[test]
fn finetuning_on_two_ranks_ends_in_the_same_bits() {
    let lab = Lab::new();
    let talk = |i: usize| {
        format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"{i}+1\"}},\
             {{\"role\":\"assistant\",\"content\":\"{}\"}}]}}\n",
            i + 1
        )
    };
    let talks: String = (0..200).map(talk).collect();
    std::fs::write(lab.at("talks.jsonl"), talks).expect("conversations");
    let sft = |run: &str| {
        format!(
            "train sft --run {run} --data talks.jsonl --device-batch-size 2 --total-batch-size 256 \
             --num-iterations 6 --eval-every 0 --eval-tokens 64 --threads 1 --device cpu --same-bits"
        )
    };
    for (n, run) in [(1, "one"), (2, "two")] {
        run_well(&lab, &line(run, 4, "--same-bits"));
        run_well(&lab, &if n == 1 { sft(run) } else { launched(n, &sft(run)) });
    }
    let step = |run: &str| lab.at(run).join("sft").join("step-000006");
    same_step(&step("one"), &step("two"));
}
