//! What the tests share: a text, a tokenizer, a tiny run of the program that takes a second.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nanochat_gpt::checkpoint;
use serde_json::Value;

/// True when all of it is asked for, and not the fast part alone.
pub fn thorough() -> bool {
    std::env::var_os("NANOCHAT_THOROUGH").is_some_and(|v| v == "1")
}

/// One number or another.
pub fn at_most(fast: usize, whole: usize) -> usize {
    if thorough() { whole } else { fast }
}

/// Uniform draws, the same for the same seed: a linear congruential generator.
pub struct Draws(pub u64);

impl Draws {
    pub fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// A folder with a text and a tokenizer.
pub struct Lab {
    pub dir: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let line = |i: usize| format!("The number {i} comes before {}.\n\n", i + 1);
        let text: String = (0..4000).map(line).collect();
        std::fs::write(dir.path().join("text.txt"), text).expect("a text");
        let lab = Lab { dir };
        let line = "tokenizer train --data text.txt --vocab-size 300 --out tok";
        let done = lab.program(line).output().expect("the program starts");
        assert!(done.status.success(), "{}", text_of(&done));
        lab
    }

    pub fn at(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The program with these words, in the folder.
    pub fn program(&self, line: &str) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nanochat"));
        command.args(line.split_whitespace()).current_dir(self.dir.path());
        command.env("NANOCHAT_BASE_DIR", self.dir.path());
        command
    }

    /// One layer of width 32; steps of two rows of 32 in two micro batches.
    pub fn line(run: &str, steps: u64, more: &str) -> String {
        format!(
            "train base --run {run} --data text.txt --tokenizer tok --depth 1 --aspect-ratio 32 \
             --head-dim 16 --max-seq-len 32 --device-batch-size 1 --total-batch-size 64 \
             --num-iterations {steps} --eval-every 100 --eval-tokens 64 --sample-every 0 \
             --threads 1 --device cpu {more}"
        )
    }

    pub fn train(&self, run: &str, steps: u64, more: &str) -> Output {
        self.program(&Self::line(run, steps, more)).output().expect("the program starts")
    }

    /// [`Lab::train`] that must succeed.
    pub fn train_well(&self, run: &str, steps: u64, more: &str) {
        let done = self.train(run, steps, more);
        assert!(done.status.success(), "{}", text_of(&done));
    }

    /// Starts a run and lets it go.
    pub fn start(&self, run: &str, steps: u64, more: &str) -> Child {
        let mut command = self.program(&Self::line(run, steps, more));
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().expect("the program starts")
    }

    pub fn steps_dir(&self, run: &str) -> PathBuf {
        self.at(run).join("base")
    }

    /// The newest valid step of a run, 0 when there is none.
    pub fn newest(&self, run: &str) -> u64 {
        let found = checkpoint::latest(&self.steps_dir(run)).ok();
        found.map_or(0, |(step, _)| checkpoint::meta(&step).expect("a valid step").step)
    }

    /// Rows of the metrics of one kind.
    pub fn rows(&self, run: &str, kind: &str) -> Vec<Value> {
        let text = std::fs::read(self.at(run).join("metrics.jsonl")).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let rows = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        rows.filter(|row| row["kind"] == kind).collect()
    }

    /// Waits until a run has taken a step past `step`; false when it ended before.
    pub fn wait_past(&self, child: &mut Child, run: &str, step: u64) -> bool {
        let patience = Instant::now();
        while child.try_wait().expect("a child").is_none() {
            let last = self.rows(run, "step").last().and_then(|row| row["step"].as_u64());
            if last.is_some_and(|last| last > step) {
                return true;
            }
            assert!(patience.elapsed() < Duration::from_secs(300), "no step {step} in 5 minutes");
            std::thread::sleep(Duration::from_millis(2));
        }
        false
    }
}

pub fn text_of(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// The files of a step that decide the steps to come.
pub fn same_step(a: &Path, b: &Path) {
    for file in ["model.safetensors", "optimizer.safetensors", "loader.bin"] {
        let read = |step: &Path| std::fs::read(step.join(file)).expect(file);
        assert!(read(a) == read(b), "{file} of {} and {} differs", a.display(), b.display());
    }
}

/// The whole run and another end alike: weights, optimizer, loader, and the loss of every step.
pub fn same_end(lab: &Lab, whole: &str, other: &str, steps: u64) {
    let step = |run: &str| lab.steps_dir(run).join(format!("step-{steps:06}"));
    same_step(&step(whole), &step(other));
    let losses = |run: &str| -> Vec<(Value, Value)> {
        let rows = lab.rows(run, "step").into_iter();
        rows.map(|row| (row["step"].clone(), row["loss"].clone())).collect()
    };
    assert_eq!(losses(other).len(), steps as usize, "each step once");
    assert_eq!(losses(whole), losses(other));
}

/// Runs a command line that the tests need from the system; none when it is not there.
pub fn tool(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}
