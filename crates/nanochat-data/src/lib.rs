//! Documents and conversations to batches.
//!
//! | module | in | out |
//! |---|---|---|
//! | [`shard`] | `.parquet`, `.jsonl`, `.txt` | rows of text, by a [`shard::Policy`] |
//! | [`dataset`] | files or folders | an ordered set, split into train and validation |
//! | [`documents`] | a set, a rank | its documents, pass after pass |
//! | [`loader`] | documents, a tokenizer | full rows for pretraining |
//! | [`conversations`] | `.jsonl`, `.parquet` records of many shapes | conversations |
//! | [`mixture`] | tasks, epochs of each | conversations in one shuffled order |
//! | [`pack`] | a mixture, a tokenizer | rows for fine-tuning |
//! | [`prefetch`] | any batches | the same, made ahead on a thread |
//! | [`mod@download`] | a URL pattern | shards on disk, checked |
//! | [`tasks`] | a folder of downloaded data | graded questions, CORE's tasks |
//! | [`python_random`], [`numpy_random`] | a seed | CPython's random numbers, numpy's order |
//! | [`batch`] | | what the train crate asks of any of them: [`Batches`] |

#![forbid(unsafe_code)]

pub mod batch;
pub mod conversations;
pub mod dataset;
pub mod documents;
pub mod download;
mod error;
pub mod loader;
pub mod mixture;
pub mod numpy_random;
pub mod pack;
pub mod prefetch;
pub mod python_random;
pub mod shard;
pub mod starter;
pub mod tasks;
mod wire;

pub use batch::{Batch, Batches, Encode, IGNORE};
pub use dataset::{Dataset, Split, Stats};
pub use documents::{Documents, Pass, Position};
pub use error::{Error, Result};
pub use loader::{Loader, LoaderConfig};
pub use mixture::{ConversationList, Mixture, Task};
pub use pack::{Batching, PackConfig, PackStats, Packer, Render, Rendered, TooLong};
pub use prefetch::Prefetch;
pub use shard::{OnBad, Policy, Reason, Skipped, Text};
