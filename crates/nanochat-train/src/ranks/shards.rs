//! Parameters dealt to ranks, ZeRO-2: a rank keeps moments for its own parts alone.
//!
//! In: the parameter table, the number of ranks. Out: parts with owners. Pure: every rank, the scaling
//! model and the tests compute the same. Source: nanochat `optim.py` (`DistMuonAdamW`), which deals
//! matrices by count; here they go by cost, longest processing time first (Graham 1969).

use nanochat_compute::comm::Part;
use nanochat_gpt::nano::table::{Group, Row, Table};

/// AdamW's parameters of fewer elements are kept by every rank: a message would cost more.
pub const SMALL: usize = 1024;

/// Multiplications and additions of five Newton-Schulz iterations (Polar Express) of a matrix, over 2:
/// `5 (2 d^2 l + d^3)` with d the shorter side and l the longer. A square of D costs 15 D^3, one of
/// (4D, D) 45 D^3: one to three.
pub fn muon_cost(shape: &[usize]) -> f64 {
    let (m, n) = (shape[0] as f64, shape[1] as f64);
    let (short, long) = (m.min(n), m.max(n));
    5.0 * (2.0 * short * short * long + short.powi(3))
}

/// A part of one row of the table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Index of the row.
    pub row: usize,
    /// Elements of the stretch of all parameters, and their rank.
    pub part: Part,
}

/// Every parameter once, in the order of the table's rows; rows that are cut, in order of rank.
///
/// AdamW's tables are cut by rows of theirs into one range a rank, as even as they go; matrices stay
/// whole, the costliest first to the rank that has least to do; with one rank nothing is cut.
pub fn shards(table: &Table, world: usize) -> Vec<Shard> {
    let rows = table.rows();
    let owners = matrix_owners(rows, world);
    let mut all = Vec::new();
    for (row, r) in rows.iter().enumerate() {
        let mut push = |from: usize, to: usize, owner| {
            let range = r.offset + from..r.offset + to;
            if !range.is_empty() {
                all.push(Shard { row, part: Part { range, owner } });
            }
        };
        if world == 1 {
            push(0, r.len(), None);
        } else if r.group == Group::Matrix {
            push(0, r.len(), Some(owners[row]));
        } else if r.len() < SMALL {
            push(0, r.len(), None);
        } else {
            let width = r.len() / r.shape[0];
            let at = |rank: usize| r.shape[0] * rank / world * width;
            (0..world).for_each(|rank| push(at(rank), at(rank + 1), Some(rank)));
        }
    }
    all
}

/// The rank of each matrix; rows that are none have 0.
fn matrix_owners(rows: &[Row], world: usize) -> Vec<usize> {
    let mut owners = vec![0; rows.len()];
    let mut matrices: Vec<(usize, f64)> = rows
        .iter()
        .enumerate()
        .filter(|(_, r)| r.group == Group::Matrix)
        .map(|(i, r)| (i, muon_cost(&r.shape)))
        .collect();
    matrices.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
    let mut loads = vec![0.0f64; world];
    for (i, cost) in matrices {
        let least = (0..world).min_by(|&a, &b| loads[a].total_cmp(&loads[b])).unwrap_or(0);
        owners[i] = least;
        loads[least] += cost;
    }
    owners
}

/// [`muon_cost`] of what each rank steps.
pub fn muon_loads(table: &Table, shards: &[Shard], world: usize) -> Vec<f64> {
    let mut loads = vec![0.0f64; world];
    for shard in shards {
        let row = &table.rows()[shard.row];
        if row.group == Group::Matrix {
            loads[shard.part.owner.unwrap_or(0)] += muon_cost(&row.shape);
        }
    }
    loads
}

/// Elements that each rank keeps moments for.
pub fn elements(shards: &[Shard], world: usize) -> Vec<usize> {
    let of = |rank| shards.iter().filter(|s| s.part.is_of(rank)).map(|s| s.part.range.len()).sum();
    (0..world).map(of).collect()
}

/// The parts alone.
pub fn parts(shards: &[Shard]) -> Vec<Part> {
    shards.iter().map(|s| s.part.clone()).collect()
}

/// Parts of one owner that touch, as one: fewer and longer messages.
pub fn joined(mut parts: Vec<Part>) -> Vec<Part> {
    parts.sort_by_key(|p| (p.owner.unwrap_or(usize::MAX), p.range.start));
    let mut out: Vec<Part> = Vec::new();
    for part in parts {
        match out.last_mut() {
            Some(last) if last.owner == part.owner && last.range.end == part.range.start => {
                last.range.end = part.range.end;
            }
            _ => out.push(part),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use nanochat_gpt::GptConfig;

    use super::*;

    fn table(depth: usize) -> Table {
        Table::new(&GptConfig::from_depth(depth, 64, 128, 2048, 32768, "SSSL").expect("sizes"))
    }

    #[test]
    fn every_parameter_has_exactly_one_home() {
        for (depth, worlds) in [(4, [1, 2, 3, 4, 7]), (12, [1, 2, 4, 8, 64])] {
            let table = table(depth);
            for world in worlds {
                let shards = shards(&table, world);
                for (i, row) in table.rows().iter().enumerate() {
                    let mut at = row.offset;
                    for shard in shards.iter().filter(|s| s.row == i) {
                        assert_eq!(shard.part.range.start, at, "{} of {world}", row.name);
                        at = shard.part.range.end;
                        assert!(shard.part.owner.is_none_or(|o| o < world));
                    }
                    assert_eq!(at, row.offset + row.len(), "{} of {world}", row.name);
                }
                let joined = joined(parts(&shards));
                let len = |parts: &[Part]| parts.iter().map(|p| p.range.len()).sum::<usize>();
                assert_eq!(len(&joined), len(&parts(&shards)));
            }
        }
    }

    #[test]
    fn matrices_of_d20_are_dealt_evenly_by_cost() {
        // 80 squares of cost 1 and 40 rectangles of cost 3 are 200 on 8 ranks: 25 each; by count three
        // matrices of each stack of 20 go to one rank.
        let table = table(20);
        let shards = shards(&table, 8);
        let loads = muon_loads(&table, &shards, 8);
        let (most, all) = (loads.iter().copied().fold(0.0, f64::max), loads.iter().sum::<f64>());
        assert!(most <= 1.001 * all / 8.0, "{loads:?}");
        assert_eq!(muon_cost(&[512, 128]), 3.0 * muon_cost(&[128, 128]));
        assert_eq!(muon_cost(&[128, 512]), muon_cost(&[512, 128]));
    }

    #[test]
    fn moments_shrink_with_ranks() {
        let table = table(12);
        let whole = elements(&shards(&table, 1), 1)[0];
        for world in [2, 4, 8] {
            let each = elements(&shards(&table, world), world);
            let most = each.iter().max().copied().unwrap_or(0);
            assert!(most as f64 <= 1.15 * whole as f64 / world as f64, "{world}: {each:?}");
        }
    }
}
