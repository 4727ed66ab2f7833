//! Schedules and scaling laws against upstream's formulas in Python, from fixtures.

mod tiny;

use nanochat_gpt::nano::count::ParamCount;
use nanochat_train::Error;
use nanochat_train::recipe::{Ask, Recipe};
use nanochat_train::schedule::BaseSchedule;
use serde_json::Value;
use tiny::{floats, json};

/// The same formulas in the same f64: what is left is the last place of a cosine.
const TOLERANCE: f64 = 1e-12;

fn near(have: f64, want: &Value, what: &str) {
    let want = want.as_f64().expect("a number");
    assert!((have - want).abs() <= TOLERANCE * want.abs().max(1.0), "{what}: {have}, not {want}");
}

#[test]
fn schedules_equal_upstreams() {
    let all = json("recipe/schedules.json");
    let about = |name: &str| all["about"][name].as_f64().expect("a number");
    let mut compared = 0;
    for run in all["runs"].as_array().expect("runs") {
        let number = |name: &str| run[name].as_u64().expect("a count");
        let schedule = BaseSchedule {
            num_iterations: number("num_iterations"),
            warmup_steps: number("warmup"),
            warmdown_ratio: about("warmdown_ratio"),
            final_lr_frac: about("final_lr_frac"),
            weight_decay: about("weight_decay"),
            momentum_steps: 400,
        };
        for i in 0..floats(&run["lr_multiplier"]).len() {
            let step = i as u64 * number("stride");
            let rates = schedule.at(step);
            for (name, have) in [
                ("lr_multiplier", rates.lr_multiplier),
                ("muon_momentum", rates.muon_momentum),
                ("muon_weight_decay", rates.muon_weight_decay),
            ] {
                let n = schedule.num_iterations;
                near(have, &run[name][i], &format!("{name} of step {step} of {n}"));
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 3 * (1 + 5 + 20 + 30 + 100 + 500 + 275));
}

#[test]
fn scaling_laws_equal_upstreams_for_every_depth() {
    let all = json("recipe/schedules.json");
    let depths = all["scaling"].as_array().expect("a list");
    assert_eq!(depths.len(), 11);
    for want in depths {
        let depth = want["depth"].as_u64().expect("a depth") as usize;
        let recipe = Recipe::new(&Ask { depth, ..Ask::default() }).expect("upstream's sizes");
        let n = ParamCount::of(&recipe.config);
        for (name, have) in [
            ("n_embd", recipe.config.n_embd),
            ("n_head", recipe.config.n_head),
            ("scaling_params", n.scaling()),
            ("total_batch_size", recipe.total_batch_size),
            ("num_iterations", recipe.schedule.num_iterations as usize),
        ] {
            assert_eq!(Some(have as u64), want[name].as_u64(), "{name} of depth {depth}");
        }
        for (name, have) in n.rows() {
            assert_eq!(Some(have as u64), want["params"][name].as_u64(), "{name}, depth {depth}");
        }
        let target = 12 * n.scaling();
        assert_eq!(Some(target as u64), want["target_tokens"].as_u64(), "depth {depth}");
        for (name, have) in [
            ("batch_lr_scale", recipe.batch_lr_scale),
            ("weight_decay_scaled", recipe.schedule.weight_decay),
            ("flops_per_token", recipe.flops_per_token),
            ("total_flops", recipe.flops_per_token * recipe.tokens()),
        ] {
            near(have, &want[name], &format!("{name} of depth {depth}"));
        }
        let rows = recipe.device_batch_size * recipe.accumulation;
        assert_eq!(rows * recipe.config.sequence_len, recipe.total_batch_size, "depth {depth}");
        let scale = recipe.batch_lr_scale;
        assert_eq!(recipe.rates, recipe.unscaled_rates.scaled(scale), "depth {depth}");
    }
}

#[test]
fn smear_starts_at_zero_unless_asked() {
    let ask = Ask { depth: 4, ..Ask::default() };
    assert_eq!(Recipe::new(&ask).expect("sizes that fit").smear_init, 0.0);
    let ask = Ask { smear_init: 1.0, ..ask };
    assert_eq!(Recipe::new(&ask).expect("sizes that fit").smear_init, 1.0);
}

#[test]
fn the_steps_follow_flags_in_their_order() {
    let ask = Ask { depth: 12, ..Ask::default() };
    let steps = |ask: &Ask| Recipe::new(ask).expect("sizes that fit").schedule.num_iterations;
    assert_eq!(steps(&ask), 2520);
    let flops = Ask { target_flops: Some(1e18), ..ask.clone() };
    // 1e18 / (759,696,048 FLOPs a token x 524,288 tokens a step)
    assert_eq!(steps(&flops), 2511);
    assert_eq!(steps(&Ask { num_iterations: Some(7), ..flops }), 7);
    assert_eq!(steps(&Ask { target_param_data_ratio: 24.0, ..ask }), 2 * 2520);
}

#[test]
fn a_batch_that_rows_do_not_fill_names_the_flag() {
    let refused = |ask: Ask, parts: &[&str]| {
        let error = Recipe::new(&ask).expect_err("values that do not fit");
        assert!(matches!(error, Error::Recipe { what: "--total-batch-size", .. }), "{error:?}");
        let message = error.to_string();
        assert!(parts.iter().all(|p| message.contains(p)), "{message} lacks one of {parts:?}");
    };
    let ask = |b: usize| Ask { depth: 4, total_batch_size: Some(b), ..Ask::default() };
    refused(ask(5000), &["5000 tokens", "rows of T x ranks = 2048"]);
    refused(ask(0), &["0 tokens"]);
    let world = Ask { world: 3, ..ask(4096) };
    refused(world, &["4096 tokens", "T x ranks = 6144"]);
    let device = |b: usize| Ask { device_batch_size: Some(b), ..ask(12 * 2048) };
    refused(device(5), &["12 rows", "--device-batch-size 5", "[1, 2, 3, 4, 6, 12]"]);
    refused(device(24), &["--device-batch-size 24", "[1, 2, 3, 4, 6, 12]"]);
    refused(device(0), &["--device-batch-size 0", "[1, 2, 3, 4, 6, 12]"]);
    refused(Ask { num_iterations: Some(0), ..ask(4096) }, &["0 steps"]);
    refused(Ask { target_flops: Some(1.0), ..ask(4096) }, &["0 steps"]);
    refused(Ask { target_flops: Some(f64::NAN), ..ask(4096) }, &["0 steps"]);
}

#[test]
fn micro_batches_fill_the_batch() {
    for rows in 1..200usize {
        let total = rows * 2048;
        let ask = Ask { depth: 4, total_batch_size: Some(total), ..Ask::default() };
        let recipe = Recipe::new(&ask).expect("a multiple of T");
        let (b, n) = (recipe.device_batch_size, recipe.accumulation);
        assert!(b * n == rows && b <= 32, "{rows} rows: {b} x {n}");
        assert!((b + 1..=32).all(|b| !rows.is_multiple_of(b)), "{rows} rows: {b} is not largest");
    }
}

#[test]
fn sizes_that_do_not_fit_name_the_field() {
    for (ask, field) in [
        (Ask { depth: 0, ..Ask::default() }, "n_layer"),
        (Ask { head_dim: 0, ..Ask::default() }, "head_dim"),
        (Ask { max_seq_len: 0, ..Ask::default() }, "sequence_len"),
        (Ask { window_pattern: "SX".into(), ..Ask::default() }, "window_pattern"),
        (Ask { vocab_size: 0, ..Ask::default() }, "vocab_size"),
    ] {
        let message = Recipe::new(&ask).expect_err("sizes that do not fit").to_string();
        assert!(message.contains(field), "{message} does not name {field}");
    }
}
