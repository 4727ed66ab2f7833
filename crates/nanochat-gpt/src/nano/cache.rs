//! Keys and values of the tokens before, in pages that rows may share.
//!
//! Layers with the same window keep the same positions, so they share one table of pages: a *pool*. A
//! page that no later query will see goes back to its pool; a page that two rows hold is copied when
//! one of them writes to it. All memory is allocated once, when it is reserved, or by doubling.
//! Numbers are f32 or bf16: what the device rounds them to before it multiplies.

use std::collections::BTreeMap;

use nanochat_compute::ops::{CachedAttention, PAGE};
use nanochat_compute::{Backend, DType, Tensor};

use crate::{GptConfig, Result};

/// Pages of the layers with one window.
pub(super) struct Pool {
    window: usize,
    /// Of each layer of the pool: (pages, Hkv, PAGE, D).
    keys: Vec<Tensor>,
    values: Vec<Tensor>,
    dtype: DType,
    hkv: usize,
    /// Numbers of a page of one layer.
    page: usize,
    /// Rows that hold each page; 0: it is free.
    holders: Vec<u32>,
    /// Free pages, the next one last.
    free: Vec<usize>,
    /// Of each row: a page for every PAGE positions, [`NONE`] where there is none any more.
    tables: Vec<Vec<i32>>,
    /// Where a row's first page lies that it still holds.
    first: Vec<usize>,
}

/// Pages by whose multiples a place grows on a device that replays: 16 are 1,024 positions.
const STEADY_PAGES: usize = 16;

/// In place of a page that no query sees.
const NONE: i32 = -1;

/// What a step of a pool needs beside the pages: who is where.
pub(super) struct Places {
    /// For `attention_cached`.
    pub places: Tensor,
    /// Pages that a place names.
    pub pages: usize,
    /// (rows, t, Hkv): where in the pool, in rows of D, the new keys and values go to.
    pub rows: Tensor,
}

impl Pool {
    fn new(
        be: &dyn Backend,
        layers: usize,
        window: usize,
        (hkv, d): (usize, usize),
        dtype: DType,
    ) -> Result<Self> {
        let none = || (0..layers).map(|_| Ok(be.alloc(0, dtype)?)).collect::<Result<Vec<_>>>();
        Ok(Self {
            window,
            keys: none()?,
            values: none()?,
            dtype,
            hkv,
            page: PAGE * hkv * d,
            holders: Vec::new(),
            free: Vec::new(),
            tables: vec![Vec::new()],
            first: vec![0],
        })
    }

    fn pages(&self) -> usize {
        self.holders.len()
    }

    /// Bytes of `n` pages in all layers of the pool.
    fn bytes(&self, n: usize) -> usize {
        n * self.page * 2 * self.keys.len() * self.dtype.size()
    }

    /// Makes the pool at least `pages` large; what is in it stays.
    fn grow(&mut self, be: &dyn Backend, pages: usize) -> Result<()> {
        let have = self.pages();
        if pages <= have {
            return Ok(());
        }
        let larger = |old: &Tensor| -> Result<Tensor> {
            let new = be.alloc(pages * self.page, self.dtype)?;
            be.copy(&new.slice(0..old.len()), old)?;
            Ok(new)
        };
        // All of it, or none: an error leaves the pool as it was.
        let keys = self.keys.iter().map(larger).collect::<Result<Vec<_>>>()?;
        let values = self.values.iter().map(larger).collect::<Result<Vec<_>>>()?;
        (self.keys, self.values) = (keys, values);
        self.holders.resize(pages, 0);
        self.free.extend((have..pages).rev());
        self.free.sort_unstable_by(|a, b| b.cmp(a));
        Ok(())
    }

    /// Most pages that a row of `len` tokens holds when they come `t` at a time.
    fn held_by(&self, len: usize, t: usize) -> usize {
        // The window before the first new token may begin inside a page, and so may the tokens.
        len.div_ceil(PAGE).min((self.window.saturating_add(t)).div_ceil(PAGE).saturating_add(1))
    }

    fn take(&mut self, be: &dyn Backend) -> Result<usize> {
        if self.free.is_empty() {
            self.grow(be, (2 * self.pages()).max(4))?;
        }
        let page = self.free.pop().expect("the pool has just grown");
        self.holders[page] = 1;
        Ok(page)
    }

    fn release(&mut self, page: i32) {
        if page != NONE {
            let page = page as usize;
            self.holders[page] -= 1;
            if self.holders[page] == 0 {
                self.free.push(page);
            }
        }
    }

    /// Gives every row pages of its own for positions `len .. len + t`.
    fn make_room(&mut self, be: &dyn Backend, len: usize, t: usize) -> Result<()> {
        for row in 0..self.tables.len() {
            for block in len / PAGE..(len + t).div_ceil(PAGE) {
                if block == self.tables[row].len() {
                    let page = self.take(be)?;
                    self.tables[row].push(page as i32);
                    continue;
                }
                let old = self.tables[row][block] as usize;
                if self.holders[old] > 1 {
                    let page = self.take(be)?;
                    self.copy(be, old, page)?;
                    self.release(old as i32);
                    self.tables[row][block] = page as i32;
                }
            }
        }
        Ok(())
    }

    fn copy(&self, be: &dyn Backend, from: usize, to: usize) -> Result<()> {
        let at = |x: &Tensor, page: usize| x.slice(page * self.page..(page + 1) * self.page);
        for x in self.keys.iter().chain(&self.values) {
            be.copy(&at(x, to), &at(x, from))?;
        }
        Ok(())
    }

    /// Where rows stand, `places` and `rows` of [`Places`], and the pages that a place names.
    fn places(
        &self,
        be: &dyn Backend,
        (len, t, ahead): (usize, usize, usize),
    ) -> (Vec<i32>, Vec<i32>, usize) {
        let named = (len + ahead).div_ceil(PAGE);
        // A device that replays its steps wants the same shapes for a while.
        let pages = match be.own_memory() {
            Some(_) => named.next_multiple_of(STEADY_PAGES),
            None => named,
        };
        let (mut places, mut rows) = (Vec::new(), Vec::new());
        for table in &self.tables {
            places.push(len as i32);
            places.extend_from_slice(&table[..named]);
            places.extend((named..pages).map(|_| NONE));
            let row = |i: usize| {
                let (p, head) = (i / self.hkv, i % self.hkv);
                (table[p / PAGE] as usize * self.hkv + head) * PAGE + p % PAGE
            };
            rows.extend((len * self.hkv..(len + t) * self.hkv).map(|i| row(i) as i32));
        }
        (places, rows, pages)
    }

    /// Lets go of pages that no query from position `len` on sees.
    fn forget(&mut self, len: usize) {
        let keep = len.saturating_sub(self.window) / PAGE;
        for row in 0..self.tables.len() {
            for block in self.first[row]..keep.min(self.tables[row].len()) {
                let page = std::mem::replace(&mut self.tables[row][block], NONE);
                self.release(page);
                self.first[row] = block + 1;
            }
        }
    }

    fn fork(&mut self, n: usize) {
        for page in self.tables[0].iter().filter(|p| **p != NONE) {
            self.holders[*page as usize] += n as u32 - 1;
        }
        self.tables = vec![self.tables[0].clone(); n];
        self.first = vec![self.first[0]; n];
    }

    fn reset(&mut self) {
        self.holders.fill(0);
        self.free = (0..self.pages()).rev().collect();
        (self.tables, self.first) = (vec![Vec::new()], vec![0]);
    }
}

/// The cache of a whole model.
pub(super) struct Cache {
    pools: Vec<Pool>,
    /// Of each layer: its pool, and its number there.
    layers: Vec<(usize, usize)>,
    heads: (usize, usize, usize),
    places: Vec<Places>,
    /// What all of `places` are parts of.
    placed: Option<Tensor>,
}

impl Cache {
    /// An empty cache of one row, without memory, that will hold `dtype`.
    pub fn new(be: &dyn Backend, config: &GptConfig, dtype: DType) -> Result<Self> {
        let heads = (config.n_head, config.n_kv_head, config.head_dim());
        let mut windows: BTreeMap<usize, usize> = BTreeMap::new();
        for i in 0..config.n_layer {
            *windows.entry(config.window(i)).or_default() += 1;
        }
        let pool = |(window, layers): (&usize, &usize)| {
            Pool::new(be, *layers, *window, (heads.1, heads.2), dtype)
        };
        let pools = windows.iter().map(pool).collect::<Result<Vec<_>>>()?;
        let mut used = vec![0; pools.len()];
        let mut layers = Vec::new();
        for i in 0..config.n_layer {
            let at = pools.iter().position(|p| p.window == config.window(i)).expect("made above");
            layers.push((at, used[at]));
            used[at] += 1;
        }
        Ok(Self { pools, layers, heads, places: Vec::new(), placed: None })
    }

    /// Allocates for one row of `prompt` tokens, fed `t` at a time, that becomes `rows` rows of `len`.
    pub fn reserve(
        &mut self,
        be: &dyn Backend,
        (prompt, t): (usize, usize),
        (rows, len): (usize, usize),
    ) -> Result<()> {
        for pool in &mut self.pools {
            // The whole pages of the prompt are shared; the rest is each row's own.
            let own = (len.div_ceil(PAGE) - prompt / PAGE).min(pool.held_by(len, 1));
            let pages = pool.held_by(prompt, t) + rows * own;
            pool.grow(be, pages)?;
        }
        Ok(())
    }

    /// Prepares for `t` tokens a row after the `len` that are held; with pages for `ahead` of them, at least
    /// `t`, of which those after the first `t` follow in the same step.
    pub fn begin(&mut self, be: &dyn Backend, len: usize, t: usize, ahead: usize) -> Result<()> {
        for pool in &mut self.pools {
            pool.make_room(be, len, ahead)?;
        }
        let each: Vec<_> = self.pools.iter().map(|p| p.places(be, (len, t, ahead))).collect();
        let all: Vec<i32> =
            each.iter().flat_map(|(at, rows, _)| at.iter().chain(rows)).copied().collect();
        // In the memory of the step before where that has the size: one copy to a device.
        let placed = match self.placed.take().filter(|old| old.len() == all.len()) {
            Some(old) => {
                old.write_i32(&all)?;
                old
            }
            None => be.place_i32(&all)?,
        };
        let mut next = 0;
        let mut slice = |len: usize| {
            next += len;
            placed.slice(next - len..next)
        };
        let of = |(at, rows, pages): (Vec<i32>, Vec<i32>, usize)| Places {
            places: slice(at.len()),
            pages,
            rows: slice(rows.len()),
        };
        self.places = each.into_iter().map(of).collect();
        self.placed = Some(placed);
        Ok(())
    }

    /// Ends a step after which `len` tokens are held.
    pub fn end(&mut self, len: usize) {
        self.pools.iter_mut().for_each(|p| p.forget(len));
    }

    /// Keys and values of layer `i`, and who is where in them.
    pub fn layer(&self, i: usize) -> (&Tensor, &Tensor, &Places) {
        let (pool, at) = self.layers[i];
        (&self.pools[pool].keys[at], &self.pools[pool].values[at], &self.places[pool])
    }

    /// Shape of cached attention in layer `i`.
    pub fn shape(&self, i: usize, rows: usize, t: usize, scale: f32) -> CachedAttention {
        let (pool, (h, hkv, d)) = (self.layers[i].0, self.heads);
        let (pages, window) = (self.places[pool].pages, self.pools[pool].window);
        CachedAttention { rows, t, pages, h, hkv, d, window, scale }
    }

    /// Addresses of everything that a step of attention names.
    pub fn addresses(&self) -> Vec<u64> {
        let pools = self.pools.iter().flat_map(|p| p.keys.iter().chain(&p.values));
        let places = self.places.iter().flat_map(|p| [&p.places, &p.rows]);
        pools.chain(places).map(Tensor::address).collect()
    }

    /// Channels of a head.
    pub fn d(&self) -> usize {
        self.heads.2
    }

    /// What keys and values are stored in.
    pub fn dtype(&self) -> DType {
        self.pools[0].dtype
    }

    /// Makes `n` rows of the only one; they share its pages.
    pub fn fork(&mut self, n: usize) {
        self.pools.iter_mut().for_each(|p| p.fork(n));
    }

    /// One empty row; the memory stays.
    pub fn reset(&mut self) {
        self.pools.iter_mut().for_each(Pool::reset);
    }

    /// Bytes of the pages that rows hold.
    pub fn used_bytes(&self) -> usize {
        self.pools.iter().map(|p| p.bytes(p.pages() - p.free.len())).sum()
    }

    /// Bytes allocated.
    pub fn bytes(&self) -> usize {
        self.pools.iter().map(|p| p.bytes(p.pages())).sum()
    }
}
