//! Weights made ready for products with few rows.

/// A weight in the order in which a device reads it, made once for many products.
pub struct PackedWeight {
    /// Columns of the product: rows of the weight.
    pub n: usize,
    /// Length of the sums.
    pub k: usize,
    /// Bytes it takes: what a product reads of it.
    pub bytes: usize,
    /// Whatever the device made of it.
    pub(crate) inner: Box<dyn std::any::Any>,
}

impl std::fmt::Debug for PackedWeight {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PackedWeight({} x {})", self.n, self.k)
    }
}
