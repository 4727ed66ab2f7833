//! Logs of three dialects, and what is none.

use super::line::{leading, rate, seconds};
use super::*;

fn read(log: &str) -> Summary {
    parse(log.as_bytes()).expect("a slice is readable")
}

const OURS: &str = "base | cpu avx2 f32, 2 threads | B 8 x T 64 x 2 = 1024 tokens a step\n\
    auto-batch-size {\"batch_size\":8,\"accumulation\":2,\"predicted_bytes\":100,\"limit_bytes\":262144000,\"discovery_s\":1.25,\"cached\":false}\n\
    Found optimal batch_size=8 in 1.2 seconds\n\
    step 1 | loss 9.0000 | tokens/sec: 100000 | 0.0% of 2520 | lrm 0.50 | dt 500ms | epoch 1 | eta 17.0m\n\
    \r\x1b[2Kstep 100 | loss 3.4560 | tokens/sec: 125000 | 3.9% of 2520 | lrm 1.00 | dt 412ms | epoch 1 | eta 17.0m\r\x1b[2K\
    step 101 | loss 3.4000 | tokens/sec: 124000\nStep 00101 | Validation bpb: 1.234567\n\
    checkpoint /x/step 7\nsample | the capital: 12 tok/s\nTotal training time: 15.00m\n\
    sft | cpu avx2 f32, 2 threads | B 8 x T 64 x 2 | from x\nCache hit! Using cached batch_size: 16\n\
    step 1 | loss 2.0 | tokens/sec: 90000 | dt 300ms\nStep 00001 | Validation bpb: 0.9\nTotal training time: 2.00m\n\
    (23 tokens, 412 tokens/sec)\ndecode 2244 tokens/sec\n\
    Peak memory usage: 125.00MiB\nTotal wall clock time: 0h 17m\n";

#[test]
fn our_lines() {
    let s = read(OURS);
    assert_eq!((s.steps, s.stages.len()), (4, 2));
    let base = &s.stages[0];
    assert_eq!((base.first_step, base.last_step, base.of), (1, 101, Some(2520)));
    assert_eq!((base.first_loss, base.final_loss), (Some(9.0), Some(3.4)));
    assert_eq!((base.tokens_per_sec, base.dt_ms), (Some(124_000.0), Some(500.0)));
    assert_eq!((s.final_loss, s.val_bpb, base.val_bpb), (Some(2.0), Some(0.9), Some(1.234567)));
    // The table has the base model's.
    assert!(s.table().contains("| Validation bpb | 1.2346 |"), "{}", s.table());
    assert_eq!(s.wall_s, Some(1020.0));
    let names: Vec<_> = s.stages.iter().map(|s| s.name).collect();
    assert_eq!(names, [Some("base"), Some("sft")]);
    assert_eq!((s.base_tokens_per_sec, s.sft_step_ms), (Some(124_000.0), Some(300.0)));
    assert_eq!((s.training_s, s.decode_tokens_per_sec), (Some(1020.0), Some(2244.0)));
    let size = base.batch_size.as_ref().expect("the log tells it");
    assert_eq!((size.batch_size, size.source, size.accumulation), (Some(8.0), "found", Some(2.0)));
    assert_eq!((size.discovery_s, size.limit_bytes), (Some(1.25), Some(262_144_000.0)));
    assert_eq!(s.stages[1].batch_size.as_ref().map(|b| b.source), Some("cached"));
    // The cached size came without a limit: pretraining's stands.
    assert_eq!((s.peak_memory_mib, s.memory_utilization), (Some(125.0), Some(0.5)));
}

#[test]
fn upstream_lines() {
    let s = read(
        "step 00100/02520 (3.97%) | loss: 3.456789 | lrm: 1.00 | dt: 412.34ms | tok/sec: 1,271,512 | bf16_mfu: 45.12 | epoch: 1 pq: 3 rg: 120 | total time: 0.62m | eta: 17.0m\n\
         Step 00250 | Validation bpb: 0.912345\nStep 00500 | Validation bpb: 0.952345\n\
         Step 02000 | CORE metric: 0.1912\nStep 00200 | ChatCORE: 0.1234 | ChatCORE_cat: 0.1500\n\
         step 00200/21400 (0.47%) | loss: 2.5 | grad norm: 0.3112 | lrm: 1.00 | dt: 400.00ms | tok/sec: 125,000 | mfu: 40.00 | total time: 0.6m\n\
         step 00201 (0.50%) | loss: nan | lrm: 1.00 | dt: 1.00ms | tok/sec: 125,000 | mfu: 41.00\n\
         Step 00010/00700 | Training loss: 1.234567| lrm: 1.000000| num_tokens: 12,345\n\
         Peak memory usage: 12345.67MiB\nTotal training time: 99.12m\n\
         Minimum validation bpb: 0.718000\n- Total wall clock time: 3h51m\n",
    );
    assert_eq!((s.steps, s.stages.len()), (4, 2));
    let base = &s.stages[0];
    assert_eq!((base.of, base.not_finite, base.mfu), (Some(21_400), 1, Some(41.0)));
    assert_eq!((base.first_loss, base.final_loss), (Some(3.456789), Some(2.5)));
    assert_eq!(base.tokens_per_sec, Some(125_000.0));
    assert_eq!((s.stages[1].of, s.final_loss), (Some(700), Some(1.234567)));
    assert_eq!((s.stages[1].name, s.sft_step_ms), (Some("sft"), None));
    assert_eq!((s.val_bpb, s.min_val_bpb), (Some(0.952345), Some(0.718)));
    assert_eq!((s.evals["core metric"], s.evals["chatcore_cat"]), (0.1912, 0.15));
    assert_eq!((s.training_s, s.wall_s), (Some(99.12 * 60.0), Some(13_860.0)));
    assert_eq!(s.peak_memory_mib, Some(12_345.67));
    // One of two stages tells its time: the wall clock is the better total.
    assert!(s.table().contains("| Total training time | 3h 51m (wall clock) |"));
}

/// The lines that the benchmark document tells to look for.
#[test]
fn the_benchmarks_lines_fill_its_table() {
    let s = read(
        "torchrun -m scripts.base_train -- --depth=20\nFound optimal batch_size=93 in 20.5 seconds\n\
         step 100 | loss 3.456 | tokens/sec: 125000\nstep 200 | loss 3.2 | tokens/sec: 127000\n\
         torchrun -m scripts.chat_sft\nUsing manual batch_size override: 4\n\
         step 200 | loss 1.5 | step time: 1.25s\nstep 201 | loss 1.4 | step time: 1250 ms\n\
         Baseline (no KV-cache): 15 tok/s\nSpeed: 100.8 tokens/second\n\
         Peak memory usage: 123.45MiB\nTotal wall clock time: 6h 30m\n",
    );
    assert_eq!(
        s.table(),
        "| Metric | Value |\n|---|---|\n\
         | Total training time | 6h 30m (wall clock) |\n\
         | Total wall clock time | 6h 30m |\n\
         | Base training tokens/sec | 127,000 |\n\
         | SFT training step time | 1.2 s |\n\
         | Final inference speed | 101 tokens/sec |\n\
         | Memory utilization | not measured |\n\
         | Peak memory | 123 MiB |\n\
         | Batch size | base: 93 rows, found in 20 s; sft: 4 rows, given |\n\
         | Validation bpb | not measured |\n"
    );
    // A name begins a stage where the steps alone do not.
    assert_eq!(s.stages.len(), 2);
    let average =
        read("step 1 | loss 2\n[VALIDATION] Avg time/step: 2.450s | Tokens/sec: 3265.3\n");
    assert_eq!((average.stages[0].dt_ms, average.decode_tokens_per_sec), (Some(2450.0), None));
}

#[test]
fn memory_is_a_share_of_the_limit() {
    let s = read(
        "x auto-batch-size {\"batch_size\":8,\"limit_bytes\":262144000,\"cached\":true} y\n\
         Peak memory usage: 125.00MiB\nPeak memory usage: 50.00MiB\n",
    );
    assert_eq!(s.memory_utilization, Some(0.5));
    assert!(s.table().contains("| Memory utilization | 50 % |"), "{}", s.table());
    assert!(s.table().contains("| Batch size | 8 rows, from the cache |"), "{}", s.table());
}

#[test]
fn an_empty_log_is_not_measured() {
    let s = read("");
    assert_eq!(s.table().matches("not measured").count(), s.rows().len());
}

#[test]
fn noise_is_not_a_step() {
    let s = read("step by step | loss of words\nTotal wall clock time: unknown\n\u{0}\u{1b}[\n");
    assert_eq!((s.steps, s.wall_s), (0, None));
    assert_eq!((leading("x"), leading("1e-3"), leading("12.5,")), (None, Some(1e-3), Some(12.5)));
    assert_eq!((seconds("20.5 seconds"), seconds("1h 2m 3s")), (Some(20.5), Some(3723.0)));
    assert_eq!((rate("12 tok/s"), rate("(~9,056 tok/sec)")), (Some(12.0), Some(9056.0)));
    assert_eq!((rate("tokens/second: 100.8"), rate("no tok/s here")), (Some(100.8), None));
}

#[test]
fn a_resume_is_not_a_stage() {
    let s = read("step 900 | loss 2\nstep 1000 | loss 2\nstep 951 | loss 2\nstep 1001 | loss 1\n");
    assert_eq!((s.stages.len(), s.stages[0].last_step, s.steps), (1, 1001, 4));
}

/// Any bytes: a log with characters replaced, cut and doubled by a generator with fixed seeds.
#[test]
fn no_input_is_a_panic() {
    let marks = "{}[]:=|/%,.\u{1b}\r\n\u{0}é∞-+e9";
    let marks: Vec<char> = marks.chars().collect();
    for seed in 0..500u64 {
        let mut state = seed * 2 + 1;
        let mut draw = |n: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040);
            (state >> 33) as usize % n
        };
        let mut text: Vec<char> = OURS.chars().collect();
        for _ in 0..1 + draw(60) {
            let at = draw(text.len());
            match draw(3) {
                0 => text[at] = marks[draw(marks.len())],
                1 => drop(text.drain(at..(at + draw(9)).min(text.len()))),
                _ => text.insert(at, marks[draw(marks.len())]),
            }
        }
        let mut bytes = text.into_iter().collect::<String>().into_bytes();
        let at = draw(bytes.len());
        bytes[at] = 0xff;
        let s = parse(&bytes[..]).expect("a slice is readable");
        assert!(!s.text().is_empty() && s.table().lines().count() == 11);
        serde_json::to_string(&s).expect("it is plain data");
    }
    for line in
        ["auto-batch-size {\"batch_size\":1e999}", "tokens/s", "batch_size", "step 1 | loss"]
    {
        read(line).table();
    }
}
