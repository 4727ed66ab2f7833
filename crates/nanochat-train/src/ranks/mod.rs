//! One run on several ranks: who steps which parameter, and what all ranks decide together.
//!
//! | room | what |
//! |---|---|
//! | [`shards`] | parameters dealt to ranks: tables by rows, matrices whole, by what they cost |
//! | [`sums`] | sums over micro batches whose bits do not depend on how ranks share them |
//! | `dealt` | validation batches shared by ranks |
//! | `agree` | decisions that all ranks take alike |

pub(crate) mod agree;
pub(crate) mod dealt;
pub mod shards;
pub mod sums;
