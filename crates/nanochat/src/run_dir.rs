//! Where a run keeps its files.
//!
//! ```text
//! <run>/run.json        command, settings, versions, machine
//!       metrics.jsonl   one object a step or evaluation
//!       log.txt         what was printed
//!       lock            who trains in it
//!       tokenizer/      tokenizer.json
//!       base/ sft/ rl/  checkpoints
//!       evals/STAGE/    graded items of eval core and eval chat
//!       stages.json     seconds of each stage, over all sessions
//!       scores.json     held-out answers      samples.json  the conversation at the end
//!       summary.json    what it reached       report.md report.html
//!       verify.json quick.json                compare.md compare.html
//! ```

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// `$NANOCHAT_BASE_DIR`, else `~/.cache/nanochat`: data, tokenizers, runs.
pub fn base_dir() -> PathBuf {
    if let Some(dir) = std::env::var_os("NANOCHAT_BASE_DIR").filter(|d| !d.is_empty()) {
        return dir.into();
    }
    let home = std::env::var_os("HOME").or_else(|| std::env::var_os("USERPROFILE"));
    home.map_or_else(|| PathBuf::from("."), PathBuf::from).join(".cache").join("nanochat")
}

/// A run's directory.
#[derive(Clone, Debug)]
pub struct RunDir {
    root: PathBuf,
}

impl RunDir {
    /// The directory that the user gave, else `<base>/runs/<name>`; made when it is not there.
    pub fn open_or_create(given: Option<&Path>, name: &str) -> Result<Self> {
        let root = given.map_or_else(|| base_dir().join("runs").join(name), Path::to_path_buf);
        std::fs::create_dir_all(&root)
            .with_context(|| format!("cannot make the run directory {}", root.display()))?;
        Ok(Self { root })
    }

    /// The directory that the user gave, else the run under `<base>/runs` that changed last.
    pub fn find(given: Option<&Path>) -> Result<Self> {
        if let Some(root) = given {
            if !root.exists() {
                bail!("{} does not exist", root.display());
            }
            return Ok(Self { root: root.into() });
        }
        let runs = base_dir().join("runs");
        let changed = |p: &Path| {
            let files = ["summary.json", "metrics.jsonl", "run.json"];
            files.iter().find_map(|f| p.join(f).metadata().ok()?.modified().ok())
        };
        let found = std::fs::read_dir(&runs)
            .into_iter()
            .flatten()
            .filter_map(|e| e.ok().map(|e| e.path()))
            .filter_map(|p| Some((changed(&p)?, p)))
            .max();
        match found {
            Some((_, root)) => Ok(Self { root }),
            None => bail!(
                "no run under {}: make one with \"nanochat speedrun\", or give one with --run DIR",
                runs.display()
            ),
        }
    }

    /// The directory itself.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A file or folder of the run.
    pub fn join(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Checkpoints to open: RL's when there are any, else SFT's, else base's, else the directory itself.
    pub fn model_dir(&self, source: Option<&str>) -> PathBuf {
        if let Some(source) = source {
            return self.join(source);
        }
        let holds = |d: &PathBuf| nanochat_gpt::checkpoint::latest_once(d).is_ok();
        let candidates = ["rl", "sft", "base"].map(|s| self.join(s));
        candidates.into_iter().find(holds).unwrap_or_else(|| self.root.clone())
    }

    /// The run's tokenizer.
    pub fn tokenizer(&self) -> Result<nanochat_tokenizer::Tokenizer> {
        let dir = self.join("tokenizer");
        nanochat_tokenizer::Tokenizer::load(&dir)
            .with_context(|| format!("the run {} has no tokenizer", self.root.display()))
    }

    /// Writes a JSON file: aside, then renamed.
    pub fn write_json(&self, name: &str, value: &impl Serialize) -> Result<()> {
        let text = serde_json::to_string_pretty(value)?;
        let (to, tmp) = (self.join(name), self.join(&format!("{name}.tmp")));
        std::fs::write(&tmp, text + "\n")
            .and_then(|()| std::fs::rename(&tmp, &to))
            .with_context(|| format!("cannot write {}", to.display()))
    }

    /// Appends to a list of run.json.
    pub fn note(&self, list: &str, entry: Value) -> Result<()> {
        let mut all: Value = self.read_json("run.json")?.unwrap_or_else(|| json!({}));
        match &mut all[list] {
            Value::Array(entries) => entries.push(entry),
            none => *none = json!([entry]),
        }
        self.write_json("run.json", &all)
    }

    /// A list of run.json that an earlier session wrote with [`RunDir::note`].
    pub fn noted(&self, list: &str) -> Option<Value> {
        let all: Value = self.read_json("run.json").ok()??;
        Some(all[list].clone()).filter(Value::is_array)
    }

    /// Reads a JSON file, if it is there.
    pub fn read_json<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>> {
        let file = self.join(name);
        if !file.exists() {
            return Ok(None);
        }
        let text = std::fs::read_to_string(&file)
            .with_context(|| format!("cannot read {}", file.display()))?;
        let value = serde_json::from_str(&text)
            .with_context(|| format!("{} is not what this program wrote", file.display()))?;
        Ok(Some(value))
    }
}
