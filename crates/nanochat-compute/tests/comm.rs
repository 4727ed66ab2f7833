//! Collectives over threads and over TCP are the same; ranks that are not of one mind do not meet; who is
//! lost is named.

use std::net::TcpListener;
use std::sync::mpsc::channel;
use std::time::Duration;

use nanochat_compute::comm::heartbeat::Heartbeat;
use nanochat_compute::comm::identity::Identity;
use nanochat_compute::comm::rendezvous::{Met, Terms, meet};
use nanochat_compute::comm::tcp::Tcp;
use nanochat_compute::comm::threads::Threads;
use nanochat_compute::comm::{Comm, Part, Solo};
use nanochat_compute::{Result, Tensor};

fn port() -> u16 {
    let probe = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
    probe.local_addr().expect("bound").port()
}

fn me(rank: usize, world: usize, port: u16) -> Identity {
    let (host, launcher) = ("127.0.0.1".into(), "a test");
    Identity { rank, world, local_rank: rank, host, port, launcher }
}

fn terms() -> Terms {
    let (version, command, token) = ("1".into(), "train\0base".into(), "secret".into());
    Terms { version, command, token, patience: Duration::from_secs(5) }
}

/// What each rank of a world of processes, here threads, meets; `change` makes one of them another.
fn meetings(world: usize, change: impl Fn(usize, &mut Terms) + Sync) -> Vec<Result<Met>> {
    let port = port();
    std::thread::scope(|scope| {
        let start = |rank| {
            let change = &change;
            scope.spawn(move || {
                let mut terms = terms();
                change(rank, &mut terms);
                meet(&me(rank, world, port), &terms)
            })
        };
        let ranks: Vec<_> = (0..world).map(start).collect();
        ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect()
    })
}

/// Every collective once; what this rank has afterwards.
fn all_of_them(comm: &dyn Comm) -> Vec<f64> {
    let rank = comm.rank() as f32;
    let values: Vec<f32> = (0..10).map(|i| (i as f32 + 0.1) * (rank + 1.0)).collect();
    let part = |range, owner| Part { range, owner };
    let parts = [part(0..4, Some(0)), part(4..7, Some(comm.world() - 1)), part(7..10, None)];
    let x = Tensor::from_f32(&values).expect("small");
    comm.reduce_scatter(&x, &parts).expect("all are there");
    comm.all_gather(&x, &parts).expect("all are there");
    let mut out: Vec<f64> = x.to_vec_f32().expect("f32").into_iter().map(f64::from).collect();
    let (mut sum, mut most) = ([f64::from(rank), 0.5], [f64::from(rank), f64::NAN]);
    comm.all_reduce_sum(&mut sum).expect("all are there");
    comm.all_reduce_max(&mut most).expect("all are there");
    out.extend(sum.into_iter().chain([most[0]]));
    let mut word = if rank == 0.0 { b"word".to_vec() } else { Vec::new() };
    comm.broadcast(&mut word).expect("all are there");
    assert_eq!(word, b"word");
    comm.barrier().expect("all are there");
    out
}

fn by_threads(world: usize) -> Vec<Vec<f64>> {
    std::thread::scope(|scope| {
        let run = |comm| scope.spawn(move || all_of_them(&comm));
        let ranks: Vec<_> = Threads::group(world).into_iter().map(run).collect();
        ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect()
    })
}

fn by_tcp(world: usize) -> Vec<Vec<f64>> {
    let met = meetings(world, |_, _| {});
    std::thread::scope(|scope| {
        let run = |met: Result<Met>| {
            scope.spawn(move || all_of_them(&Tcp::connect(&met.expect("met")).expect("connected")))
        };
        let ranks: Vec<_> = met.into_iter().map(run).collect();
        ranks.into_iter().map(|rank| rank.join().expect("no panic")).collect()
    })
}

#[test]
fn collectives_sum_in_pairs_over_every_wire() {
    for world in [2, 3, 4] {
        let (threads, tcp) = (by_threads(world), by_tcp(world));
        assert_eq!(threads, tcp, "{world} ranks");
        assert!(threads.iter().all(|rank| *rank == threads[0]), "{threads:?}");
        let term = |i: usize, rank: usize| (i as f32 + 0.1) * (rank as f32 + 1.0);
        for (i, have) in threads[0][..10].iter().enumerate() {
            let want = match world {
                2 => term(i, 0) + term(i, 1),
                3 => (term(i, 0) + term(i, 1)) + term(i, 2),
                _ => (term(i, 0) + term(i, 1)) + (term(i, 2) + term(i, 3)),
            };
            assert_eq!(*have, f64::from(want), "element {i} of {world} ranks");
        }
        let n = world as f64;
        assert_eq!(threads[0][10..], [n * (n - 1.0) / 2.0, n / 2.0, n - 1.0]);
    }
    // Alone everything stays as it is.
    let alone = all_of_them(&Solo);
    assert_eq!(alone[0], f64::from(0.1f32));
}

#[test]
fn ranks_of_another_version_do_not_meet_and_all_are_told() {
    let other = |rank, terms: &mut Terms| {
        if rank == 2 {
            terms.version = "2".into();
        }
    };
    for met in meetings(3, other) {
        let why = met.map(|_| ()).expect_err("another version").to_string();
        assert!(why.contains("rank 2 runs version 2, rank 0 version 1"), "{why}");
    }
}

#[test]
fn a_stranger_without_the_token_is_not_let_in() {
    let other = |rank, terms: &mut Terms| {
        terms.patience = Duration::from_secs(1);
        if rank == 1 {
            terms.token = "guessed".into();
        }
    };
    let met: Vec<_> = meetings(2, other).into_iter().map(|m| m.map(|_| ())).collect();
    let why = met[0].as_ref().expect_err("nobody came").to_string();
    assert!(why.contains("rank 1 of 2 did not come"), "{why}");
    assert!(met[1].is_err());
}

#[test]
fn a_rank_that_goes_without_a_word_is_named_to_all_and_one_that_says_bye_is_not() {
    let mut met: Vec<Met> =
        meetings(4, |_, _| {}).into_iter().map(|met| met.expect("met")).collect();
    let (tell, told) = channel();
    // Rank 3 ends as a process does that is killed: its connection closes.
    let dead = met.pop().expect("four ranks");
    let mut hearts = Vec::new();
    for met in &mut met {
        let (rank, tell) = (met.me.rank, tell.clone());
        hearts.push(Heartbeat::start(met, move |lost| {
            let _ = tell.send((rank, lost.clone()));
        }));
    }
    // Rank 2 leaves in peace.
    hearts.pop().expect("three hearts").bye();
    drop(dead);
    let mut heard: Vec<_> = (0..2)
        .map(|_| told.recv_timeout(Duration::from_secs(60)).expect("rank 0 and rank 1 hear of it"))
        .collect();
    heard.sort_by_key(|(rank, _)| *rank);
    for (i, (rank, lost)) in heard.iter().enumerate() {
        assert_eq!((*rank, lost.rank), (i, 3), "{lost}");
        assert!(lost.why.contains("without a word"), "{lost}");
    }
}
