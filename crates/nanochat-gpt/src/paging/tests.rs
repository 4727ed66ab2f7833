//! The tables against a plain record of what every page must hold.

use super::*;

const PAGE: usize = 4;

/// A linear congruential generator.
struct Draws(u64);

impl Draws {
    fn below(&mut self, n: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % n
    }
}

/// Feeds ids to a sequence, writing them to the pages' memory; then everything must be there.
fn feed(paging: &mut Paging, memory: &mut [[u32; PAGE]], sequence: Sequence, ids: &[u32]) {
    if let Some(copy) = paging.make_room(sequence, ids.len()).expect("set aside") {
        memory[copy.to as usize] = memory[copy.from as usize];
    }
    let have = paging.ids(sequence).expect("open").len();
    let pages = paging.pages(sequence).expect("open").to_vec();
    for (i, id) in ids.iter().enumerate() {
        memory[pages[(have + i) / PAGE] as usize][(have + i) % PAGE] = *id;
    }
    paging.append(sequence, ids).expect("open");
}

fn check(paging: &Paging, memory: &[[u32; PAGE]], sequence: Sequence) {
    let (ids, pages) = (paging.ids(sequence).expect("open"), paging.pages(sequence).expect("open"));
    let held: Vec<u32> =
        (0..ids.len()).map(|i| memory[pages[i / PAGE] as usize][i % PAGE]).collect();
    assert_eq!(held, ids);
}

fn room(rows: usize, len: usize) -> Room {
    Room { rows, len, reuse: true }
}

#[test]
fn any_order_of_requests_keeps_every_promise() {
    // Few ids, so that prompts begin alike; few pages, so that prefixes are given up.
    let mut draws = Draws(5);
    let mut paging = Paging::new(40, PAGE, 64);
    let mut memory = vec![[u32::MAX; PAGE]; 40];
    let mut open: Vec<(Sequence, Vec<u32>, usize, usize)> = Vec::new();
    let (mut refused, mut reused) = (0, 0);
    for _ in 0..20_000 {
        match draws.below(8) {
            0 | 1 => {
                let n = 1 + draws.below(24);
                let prompt: Vec<u32> = (0..n).map(|i| (i + draws.below(30) / 29) as u32).collect();
                let (rows, len) = (1 + draws.below(3), n + draws.below(20));
                match paging.open(&prompt, room(rows, len)).expect("it fits") {
                    None => refused += 1,
                    Some(opened) => {
                        assert!(opened.reused < n);
                        reused += opened.reused;
                        check(&paging, &memory, opened.sequence);
                        open.push((opened.sequence, prompt, rows - 1, len));
                    }
                }
            }
            2 if !open.is_empty() => {
                let at = draws.below(open.len());
                paging.close(open.swap_remove(at).0);
            }
            _ if !open.is_empty() => {
                let at = draws.below(open.len());
                let (sequence, prompt, forks, len) = open[at].clone();
                let have = paging.ids(sequence).expect("open").len();
                if have < prompt.len() {
                    let n = 1 + draws.below(prompt.len() - have);
                    feed(&mut paging, &mut memory, sequence, &prompt[have..have + n]);
                } else if forks > 0 && have == prompt.len() {
                    open[at].2 -= 1;
                    let fork = paging.fork(sequence).expect("one of those that were set aside");
                    open.push((fork, prompt, 0, len));
                } else if have < len {
                    let id = draws.below(3) as u32;
                    feed(&mut paging, &mut memory, sequence, &[id]);
                }
            }
            _ => {}
        }
        for (sequence, ..) in &open {
            check(&paging, &memory, *sequence);
        }
        let PageCount { total, used, cached } = paging.count();
        assert!(used + cached <= total && paging.promised <= total - used);
    }
    assert!(refused > 100 && reused > 1000, "{refused} {reused}");
    open.into_iter().for_each(|(sequence, ..)| paging.close(sequence));
    assert_eq!((paging.count().used, paging.promised), (0, 0));
    paging.forget_prefixes();
    assert_eq!(paging.count(), PageCount { total: 40, used: 0, cached: 0 });
}

#[test]
fn samples_share_the_prompt_and_copy_the_page_that_they_write() {
    let mut paging = Paging::new(20, PAGE, 64);
    let mut memory = vec![[0; PAGE]; 20];
    let first =
        paging.open(&[1, 2, 3, 4, 5, 6], room(3, 10)).expect("fits").expect("room").sequence;
    feed(&mut paging, &mut memory, first, &[1, 2, 3, 4, 5, 6]);
    let forks = [paging.fork(first).expect("one"), paging.fork(first).expect("two")];
    assert!(paging.fork(first).is_err(), "three rows were set aside");
    assert_eq!(paging.count().used, 2);
    for (i, sequence) in [first, forks[0], forks[1]].into_iter().enumerate() {
        feed(&mut paging, &mut memory, sequence, &[50 + i as u32]);
    }
    assert_eq!(paging.count().used, 4, "one page shared, one each");
    for sequence in [first, forks[0], forks[1]] {
        check(&paging, &memory, sequence);
        paging.close(sequence);
        paging.close(sequence);
    }
    assert_eq!(paging.count(), PageCount { total: 20, used: 0, cached: 1 });
}

#[test]
fn the_prefix_that_was_asked_for_longest_ago_goes_first() {
    let mut paging = Paging::new(6, PAGE, 64);
    let mut memory = vec![[0; PAGE]; 6];
    let mut serve = |salt: u32| {
        let prompt: Vec<u32> = (0..8).map(|i| salt * 100 + i).collect();
        let opened = paging.open(&prompt, room(1, 9)).expect("fits").expect("room");
        feed(&mut paging, &mut memory, opened.sequence, &prompt[opened.reused..]);
        paging.close(opened.sequence);
        opened.reused
    };
    // Two whole pages each, of which the second is not reused: an id must be computed.
    assert_eq!([serve(1), serve(2), serve(1), serve(3)], [0, 0, 4, 0]);
    // Six pages: 1 and 3 are held, of 2 the beginning at most.
    assert_eq!(serve(1), 4);
    assert_eq!(serve(3), 4);
}

#[test]
fn what_cannot_be_held_is_refused() {
    let mut paging = Paging::new(4, PAGE, 20);
    assert!(paging.open(&[], room(1, 1)).is_err() && paging.open(&[1], room(0, 1)).is_err());
    assert!(matches!(paging.open(&[1], room(1, 21)), Err(Error::ContextFull { limit: 20, .. })));
    assert_eq!(paging.open(&[1], room(1, 17)).expect("short enough"), None, "five pages of four");
    let opened = paging.open(&[1], room(1, 9)).expect("fits").expect("room");
    assert_eq!(paging.open(&[1], room(1, 5)).expect("fits"), None, "three are promised");
    let error = paging.make_room(opened.sequence, 10).expect_err("nine were asked for");
    assert!(matches!(error, Error::ContextFull { have: 0, asked: 10, limit: 9 }), "{error}");
    paging.close(opened.sequence);
    assert!(paging.make_room(opened.sequence, 1).is_err() && paging.fork(opened.sequence).is_err());
}
