//! A checkpoint needs no memory of its own beside the model. One test a process: it reads the peak.

mod tiny;

use std::fs;

use nanochat_compute::reference::Reference;
use nanochat_gpt::checkpoint::{self, Content, Extra};
use nanochat_gpt::weights::{self, Reader};
use nanochat_gpt::{Generation, GptConfig, Nano, RawConfig};
use tiny::{dir, meta};

/// Bytes of a field of `/proc/self/status`.
fn status(field: &str) -> Option<usize> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<usize>().ok()? * 1024)
}

/// Saves, verifies, reads the moments, opens the model; tells `after` each and the bytes that are
/// kept from it.
fn all_ways(model: &Nano, moments: &Nano, mut after: impl FnMut(&str, usize)) {
    let dir = dir();
    let named = |m: &Nano| weights::named(m.table(), m.params());
    let content = Content::Tensors(named(moments));
    let extras = vec![Extra { name: "optimizer.safetensors", content }];
    let at = checkpoint::save(dir.path(), model, &meta(model, 1), extras).expect("a folder");
    after("save", 0);
    checkpoint::verify(&at).expect("a valid step");
    after("verify", 0);
    let file = Reader::open(&at.join("optimizer.safetensors")).expect("a file of the step");
    for t in named(moments) {
        file.read(&t.name, &t.data).expect("its own tensor");
    }
    after("restore", 0);
    let (loaded, _) = checkpoint::load(&Reference, &at).expect("a valid step");
    after("load", loaded.params().bytes());
}

#[test]
fn saving_and_opening_take_less_than_a_few_tensors() {
    let Some(_) = status("VmHWM") else {
        println!("skipped: no peak of memory in /proc/self/status");
        return;
    };
    let model = |n_layer, n_embd| {
        let raw = RawConfig {
            sequence_len: 16,
            vocab_size: 64,
            n_layer,
            n_head: 2,
            n_kv_head: 2,
            n_embd,
            generation: Generation::G1,
            ..RawConfig::default()
        };
        let model = Nano::zeros(&Reference, GptConfig::new(raw).expect("sizes that fit"));
        let model = model.expect("a small model");
        model.init(1).expect("f32");
        model
    };
    // The program's own pages count as well: a run of everything brings them in.
    all_ways(&model(1, 32), &model(1, 32), |_, _| ());
    let (model, moments) = (model(8, 256), model(8, 256));
    let largest = model.table().rows().iter().map(|r| 4 * r.len()).max().expect("rows");
    let total = model.params().bytes();
    assert!(total > 20 * largest, "of {total} bytes {largest} in one tensor");
    let before = status("VmRSS").expect("beside the peak");
    all_ways(&model, &moments, |what, more| {
        let peak = status("VmHWM").expect("read above").saturating_sub(before + more);
        println!("{what}: {} KiB over the model", peak >> 10);
        assert!(peak < 3 * largest + (2 << 20), "{what}: {peak} bytes, tensors of {largest}");
    });
}
