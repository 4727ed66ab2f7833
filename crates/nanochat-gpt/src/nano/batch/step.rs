//! One step of many sequences: where each row stands, and what attention and smear make of that.
//!
//! A step's N rows follow each other in the order of the feeds. Feeds of one id that stand together are a
//! *group*, for which attention is called once; a chunk of a prompt is a group of one.

use nanochat_compute::ops::{CachedAttention, MatMul, PAGE, Smear};
use nanochat_compute::{Backend, DType, Tensor};

use super::super::Nano;
use super::super::buffers::{Buffers, LayerBuffers};
use super::super::forward::Past;
use super::super::table::Role;
use super::NanoBatch;
use super::pages::Pages;
use crate::batch::Feed;
use crate::paging::Paging;
use crate::{Error, Result};

/// Pages by whose multiples a place grows on a device that replays: 16 are 1,024 positions.
const STEADY_PAGES: usize = 16;
/// In place of a page that no query sees.
const NONE: i32 = -1;

/// What buffers of a step depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    /// N.
    pub rows: usize,
    /// Feeds, and what fills them up.
    pub feeds: usize,
    /// On a device that replays: pages that a place of the only group names. Else 0.
    steady: usize,
}

impl Shape {
    /// On a device that replays, steps of one id a feed are filled up to a few numbers of rows.
    pub fn of(feeds: &[Feed<'_>], paging: &Paging, is_placed: bool) -> Result<Self> {
        let rows = feeds.iter().map(|feed| feed.ids.len()).sum::<usize>();
        let steady = is_placed && rows == feeds.len() && all_have_past(feeds, paging)?;
        if !steady {
            return Ok(Self { rows, feeds: feeds.len(), steady: 0 });
        }
        let mut pages = 1;
        for feed in feeds {
            pages = pages.max((paging.ids(feed.sequence)?.len() + 1).div_ceil(PAGE));
        }
        let bucket = match rows {
            0..=8 => rows.next_power_of_two(),
            9..=64 => rows.next_multiple_of(8),
            _ => rows.next_multiple_of(32),
        };
        let steady = pages.next_multiple_of(STEADY_PAGES);
        Ok(Self { rows: bucket, feeds: bucket, steady })
    }
}

fn all_have_past(feeds: &[Feed<'_>], paging: &Paging) -> Result<bool> {
    for feed in feeds {
        if paging.ids(feed.sequence)?.is_empty() {
            return Ok(false);
        }
    }
    Ok(true)
}

pub(super) fn fault(what: &str) -> Error {
    Error::Config { field: "step", detail: format!("{what}: this is a fault of the decoder") }
}

/// Rows of a step that attention takes together.
struct Group {
    /// First row.
    from: usize,
    /// Sequences, and rows of each.
    rows: usize,
    t: usize,
    pages: usize,
    /// For `attention_cached`.
    places: Tensor,
}

/// Where the rows of a step stand.
pub(super) struct Rows {
    /// (N) ids; 0 fills up.
    pub tokens: Vec<i32>,
    /// (N)
    positions: Tensor,
    /// (N, Hkv): where in a layer's pages, in rows of D, the new keys and values go to.
    cells: Tensor,
    groups: Vec<Group>,
    /// One more than the last position.
    reach: usize,
    edge: Option<Edge>,
}

/// What smear needs: the rows, and before each feed's first the embedding of the id before it.
struct Edge {
    /// (feeds, C)
    lead: Tensor,
    raw: Tensor,
    lead_rstd: Tensor,
    /// (N + feeds, C)
    joined: Tensor,
    smeared: Tensor,
    /// (N + feeds)
    gate: Tensor,
    /// (feeds) ids before; rows of `joined` where their embeddings stand.
    before: Tensor,
    lead_at: Tensor,
    /// (N) rows of `joined`.
    row_at: Tensor,
    /// Feeds that have nothing before them.
    first: Vec<usize>,
}

impl Edge {
    fn new(be: &dyn Backend, shape: Shape, c: usize) -> Result<Self> {
        let stream = |rows: usize| be.alloc(rows * c, be.step_style().activations);
        let Shape { rows, feeds, .. } = shape;
        let ids = |n| be.alloc(n, DType::I32);
        Ok(Self {
            lead: stream(feeds)?,
            raw: stream(feeds)?,
            lead_rstd: be.alloc(feeds, DType::F32)?,
            joined: stream(rows + feeds)?,
            smeared: stream(rows + feeds)?,
            gate: be.alloc(rows + feeds, DType::F32)?,
            before: ids(feeds)?,
            lead_at: ids(feeds)?,
            row_at: ids(rows)?,
            first: Vec::new(),
        })
    }

    fn addresses(&self) -> [u64; 9] {
        let streams = [&self.lead, &self.raw, &self.lead_rstd, &self.joined, &self.smeared];
        let rows = [&self.gate, &self.before, &self.lead_at, &self.row_at];
        let ([a, b, c, d, e], [f, g, h, i]) =
            (streams.map(Tensor::address), rows.map(Tensor::address));
        [a, b, c, d, e, f, g, h, i]
    }
}

impl Rows {
    pub fn new(be: &dyn Backend, model: &Nano, shape: Shape) -> Result<Self> {
        let config = model.config();
        let smears = config.rules().smear_backout;
        Ok(Self {
            tokens: Vec::new(),
            positions: be.alloc(shape.rows, DType::I32)?,
            cells: be.alloc(shape.rows * config.n_kv_head, DType::I32)?,
            groups: Vec::new(),
            reach: 0,
            edge: if smears { Some(Edge::new(be, shape, config.n_embd)?) } else { None },
        })
    }

    /// Writes where everything stands. True if the step is one group of single ids that all have a past:
    /// steps of this shape are then alike but for the numbers.
    pub fn place(
        &mut self,
        be: &dyn Backend,
        feeds: &[Feed<'_>],
        paging: &Paging,
        pages: &Pages,
    ) -> Result<bool> {
        let n = self.positions.len();
        let (mut positions, mut cells) = (Vec::with_capacity(n), Vec::new());
        let (mut before, mut first) = (Vec::new(), Vec::new());
        self.tokens.clear();
        for (i, feed) in feeds.iter().enumerate() {
            let (held, table) = (paging.ids(feed.sequence)?, paging.pages(feed.sequence)?);
            first.extend(held.is_empty().then_some(i));
            before.push(held.last().map_or(0, |id| *id as i32));
            for (t, id) in feed.ids.iter().enumerate() {
                self.tokens.push(*id as i32);
                positions.push((held.len() + t) as i32);
                cells.extend(pages.rows(table, held.len() + t));
            }
        }
        // What fills up a step stands at the beginning of a page that nobody reads.
        let filling = n - self.tokens.len();
        for _ in 0..filling {
            self.tokens.push(0);
            positions.push(0);
            before.push(0);
            cells.extend(pages.rows(&[pages.spare()], 0));
        }
        self.reach = positions.iter().max().map_or(0, |last| *last as usize + 1);
        self.positions.write_i32(&positions)?;
        self.cells.write_i32(&cells)?;
        self.groups = groups(be, feeds, paging, (filling, pages.spare()), &self.groups)?;
        let is_alike = first.is_empty() && feeds.iter().all(|feed| feed.ids.len() == 1);
        if let Some(edge) = &mut self.edge {
            let lens = feeds.iter().map(|feed| feed.ids.len());
            let (mut lead_at, mut row_at, mut at) = (Vec::new(), Vec::new(), 0);
            for len in lens.chain((0..filling).map(|_| 1)) {
                lead_at.push(at);
                row_at.extend(at + 1..at + 1 + len as i32);
                at += 1 + len as i32;
            }
            edge.before.write_i32(&before)?;
            edge.lead_at.write_i32(&lead_at)?;
            edge.row_at.write_i32(&row_at)?;
            edge.first = first;
        }
        Ok(is_alike)
    }
}

/// The groups of a step, in the memory of those of the step before where it has the size.
fn groups(
    be: &dyn Backend,
    feeds: &[Feed<'_>],
    paging: &Paging,
    (filling, spare): (usize, u32),
    old: &[Group],
) -> Result<Vec<Group>> {
    let is_steady = be.own_memory().is_some();
    let mut made: Vec<Group> = Vec::new();
    let (mut from, mut rest) = (0, feeds);
    while let Some(feed) = rest.first() {
        let single = rest.iter().take_while(|feed| feed.ids.len() == 1).count();
        let (rows, t) = if single > 0 { (single, 1) } else { (1, feed.ids.len()) };
        let (group, others) = rest.split_at(rows);
        rest = others;
        let mut pages = 1;
        for feed in group {
            pages = pages.max((paging.ids(feed.sequence)?.len() + t).div_ceil(PAGE));
        }
        let pages = if is_steady { pages.next_multiple_of(STEADY_PAGES) } else { pages };
        let mut places: Vec<i32> = Vec::with_capacity((rows + filling) * (1 + pages));
        for feed in group {
            let (held, table) = (paging.ids(feed.sequence)?.len(), paging.pages(feed.sequence)?);
            places.push(held as i32);
            let named = (held + t).div_ceil(PAGE);
            places.extend(table[..named].iter().map(|page| *page as i32));
            places.extend((named..pages).map(|_| NONE));
        }
        let filling = if rest.is_empty() { filling } else { 0 };
        for _ in 0..filling {
            places.extend([0, spare as i32]);
            places.extend((1..pages).map(|_| NONE));
        }
        let rows = rows + filling;
        let before = old.get(made.len()).map(|old| &old.places);
        let places = match before.filter(|old| old.len() == places.len()) {
            Some(old) => {
                old.write_i32(&places)?;
                old.clone()
            }
            None => be.place_i32(&places)?,
        };
        made.push(Group { from, rows, t, pages, places });
        from += rows * t;
    }
    Ok(made)
}

/// A step under way.
pub(super) struct Step<'s> {
    pub batch: &'s NanoBatch<'s>,
    pub bufs: &'s Buffers,
    pub rows: &'s Rows,
    pub shape: Shape,
    pub is_alike: bool,
}

impl Step<'_> {
    /// Positions that the rotary tables must reach.
    pub fn reach(&self) -> usize {
        self.rows.reach
    }

    /// Pages that the places of the first group name.
    pub fn pages_named(&self) -> usize {
        self.rows.groups.first().map_or(0, |group| group.pages)
    }

    /// Where everything lies that the step names beside pages, arena and weights.
    pub fn addresses(&self) -> Vec<u64> {
        let Rows { positions, cells, groups, edge, .. } = self.rows;
        let mut all = vec![positions.address(), cells.address()];
        all.extend(groups.iter().map(|group| group.places.address()));
        all.extend(edge.iter().flat_map(Edge::addresses));
        all
    }
}

impl Past for Step<'_> {
    fn start(&self) -> usize {
        self.rows.reach - 1
    }

    fn places(&self, _: usize) -> Option<&Tensor> {
        Some(&self.rows.positions)
    }

    fn is_counted(&self) -> bool {
        false
    }

    fn linear(
        &self,
        model: &Nano,
        be: &dyn Backend,
        operands: (&Tensor, &Tensor),
        role: Role,
        s: &MatMul,
    ) -> Result<()> {
        self.batch.weights.linear(model, be, operands, role, s)
    }

    /// Smear of all feeds as one row, in which a feed is led by the embedding of the id before it; what
    /// that one smears is not looked at.
    fn smear(&self, model: &Nano, be: &dyn Backend, bufs: &Buffers) -> Result<()> {
        let edge = self.rows.edge.as_ref().ok_or_else(|| fault("smear has no edge"))?;
        let c = model.config().n_embd;
        be.embedding(&edge.raw, &model.param(Role::Wte), &edge.before, c)?;
        be.norm(&edge.lead, &edge.lead_rstd, &edge.raw, c, model.eps())?;
        for &feed in &edge.first {
            be.fill(&edge.lead.slice(feed * c..(feed + 1) * c), 0.0)?;
        }
        be.place_rows(&edge.joined, &bufs.e, &edge.row_at, c)?;
        be.place_rows(&edge.joined, &edge.lead, &edge.lead_at, c)?;
        let s = Smear { b: 1, t: edge.gate.len(), ..model.smear_shape(bufs) };
        let (w, lambda) = (model.param(Role::SmearGate), model.param(Role::SmearLambda));
        be.smear(&edge.smeared, &edge.gate, &edge.joined, &w, &lambda, &s)?;
        Ok(be.embedding(&bufs.x0, &edge.smeared, &edge.row_at, c)?)
    }

    fn attend(
        &self,
        model: &Nano,
        be: &dyn Backend,
        bufs: &Buffers,
        i: usize,
        layer: &LayerBuffers,
    ) -> Result<()> {
        let pages = &self.batch.pages;
        let (k, v) = pages.layer(i);
        be.place_rows(k, &layer.k, &self.rows.cells, pages.d)?;
        be.place_rows(v, &layer.v, &self.rows.cells, pages.d)?;
        let s = model.attention_shape(bufs, i);
        let width = s.h * s.d;
        for group in &self.rows.groups {
            let &Group { from, rows, t, pages, .. } = group;
            let (h, hkv, d, window, scale) = (s.h, s.hkv, s.d, s.window, s.scale);
            let shape = CachedAttention { rows, t, pages, h, hkv, d, window, scale };
            let of = |x: &Tensor| x.slice(from * width..(from + rows * t) * width);
            be.attention_cached(&of(&layer.o), &of(&layer.q), k, v, &group.places, &shape)?;
        }
        Ok(())
    }
}
