//! Words that depend on numbers.

/// A number with its noun: `1 tensor`, `2 tensors`.
pub fn counted(number: u64, noun: &str) -> String {
    match number {
        1 => format!("1 {noun}"),
        _ => format!("{number} {noun}s"),
    }
}
