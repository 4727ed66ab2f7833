//! Many requests at once: rows join and leave at any step.

pub mod request;

pub use request::{
    Constraint, ConstraintState, Generator, Limits, Listener, Load, Refused, Request,
    TokenLogprobs, Update, Usage,
};
