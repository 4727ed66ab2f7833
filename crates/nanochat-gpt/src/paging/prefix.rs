//! Prefixes that may come again, as a tree: a node is one page of ids after those of its parent.
//!
//! Ids are compared themselves, not hashes of them: nobody can make one prompt pass for another. The
//! prefix that was asked for longest ago is given up first, ends before beginnings.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};

/// The tree. Node 0 is the empty prefix.
pub(super) struct Prefixes {
    page_len: usize,
    nodes: Vec<Option<Node>>,
    vacant: Vec<usize>,
    /// Every node but 0, in the order in which they are given up.
    order: BTreeSet<Age>,
    /// Of each page: its node, if it is in the tree.
    node_of: Vec<Option<usize>>,
    /// Of each page: no sequence holds it.
    unused: Vec<bool>,
    /// Pages in the tree that no sequence holds.
    alone: usize,
    clock: u64,
}

/// When a node was asked for, its depth, its number.
type Age = (u64, Reverse<usize>, usize);

struct Node {
    parent: usize,
    ids: Box<[u32]>,
    page: u32,
    depth: usize,
    asked: u64,
    children: HashMap<Box<[u32]>, usize>,
}

impl Prefixes {
    pub fn new(page_len: usize, pages: usize) -> Self {
        let children = HashMap::new();
        let root = Node { parent: 0, ids: Box::default(), page: 0, depth: 0, asked: 0, children };
        Self {
            page_len,
            nodes: vec![Some(root)],
            vacant: Vec::new(),
            order: BTreeSet::new(),
            node_of: vec![None; pages],
            unused: vec![true; pages],
            alone: 0,
            clock: 0,
        }
    }

    /// Pages that only the tree holds.
    pub fn alone(&self) -> usize {
        self.alone
    }

    /// Pages of the longest prefix of `ids` that is known.
    pub fn find(&mut self, ids: &[u32]) -> Vec<u32> {
        self.clock += 1;
        let (mut at, mut pages) = (0, Vec::new());
        for ids in ids.chunks_exact(self.page_len) {
            let Some(next) = self.child(at, ids) else { break };
            at = next;
            pages.push(self.touch(at));
        }
        pages
    }

    /// Remembers whole pages of ids; what is known already keeps the page that it has.
    pub fn keep(&mut self, ids: &[u32], pages: &[u32]) {
        self.clock += 1;
        let mut at = 0;
        for (ids, &page) in ids.chunks_exact(self.page_len).zip(pages) {
            at = match self.child(at, ids) {
                Some(next) => next,
                // A page that was adopted and whose node was given up since stands elsewhere, or
                // nowhere: it may come back, but not twice.
                None if self.node_of[page as usize].is_some() => return,
                None => self.add(at, ids, page),
            };
            self.touch(at);
        }
    }

    /// A sequence holds the page.
    pub fn used(&mut self, page: u32) {
        self.unused[page as usize] = false;
        self.alone -= usize::from(self.node_of[page as usize].is_some());
    }

    /// No sequence holds the page any more; true if it stays in the tree.
    pub fn unused(&mut self, page: u32) -> bool {
        self.unused[page as usize] = true;
        let stays = self.node_of[page as usize].is_some();
        self.alone += usize::from(stays);
        stays
    }

    /// Gives up the prefix that was asked for longest ago and whose page no sequence holds, with all
    /// that follow it; the pages that are free by this. None: every page is held.
    pub fn give_up(&mut self) -> Option<Vec<u32>> {
        let is_alone = |node: &usize| {
            self.nodes[*node].as_ref().is_some_and(|node| self.unused[node.page as usize])
        };
        let oldest = self.order.iter().map(|age| age.2).find(is_alone)?;
        let (mut freed, mut left) = (Vec::new(), vec![oldest]);
        if let Some(node) = &self.nodes[oldest] {
            let (parent, ids) = (node.parent, node.ids.clone());
            if let Some(parent) = &mut self.nodes[parent] {
                parent.children.remove(&ids);
            }
        }
        while let Some(at) = left.pop() {
            let Some(node) = self.nodes[at].take() else { continue };
            left.extend(node.children.values());
            self.order.remove(&(node.asked, Reverse(node.depth), at));
            self.vacant.push(at);
            self.node_of[node.page as usize] = None;
            if self.unused[node.page as usize] {
                self.alone -= 1;
                freed.push(node.page);
            }
        }
        Some(freed)
    }

    fn child(&self, at: usize, ids: &[u32]) -> Option<usize> {
        self.nodes[at].as_ref()?.children.get(ids).copied()
    }

    fn add(&mut self, parent: usize, ids: &[u32], page: u32) -> usize {
        let at = self.vacant.pop().unwrap_or_else(|| {
            self.nodes.push(None);
            self.nodes.len() - 1
        });
        let ids: Box<[u32]> = ids.into();
        let mut depth = 0;
        if let Some(parent) = &mut self.nodes[parent] {
            parent.children.insert(ids.clone(), at);
            depth = parent.depth + 1;
        }
        let (asked, children) = (self.clock, HashMap::new());
        self.nodes[at] = Some(Node { parent, ids, page, depth, asked, children });
        self.order.insert((asked, Reverse(depth), at));
        self.node_of[page as usize] = Some(at);
        at
    }

    /// The node was asked for now; its page.
    fn touch(&mut self, at: usize) -> u32 {
        let Some(node) = &mut self.nodes[at] else { return 0 };
        self.order.remove(&(node.asked, Reverse(node.depth), at));
        node.asked = self.clock;
        self.order.insert((node.asked, Reverse(node.depth), at));
        node.page
    }
}
