//! The program `trephine`.

fn main() {}
