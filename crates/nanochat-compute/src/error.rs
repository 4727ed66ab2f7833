//! What can go wrong between a tensor and a kernel.

/// Errors of this crate.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An operand has the wrong length for the operation's shape.
    #[error("{op}: {what} holds {have} elements, its shape needs {need}")]
    Shape {
        /// Operation.
        op: &'static str,
        /// Operand.
        what: &'static str,
        /// Elements it has.
        have: usize,
        /// Elements the shape asks for.
        need: usize,
    },
    /// An operand has another element type than the operation takes.
    #[error("{op}: an operand is {have}, the operation takes {need}")]
    DType {
        /// Operation.
        op: &'static str,
        /// What it is.
        have: &'static str,
        /// What it must be.
        need: &'static str,
    },
    /// Two operands share memory, and one of them is written.
    #[error("{op}: an output overlaps another operand")]
    Overlap {
        /// Operation.
        op: &'static str,
    },
    /// An output lies in a file that is mapped for reading.
    #[error(
        "{op}: the output lies in a file that was opened for reading: load the model into memory to \
         change it"
    )]
    ReadOnly {
        /// Operation.
        op: &'static str,
    },
    /// A parameter has a value that the operation cannot take.
    #[error("{op}: {detail}")]
    Invalid {
        /// Operation.
        op: &'static str,
        /// What is wrong.
        detail: String,
    },
    /// An operand lies in the memory of another device.
    #[error("{op}: an operand lies {place}, where {backend} does not compute")]
    Elsewhere {
        /// Operation.
        op: &'static str,
        /// Where the operand lies.
        place: &'static str,
        /// Who was to compute.
        backend: &'static str,
    },
    /// A device, or a library that drives it, is missing or failed.
    #[error("{what}: {detail}")]
    Device {
        /// Library or device.
        what: &'static str,
        /// What happened, and what to do.
        detail: String,
    },
    /// Another rank cannot be reached, or is not where this one is.
    #[error("rank {rank}: {detail}")]
    Rank {
        /// The other rank.
        rank: usize,
        /// What happened, and what to do.
        detail: String,
    },
    /// The machine does not have the memory.
    #[error(
        "cannot allocate {bytes} bytes: use a smaller --device-batch-size, --max-seq-len or --depth"
    )]
    Memory {
        /// Bytes asked for.
        bytes: usize,
    },
}

/// Result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// `Ok` when `have == need`, else [`Error::Shape`].
pub(crate) fn expect_len(
    op: &'static str,
    what: &'static str,
    have: usize,
    need: usize,
) -> Result<()> {
    if have == need { Ok(()) } else { Err(Error::Shape { op, what, have, need }) }
}
