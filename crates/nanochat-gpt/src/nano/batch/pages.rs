//! The memory of keys and values: pages of every layer, and one for rows that only fill up a step.

use nanochat_compute::ops::PAGE;
use nanochat_compute::{Backend, DType, Tensor};

use crate::paging::PageCopy;
use crate::{GptConfig, Result};

/// Pages of a model.
pub(super) struct Pages {
    /// Of each layer: (pages + 1, Hkv, PAGE, D).
    layers: Vec<(Tensor, Tensor)>,
    count: usize,
    /// Numbers of a page of one layer.
    page: usize,
    pub hkv: usize,
    pub d: usize,
}

/// Bytes of a page: keys and values of PAGE positions in every layer.
pub(super) fn bytes(config: &GptConfig, dtype: DType) -> usize {
    2 * config.n_layer * PAGE * config.kv_dim() * dtype.size()
}

impl Pages {
    pub fn new(be: &dyn Backend, config: &GptConfig, dtype: DType, count: usize) -> Result<Self> {
        let (hkv, d) = (config.n_kv_head, config.head_dim());
        let page = PAGE * hkv * d;
        let alloc = || be.alloc((count + 1) * page, dtype);
        let layer = |_| Ok((alloc()?, alloc()?));
        let layers = (0..config.n_layer).map(layer).collect::<Result<Vec<_>>>()?;
        Ok(Self { layers, count, page, hkv, d })
    }

    /// The page that nobody reads.
    pub fn spare(&self) -> u32 {
        self.count as u32
    }

    /// Keys and values of a layer.
    pub fn layer(&self, i: usize) -> &(Tensor, Tensor) {
        &self.layers[i]
    }

    pub fn bytes(&self) -> usize {
        self.layers.iter().map(|(k, v)| k.bytes() + v.bytes()).sum()
    }

    pub fn copy(&self, be: &dyn Backend, copy: PageCopy) -> Result<()> {
        let at = |x: &Tensor, page: u32| {
            x.slice(page as usize * self.page..(page as usize + 1) * self.page)
        };
        for x in self.layers.iter().flat_map(|(k, v)| [k, v]) {
            be.copy(&at(x, copy.to), &at(x, copy.from))?;
        }
        Ok(())
    }

    /// Where the keys of a position go, in rows of D: one number for every head.
    pub fn rows(&self, pages: &[u32], position: usize) -> impl Iterator<Item = i32> {
        let (page, hkv) = (pages[position / PAGE] as usize, self.hkv);
        (0..hkv).map(move |head| ((page * hkv + head) * PAGE + position % PAGE) as i32)
    }

    pub fn addresses(&self) -> Vec<u64> {
        self.layers.iter().flat_map(|(k, v)| [k.address(), v.address()]).collect()
    }
}
