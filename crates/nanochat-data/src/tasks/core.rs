//! CORE: 22 tasks without any chat format, by what a model finds likely.
//!
//! Two layouts are read: the bundle (`core.yaml`, `eval_meta_data.csv`, `eval_data/`), and a folder
//! with `core_tasks.tsv` beside the files that it names. Sources: Li et al., "DataComp-LM",
//! arXiv:2406.11794; nanochat's core_eval.py for the order, the few-shot draws and the prompts.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use yaml_rust2::{Yaml, YamlLoader};

use super::{files, text, texts};
use crate::error::{Error, Result};
use crate::python_random::PythonRandom;

/// Seed of the one shuffle of every task.
const SHUFFLE_SEED: u64 = 1337;

/// Few-shot examples of item i are drawn with this seed plus i.
const SHOTS_SEED: u64 = 1234;

/// Tasks of the whole metric.
pub const TASKS: usize = 22;

/// What is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// One query, several choices: the choice with the lowest mean loss.
    MultipleChoice,
    /// Several contexts, one continuation: the context after which it has the lowest mean loss.
    Schema,
    /// One context, one continuation: every token of it must be the likeliest.
    LanguageModeling,
}

impl Kind {
    /// As in the bundle.
    pub fn name(self) -> &'static str {
        match self {
            Kind::MultipleChoice => "multiple_choice",
            Kind::Schema => "schema",
            Kind::LanguageModeling => "language_modeling",
        }
    }

    fn parse(name: &str) -> Option<Self> {
        let all = [Kind::MultipleChoice, Kind::Schema, Kind::LanguageModeling];
        all.into_iter().find(|kind| kind.name() == name)
    }
}

/// One record of a task.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Item {
    /// See [`Kind::MultipleChoice`].
    MultipleChoice {
        /// What comes before the choice.
        query: String,
        /// The choices.
        choices: Vec<String>,
        /// Which is right.
        gold: usize,
    },
    /// See [`Kind::Schema`].
    Schema {
        /// What may come before the continuation.
        contexts: Vec<String>,
        /// What follows.
        continuation: String,
        /// Which context is right.
        gold: usize,
    },
    /// See [`Kind::LanguageModeling`].
    LanguageModeling {
        /// What comes before.
        context: String,
        /// What must follow.
        continuation: String,
    },
}

/// A task: a row of the table, and where its records lie.
#[derive(Clone, Debug, PartialEq)]
pub struct CoreTask {
    /// As in reports: `hellaswag_zeroshot`.
    pub label: String,
    /// What is compared.
    pub kind: Kind,
    /// Examples before each question.
    pub shots: usize,
    /// Between what comes before and what follows.
    pub delimiter: String,
    /// Percent of right answers that guessing gives.
    pub baseline_percent: f64,
    /// The records.
    pub file: PathBuf,
}

/// The tasks of a folder, in its table's order; a file may be missing.
///
/// Errors: [`Error::TaskFiles`] when there is no table; [`Error::BadRecord`] for one that cannot be used.
pub fn open(dir: &Path) -> Result<Vec<CoreTask>> {
    for root in
        [dir.to_path_buf(), dir.join("eval_bundle"), dir.join("eval/core"), dir.join("core")]
    {
        if root.join("core.yaml").is_file() {
            return bundle(&root);
        }
        if root.join("core_tasks.tsv").is_file() {
            return table(&root);
        }
    }
    Err(Error::TaskFiles {
        task: "CORE".into(),
        looked: "core.yaml (in it, or in its eval_bundle), or core_tasks.tsv (in it, or in its \
                 eval/core)"
            .into(),
        root: dir.into(),
        from: "https://karpathy-public.s3.us-west-2.amazonaws.com/eval_bundle.zip (unpack it)",
    })
}

/// `(acc - b) / (1 - b)` for an accuracy in 0..=1 and a baseline in percent: 0 is guessing, 1 is perfect.
pub fn centered(accuracy: f64, baseline_percent: f64) -> f64 {
    (accuracy - 0.01 * baseline_percent) / (1.0 - 0.01 * baseline_percent)
}

impl CoreTask {
    /// The records in nanochat's order: shuffled by `random.Random(1337)`, then cut to `most`.
    ///
    /// Each comes with its number in the file. Errors: those of reading; [`Error::BadRecord`].
    pub fn items(&self, most: Option<usize>) -> Result<Vec<(usize, Item)>> {
        let records = files::records(&self.file)?;
        let item = |(i, record): (usize, &Value)| {
            read(self.kind, record).map(|item| (i, item)).map_err(|why| self.bad(i, why))
        };
        let mut items = records.iter().enumerate().map(item).collect::<Result<Vec<_>>>()?;
        PythonRandom::new(SHUFFLE_SEED).shuffle(&mut items);
        items.truncate(most.unwrap_or(usize::MAX));
        Ok(items)
    }

    fn bad(&self, record: usize, why: String) -> Error {
        Error::BadRecord { place: format!("{}, record {record}", self.file.display()), why }
    }
}

/// Which of `n` items are the `k` few-shot examples of item `i`: `random.Random(1234 + i).sample` of
/// all others. Fewer when there are not so many others.
pub fn shots(n: usize, i: usize, k: usize) -> Vec<usize> {
    let others = n.saturating_sub(1);
    let drawn = PythonRandom::new(SHOTS_SEED + i as u64).sample(others, k.min(others));
    drawn.into_iter().map(|j| j + usize::from(j >= i)).collect()
}

fn read(kind: Kind, record: &Value) -> Result<Item, String> {
    let list = |key: &str| {
        record
            .get(key)
            .and_then(texts)
            .filter(|l| !l.is_empty())
            .ok_or(format!("{key} is no list of texts"))
    };
    let gold = |n: usize| {
        let gold = record.get("gold").and_then(Value::as_u64).map(|g| g as usize);
        gold.filter(|g| *g < n).ok_or(format!("gold is none of the {n} choices"))
    };
    Ok(match kind {
        Kind::MultipleChoice => {
            let choices = list("choices")?;
            let gold = gold(choices.len())?;
            Item::MultipleChoice { query: text(record, "query")?.into(), choices, gold }
        }
        Kind::Schema => {
            let contexts = list("context_options")?;
            let gold = gold(contexts.len())?;
            Item::Schema { contexts, continuation: text(record, "continuation")?.into(), gold }
        }
        Kind::LanguageModeling => Item::LanguageModeling {
            context: text(record, "context")?.into(),
            continuation: text(record, "continuation")?.into(),
        },
    })
}

/// A row of the table of either layout.
#[derive(Deserialize)]
struct Row {
    label: String,
    file: String,
    icl_task_type: String,
    num_fewshot: usize,
    continuation_delimiter: String,
    random_baseline_percent: f64,
}

impl Row {
    fn task(self, place: &str, root: &Path) -> Result<CoreTask> {
        let bad = |why| Error::BadRecord { place: format!("{place}, task {}", self.label), why };
        let kind = Kind::parse(&self.icl_task_type)
            .ok_or_else(|| bad(format!("icl_task_type {:?} is unknown", self.icl_task_type)))?;
        if !(0.0..100.0).contains(&self.random_baseline_percent) {
            return Err(bad(format!("a baseline of {} percent", self.random_baseline_percent)));
        }
        Ok(CoreTask {
            kind,
            file: root.join(&self.file),
            label: self.label,
            shots: self.num_fewshot,
            delimiter: self.continuation_delimiter,
            baseline_percent: self.random_baseline_percent,
        })
    }
}

/// `core_tasks.tsv`: a header, tabs between fields, the delimiter as a JSON string.
fn table(root: &Path) -> Result<Vec<CoreTask>> {
    let path = root.join("core_tasks.tsv");
    let place = path.display().to_string();
    let bad = |why: String| Error::BadRecord { place: place.clone(), why };
    let mut reader = csv::ReaderBuilder::new()
        .delimiter(b'\t')
        .quoting(false)
        .from_path(&path)
        .map_err(|e| bad(e.to_string()))?;
    let rows = reader.deserialize::<Row>().map(|row| {
        let mut row = row.map_err(|e| bad(e.to_string()))?;
        row.continuation_delimiter = serde_json::from_str(&row.continuation_delimiter)
            .map_err(|e| bad(format!("the delimiter of {}: {e}", row.label)))?;
        row.task(&place, root)
    });
    rows.collect()
}

/// `core.yaml` for the tasks, `eval_meta_data.csv` for the baselines, `eval_data/` for the records.
fn bundle(root: &Path) -> Result<Vec<CoreTask>> {
    let path = root.join("core.yaml");
    let place = path.display().to_string();
    let bad = |why: String| Error::BadRecord { place: place.clone(), why };
    let baselines = baselines(&root.join("eval_meta_data.csv"))?;
    let yaml = std::fs::read_to_string(&path).map_err(Error::io("read", &path))?;
    let yaml = YamlLoader::load_from_str(&yaml).map_err(|e| bad(e.to_string()))?;
    let tasks = yaml.first().and_then(|doc| doc["icl_tasks"].as_vec());
    let tasks = tasks.ok_or_else(|| bad("there is no list icl_tasks".into()))?;
    let task = |task: &Yaml| {
        let field = |key: &str| {
            task[key]
                .as_str()
                .ok_or_else(|| bad(format!("a task without {key}")))
                .map(str::to_owned)
        };
        let label = field("label")?;
        let shots = task["num_fewshot"][0].as_i64().and_then(|n| usize::try_from(n).ok());
        let baseline = baselines.iter().find(|(name, _)| *name == label).map(|b| b.1);
        let missing = |what: &str| bad(format!("task {label}: {what}"));
        let row = Row {
            file: field("dataset_uri")?,
            icl_task_type: field("icl_task_type")?,
            num_fewshot: shots.ok_or_else(|| missing("num_fewshot is no list of one number"))?,
            continuation_delimiter: task["continuation_delimiter"].as_str().unwrap_or(" ").into(),
            random_baseline_percent: baseline
                .ok_or_else(|| missing("eval_meta_data.csv has no row for it"))?,
            label: label.clone(),
        };
        row.task(&place, &root.join("eval_data"))
    };
    tasks.iter().map(task).collect()
}

fn baselines(path: &Path) -> Result<Vec<(String, f64)>> {
    let bad = |why: String| Error::BadRecord { place: path.display().to_string(), why };
    let mut reader = csv::Reader::from_path(path).map_err(|e| bad(e.to_string()))?;
    let header = reader.headers().map_err(|e| bad(e.to_string()))?.clone();
    let column = |name: &str| {
        header
            .iter()
            .position(|h| h.trim() == name)
            .ok_or_else(|| bad(format!("no column {name:?}")))
    };
    let (task, baseline) = (column("Eval Task")?, column("Random baseline")?);
    let row = |row: csv::Result<csv::StringRecord>| {
        let row = row.map_err(|e| bad(e.to_string()))?;
        let name = row.get(task).unwrap_or_default().trim().to_owned();
        let value = row.get(baseline).unwrap_or_default().trim().parse();
        let value = value.map_err(|_| bad(format!("the baseline of {name:?} is no number")))?;
        Ok((name, value))
    };
    reader.records().map(row).collect()
}
