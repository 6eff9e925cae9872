//! What modules are that are no linear layers, by how their names end: from a table that was exported from
//! transformers.

use std::collections::HashMap;
use std::sync::OnceLock;

const TABLE: &str = include_str!("kinds.tsv");

/// The kind of a module that is not a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ModuleKind {
    /// The input embedding.
    Embedding,
    /// Another table that is looked up: of positions, of token types, of a codebook.
    Table,
    /// The output head.
    Head,
    /// `Conv1D`, a linear layer that is stored `[in, out]`.
    Conv1d,
    /// A matrix of a module that no LoRA wraps: a router's, a norm's.
    Parameter,
    /// A linear layer, though what ends alike is something else mostly.
    Linear,
}

struct Table {
    ends: HashMap<&'static str, ModuleKind>,
    /// Whole names that are of one kind in one type of model and of another elsewhere.
    names: HashMap<(&'static str, &'static str), ModuleKind>,
}

fn table() -> &'static Table {
    static PARSED: OnceLock<Table> = OnceLock::new();
    PARSED.get_or_init(|| {
        let (mut ends, mut names) = (HashMap::new(), HashMap::new());
        for line in TABLE.lines().filter(|line| !line.starts_with('#')) {
            let mut fields = line.split('\t');
            let (Some(end), Some(kind)) = (fields.next(), fields.next().and_then(kind)) else { continue };
            match fields.next() {
                None => drop(ends.insert(end, kind)),
                Some(model_type) => drop(names.insert((model_type, end), kind)),
            }
        }
        Table { ends, names }
    })
}

fn kind(word: &str) -> Option<ModuleKind> {
    Some(match word {
        "embedding" => ModuleKind::Embedding,
        "table" => ModuleKind::Table,
        "head" => ModuleKind::Head,
        "conv1d" => ModuleKind::Conv1d,
        "parameter" => ModuleKind::Parameter,
        "linear" => ModuleKind::Linear,
        _ => return None,
    })
}

/// What `module` is, where it is known to be no linear layer. `model_type` tells names apart that mean one thing here
/// and another there.
pub(crate) fn kind_of_module(module: &str, model_type: Option<&str>) -> Option<ModuleKind> {
    let table = table();
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let flat: Vec<&str> = module.split('.').map(|part| if is_number(part) { "#" } else { part }).collect();
    let flat = flat.join(".");
    let here = model_type.and_then(|model_type| table.names.get(&(model_type, flat.as_str())));
    // The longest ending tells.
    let tails = std::iter::once(flat.as_str()).chain(flat.match_indices('.').map(|(at, _)| &flat[at + 1..]));
    let whole = table.ends.get(format!("^{flat}").as_str());
    here.or(whole).copied().or_else(|| tails.into_iter().find_map(|tail| table.ends.get(tail).copied()))
}
