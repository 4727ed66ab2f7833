//! The same over MPI.

use crate::lab::{Lab, same_end, tool};
use crate::same::{line, run_well};

#[test]
fn one_two_and_four_ranks_of_mpi_end_in_the_same_bits() {
    if tool("mpirun").is_none() {
        println!("skipped mpi: no mpirun");
        return;
    }
    let lab = Lab::new();
    let save = "--save-every 4 --same-bits";
    run_well(&lab, &line("one", 12, save));
    for n in [2, 4] {
        let run = format!("ranks{n}");
        let line = line(&run, 12, &format!("{save} --comm mpi"));
        run_well(&lab, &format!("launch --mpi --nproc {n} -- {line}"));
        same_end(&lab, "one", &run, 12);
    }
}
