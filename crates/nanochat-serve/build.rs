//! A file that is added to the page is a change of this crate, too.

fn main() {
    println!("cargo::rerun-if-changed=web");
}
